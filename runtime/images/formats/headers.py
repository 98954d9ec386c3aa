"""Headers of NIfTI-1, NIfTI-2 and MGH: checked and repaired in one place, for images, label maps and fields alike.

A header is read from its bytes with nibabel's structures. A fault that can be resolved in only one way, the way NIfTI's
own library, ITK and FSL read it, is repaired with a warning; any other is refused.
"""

import math
from dataclasses import dataclass, replace
from typing import cast

import nibabel as nib
import numpy as np
from nibabel.freesurfer.mghformat import DATA_OFFSET, MGHHeader

from ...errors import InputError
from ...geometry.grid import SAME_SPACING
from ...types import Array
from .nifti_bytes import CODES_NOT_KNOWN
from .nifti_fields import (
    TIME_BITS,
    TIME_UNITS,
    form_code,
    header_affine,
    length_unit,
    refuse_header,
    repaired_zooms,
    time_step,
    value_scale,
    voxel_offset,
)
from .remarks import Remarks

LONGEST = 544 + 4  # bytes that suffice to read any header; NIfTI-2's is the longest
NIFTI_1, NIFTI_2 = (nib.Nifti1Header, 348), (nib.Nifti2Header, 540)  # structure, its size in bytes
MGH_VERSION = 1
Sizes = tuple[float, float, float]  # of a voxel along I, J, K


@dataclass(frozen=True, eq=False)
class Header:
    """The contents of a header.

    Attributes:
        kind: "NIfTI" or "MGH".
        shape: every size, each at least 1.
        dtype: type of the stored values, with their byte order.
        offset: bytes before the voxels.
        slope, inter: an image's values are ``slope * stored + inter``.
        affine: (4, 4) voxel -> RAS mm; not yet known to be invertible or finite.
        codes: NIfTI (sform, qform) codes.
        zooms: voxel sizes, mm, which the header states besides the affine; 0 where they are not finite.
        step: from one volume of a series to the next, and its unit.
        intent, intent_name, intent_value: NIfTI's code, name and first parameter.
        version: of MGH, whose higher bytes give the kind of the values of a warp.
        warnings: warnings, one line each, about faults that were repaired or assumptions that were made.
        remarks: further fields about the values.
    """

    kind: str
    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int
    affine: Array
    zooms: Sizes
    slope: float = 1.0
    inter: float = 0.0
    codes: tuple[int, int] = CODES_NOT_KNOWN
    step: tuple[float, str] = (0.0, "unknown")
    intent: int = 0
    intent_name: str = ""
    intent_value: float = 0.0
    version: int = MGH_VERSION
    warnings: tuple[str, ...] = ()
    remarks: Remarks | None = None

    def with_footer(self, tail: bytes) -> "Header":
        """Return the header with the repetition time, which an MGH file has after its voxels."""
        if self.kind != "MGH" or len(tail) < 4:
            return self
        step = float(np.frombuffer(tail, ">f4", 1)[0])
        return replace(self, step=(step if math.isfinite(step) and step >= 0 else 0.0, "msec"))

    @property
    def bytes(self) -> int:
        """The size of the voxels, in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def unscaled(self) -> bool:
        """True if the stored values are the image's, without scaling."""
        return (self.slope, self.inter) == (1, 0)

    @property
    def other_zooms(self) -> Sizes | None:
        """The voxel sizes if they differ from the affine's, for `Source.zooms`; None if they agree."""
        lengths = np.linalg.norm(self.affine[:3, :3], axis=0)
        return None if (np.abs(np.array(self.zooms) - lengths) <= SAME_SPACING * lengths).all() else self.zooms


def header_in(beginning: bytes, name: str) -> Header | None:
    """Parse the header that a file begins with; return None if it is neither NIfTI nor MGH.

    Args:
        beginning: the first `LONGEST` bytes, decompressed; fewer if the file is shorter.
        name: argument and file, for messages.

    Raises:
        InputError: the header is invalid and cannot be repaired.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # absurd values are refused by later checks
        if beginning[344:348] == b"n+1\0":
            return _nifti(*NIFTI_1, beginning, name)
        if beginning[4:8] == b"n+2\0":
            return _nifti(*NIFTI_2, beginning, name)
        if len(beginning) >= DATA_OFFSET and beginning[3] == MGH_VERSION and beginning[:2] == b"\0\0":
            return _mgh(beginning, name)
    return None


def _nifti(kind: type, size: int, beginning: bytes, name: str) -> Header:
    if len(beginning) < size:
        refuse_header(name, f"its header ends after {len(beginning)} bytes")
    orders = [order for order in "<>" if 1 <= kind(beginning[:size], order, check=False)["dim"][0] <= 7]
    if not orders:
        refuse_header(name, "the number of axes in its header is not 1 to 7")
    fields = kind(beginning[:size], orders[0], check=False)
    warnings: list[str] = []
    shape = tuple(int(number) for number in fields["dim"][1 : 1 + int(fields["dim"][0])])
    dtype = _dtype(fields, name)
    offset = voxel_offset(fields, size + 4, warnings)
    slope, inter = value_scale(fields, warnings)
    time = TIME_UNITS.get(int(fields["xyzt_units"]) & TIME_BITS)
    unit, millimetres = length_unit(fields, time, warnings)
    zooms = repaired_zooms(fields, name, warnings)
    codes = form_code(fields, "sform_code", warnings), form_code(fields, "qform_code", warnings)
    affine = header_affine(fields, codes, shape, name, warnings)
    affine[:3] *= millimetres
    if unit:
        warnings.append(f"the header's unit is {unit}; its numbers are converted to mm")
    return Header(
        kind="NIfTI",
        shape=_checked_shape(shape, name),
        dtype=dtype,
        offset=offset,
        slope=slope,
        inter=inter,
        affine=affine,
        codes=codes,
        zooms=cast(Sizes, tuple(float(zoom) * millimetres for zoom in zooms)),
        step=time_step(fields, shape, time or "unknown", warnings),
        intent=int(fields["intent_code"]),
        intent_name=bytes(fields["intent_name"]).split(b"\0")[0].decode("latin-1").strip(),
        intent_value=float(fields["intent_p1"]),
        remarks=Remarks.of(fields, _integers(dtype, slope, inter)),
        warnings=tuple(warnings),
    )


def _mgh(beginning: bytes, name: str) -> Header:
    fields = MGHHeader(beginning[:DATA_OFFSET].ljust(MGHHeader.template_dtype.itemsize, b"\0"), check=False)
    stored = np.frombuffer(beginning, MGHHeader._hdrdtype, 1)[0]
    shape = tuple(int(number) for number in stored["dims"])
    warnings = []
    if int(stored["goodRASFlag"]) != 1:
        warnings.append("the header has no orientation; FreeSurfer's default is assumed")
    if np.any(np.array(fields["delta"]) < 0):
        refuse_header(name, "a voxel size in its header is below 0")
    return Header(
        kind="MGH",
        shape=_checked_shape(shape[:3] if shape[3] == 1 else shape, name),
        dtype=_dtype(fields, name),
        offset=DATA_OFFSET,
        affine=np.array(fields.get_affine(), dtype=np.float64),
        zooms=cast(Sizes, tuple(float(zoom) for zoom in fields["delta"])),
        step=(0.0, "msec"),
        version=int(stored["version"]),
        warnings=tuple(warnings),
    )


def _integers(dtype: np.dtype, slope: float, inter: float) -> np.dtype | None:
    """Return the dtype of unscaled integers in native byte order; None for scaled integers and floats."""
    return dtype.newbyteorder("=") if dtype.kind in "iu" and (slope, inter) == (1, 0) else None


def _checked_shape(shape: tuple[int, ...], name: str) -> tuple[int, ...]:
    if not shape or min(shape) < 1:
        raise InputError(f"{name} has the shape {shape}, expected at least one voxel along each axis")
    return shape


def _dtype(fields: nib.Nifti1Header | MGHHeader, name: str) -> np.dtype:
    try:
        dtype: np.dtype = np.dtype(fields.get_data_dtype())
    except KeyError as error:
        refuse_header(name, f"data code {error} not supported")
    if not dtype.itemsize:
        refuse_header(name, f"data code of {dtype} not supported")
    return dtype
