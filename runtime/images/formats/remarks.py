"""NIfTI header fields about an image's values, which stay valid on any grid, unlike those about positions."""

from dataclasses import dataclass

import nibabel as nib
import numpy as np

FIELDS: tuple[str, ...] = ("descrip", "aux_file", "cal_max", "cal_min", "toffset", "intent_code", "intent_name")
FIELDS += ("intent_p1", "intent_p2", "intent_p3")


@dataclass(frozen=True)
class Remarks:
    """Fields of a NIfTI header as stored: description, display range, time offset, and intent.

    Attributes:
        fields: values by name, one of `FIELDS`.
        stored: the type of the values on disk, if these are integers that the header does not scale.
    """

    fields: dict[str, bytes | float]
    stored: np.dtype | None = None

    @classmethod
    def of(cls, header: nib.Nifti1Header, stored: np.dtype | None) -> "Remarks":
        """Return those of a header; fields that are not finite are left out."""
        values = {name: header[name].item() for name in FIELDS}
        sound = {name: value for name, value in values.items() if isinstance(value, bytes) or np.isfinite(value)}
        return cls(sound, stored)

    def write_into(self, header: nib.Nifti1Header) -> None:
        """Set the fields in another header."""
        for name, value in self.fields.items():
            header[name] = value
