"""Fields of SPM, NiftyReg and AFNI, which look like ITK's but for some words in their headers.

    T(x) = s(v)              SPM's y_*.nii ("Mapping"), NiftyReg's deformations (0): RAS mm
    T(x) = x + s(v)          NiftyReg's displacements (1): RAS mm
    T(x) = x + diag(-1, -1, 1) s(v)    AFNI's: mm in its own order of axes, which is DICOM's, as ITK's

Source: SPM's spm_defs.m (``N.intent.name = 'Mapping'``) and "NII" in its deformation tools; NiftyReg's _reg_maths.h
(``NREG_TRANS_TYPE``, kept in ``intent_p1`` beside the name "NREG_TRANS"); AFNI's help of 3dQwarp.
"""

from dataclasses import dataclass

import numpy as np

from ...errors import InputError
from ...geometry.grid import Grid
from ...images.formats.headers import Header

Array = np.ndarray
AFNI = b"<AFNI_attributes"  # its extension begins with it
NIFTYREG = {  # intent_p1 of what is no field: what it is
    2: "a grid of spline control points",
    3: "a velocity field",
    4: "a velocity field",
    5: "a grid of spline velocities",
    6: "a grid of linear control points",
}


@dataclass(frozen=True)
class Told:
    """What a header says of a field.

    Attributes:
        whose: a tool's name.
        convention: whose formula holds, "itk" or "freesurfer", once positions are displacements.
        absolute: whether numbers are positions.
    """

    whose: str
    convention: str
    absolute: bool = False


def told(header: Header, between: bytes, name: str) -> Told | None:
    """What a header says of a field beyond its intent; None: nothing.

    Args:
        header: of a field (I, J, K, 1, 3).
        between: the header's bytes with its extensions.
        name: argument and file, for messages.

    Raises:
        InputError: NiftyReg's control points and velocities.
    """
    if header.intent_name == "Mapping":
        return Told("SPM", "freesurfer", absolute=True)
    if header.intent_name == "NREG_TRANS":
        if header.intent_value not in (0, 1):
            what = NIFTYREG.get(header.intent_value, f"of the unknown kind {header.intent_value:g}")
            raise InputError(
                f"{name} is {what} of NiftyReg, no displacement field; make one of it: reg_transform -ref FIXED "
                "-def IT field.nii.gz"
            )
        return Told("NiftyReg", "freesurfer", absolute=header.intent_value == 0)
    return Told("AFNI", "itk") if AFNI in between and header.intent == 0 else None


def displacements(positions: Array, grid: Grid) -> Array:
    """Positions (I, J, K, 3) at the voxels of a grid, RAS mm, as displacements, float32; first axis fastest."""
    i, j, k = np.ogrid[tuple(slice(size) for size in grid.shape)]
    result = np.empty(positions.shape, np.float32, order="F")
    for component, row in enumerate(grid.affine[:3]):
        own = (row[0] * i + row[1] * j) + (row[2] * k + row[3])
        with np.errstate(invalid="ignore", over="ignore"):  # infinite ones are refused by who asks
            np.subtract(positions[..., component], own, out=result[..., component], casting="same_kind")
    return result
