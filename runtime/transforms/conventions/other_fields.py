"""Fields of SPM, NiftyReg and AFNI, which differ from ITK's only by some words in their headers.

    T(x) = s(v)              SPM's y_*.nii ("Mapping"), NiftyReg's deformations (0): RAS mm
    T(x) = x + s(v)          NiftyReg's displacements (1): RAS mm
    T(x) = x + diag(-1, -1, 1) s(v)    AFNI's: mm in its own axes, which are DICOM's (LPS), as ITK's

Source: SPM's spm_defs.m (``N.intent.name = 'Mapping'``) and "NII" in its deformation tools; NiftyReg's _reg_maths.h
(``NREG_TRANS_TYPE``, kept in ``intent_p1`` beside the name "NREG_TRANS"); AFNI's help of 3dQwarp.
"""

from dataclasses import dataclass

import numpy as np

from ...errors import InputError
from ...geometry.grid import Grid
from ...images.formats.headers import Header
from ...types import Array

AFNI = b"<AFNI_attributes"  # beginning of AFNI's extension
NIFTYREG: dict[float, str] = {  # intent_p1 of files that are not fields: their content
    2: "a grid of spline control points",
    3: "a velocity field",
    4: "a velocity field",
    5: "a grid of spline velocities",
    6: "a grid of linear control points",
}


@dataclass(frozen=True)
class FieldOrigin:
    """The tool that wrote a field, and the meaning of its numbers.

    Attributes:
        tool: name of the tool.
        convention: "itk" or "freesurfer", whose formula holds once positions are turned into displacements.
        absolute: True if the numbers are positions.
    """

    tool: str
    convention: str
    absolute: bool = False


def field_origin(header: Header, between: bytes, name: str) -> FieldOrigin | None:
    """Return a field's origin if its header names SPM, NiftyReg or AFNI, else None.

    Args:
        header: header of a field (I, J, K, 1, 3).
        between: the header's bytes with its extensions.
        name: argument and file, for messages.

    Raises:
        InputError: control points and velocities of NiftyReg.
    """
    if header.intent_name == "Mapping":
        return FieldOrigin("SPM", "freesurfer", absolute=True)
    if header.intent_name == "NREG_TRANS":
        if header.intent_value not in (0, 1):
            what = NIFTYREG.get(header.intent_value, f"of the unknown kind {header.intent_value:g}")
            raise InputError(
                f"{name} is {what} of NiftyReg, not a displacement field; convert it: reg_transform -ref FIXED "
                "-def IT field.nii.gz"
            )
        return FieldOrigin("NiftyReg", "freesurfer", absolute=header.intent_value == 0)
    return FieldOrigin("AFNI", "itk") if AFNI in between and header.intent == 0 else None


def displacements(positions: Array, grid: Grid) -> Array:
    """Convert positions at a grid's voxels, (I, J, K, 3) RAS mm, to displacements, float32, first axis contiguous."""
    i, j, k = np.ogrid[tuple(slice(size) for size in grid.shape)]
    result = np.empty(positions.shape, np.float32, order="F")
    for component, row in enumerate(grid.affine[:3]):
        own = (row[0] * i + row[1] * j) + (row[2] * k + row[3])
        with np.errstate(invalid="ignore", over="ignore"):  # infinite numbers are refused by the caller
            np.subtract(positions[..., component], own, out=result[..., component], casting="same_kind")
    return result
