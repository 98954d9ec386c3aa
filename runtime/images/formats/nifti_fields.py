"""Fields of a NIfTI header: invalid values are repaired with a warning if only one meaning is possible, else rejected.

Repairs agree with NIfTI's own library, ITK and FSL. Warnings are appended to a list, one line each.
"""

import math
from collections.abc import Iterator
from typing import NoReturn

import nibabel as nib
import numpy as np
from nibabel.quaternions import quat2mat

from ...errors import InputError
from ...types import Array

FORMS_DIFFER_MM = 0.1
TOO_LONG = 1e-3  # by which a quaternion's squared length may exceed 1 through rounding, as some scanners write it
MILLIMETRES = {1: ("meter", 1e3), 3: ("micron", 1e-3)}  # NIfTI's code of a unit other than mm: name, size in mm
TIME_UNITS = {0: "unknown", 8: "sec", 16: "msec", 24: "usec", 32: "hz", 40: "ppm", 48: "rads"}
SPACE_BITS, TIME_BITS = 0x07, 0x38  # of xyzt_units
FORM_CODES = range(6)


def refuse_header(name: str, what: str) -> NoReturn:
    raise InputError(f"{name} cannot be read, damaged, truncated or not an image ({what})")


def voxel_offset(fields: nib.Nifti1Header, lowest: int, warnings: list[str]) -> int:
    """Return the byte at which the voxels begin: after the header and the 4 bytes that announce extensions.

    For an invalid offset, ITK begins right after the header, and so takes these 4 bytes for voxels.
    """
    stated = float(fields["vox_offset"])
    if math.isfinite(stated) and stated >= lowest:
        return int(fields["vox_offset"])
    warnings.append(f"the header's voxel offset is {stated:g}, inside the header; voxels are read from byte {lowest}")
    return lowest


def value_scale(fields: nib.Nifti1Header, warnings: list[str]) -> tuple[float, float]:
    slope, inter = float(fields["scl_slope"]), float(fields["scl_inter"])
    if not (math.isfinite(slope) and math.isfinite(inter)):
        if slope and not math.isnan(slope):  # some writers use NaN for "no scaling"
            warnings.append(f"slope {slope:g} and intercept {inter:g} are not both finite; stored values are unscaled")
        return 1.0, 0.0
    return (slope, inter) if slope else (1.0, 0.0)


def length_unit(fields: nib.Nifti1Header, time: str | None, warnings: list[str]) -> tuple[str | None, float]:
    """Return the name of a unit other than mm, None for mm, and its size in mm."""
    code = int(fields["xyzt_units"])
    if code & SPACE_BITS in MILLIMETRES:
        return MILLIMETRES[code & SPACE_BITS]
    if code & SPACE_BITS not in (0, 2) or time is None or code & ~(SPACE_BITS | TIME_BITS):
        warnings.append(f"the header's unit code is {code}, which NIfTI does not define; mm is assumed")
    return None, 1.0


def repaired_zooms(fields: nib.Nifti1Header, name: str, warnings: list[str]) -> Array:
    """Return the voxel sizes, (3,), in the header's unit, 0 where invalid; also set them in `fields`, with 1 for 0."""
    stated = np.array(fields["pixdim"][1:4], dtype=np.float64)
    zooms = np.where(np.isfinite(stated), np.abs(stated), 0)
    if np.any(zooms != stated) or not np.all(zooms):
        placed = int(fields["sform_code"]) in FORM_CODES[1:]
        if not placed and not np.all(np.isfinite(stated)):
            refuse_header(name, "a voxel size in its header is not a number, and there is no sform")
        by = "those of the sform are used" if placed else "their absolute values, or 1 mm for 0, are used"
        warnings.append(f"the header's voxel sizes are {' x '.join(f'{size:g}' for size in stated)}; {by}")
    fields["pixdim"][1:4] = np.where(zooms > 0, zooms, 1)
    return zooms


def form_code(fields: nib.Nifti1Header, form: str, warnings: list[str]) -> int:
    code = int(fields[form])
    if code in FORM_CODES:
        return code
    warnings.append(f"{form} is {code}, which NIfTI does not define; that form is not used")
    return 0


def header_affine(
    fields: nib.Nifti1Header, codes: tuple[int, int], shape: tuple[int, ...], name: str, warnings: list[str]
) -> Array:
    """Return the affine (4, 4) in the header's unit: the sform, else the qform, else one from the voxel sizes alone."""
    quaternion = _quaternion(fields) if codes[1] else None
    if codes[0]:
        sform = np.array(fields.get_sform(), dtype=np.float64)
        if codes[1]:
            warnings.extend(_disagreement(sform, quaternion, shape))
        return sform
    if codes[1]:
        if quaternion is None:
            refuse_header(name, "the quaternion of its qform is longer than 1 or not a number, and there is no sform")
        return quaternion
    warnings.append("neither sform nor qform is set; orientation and origin are guessed from the voxel sizes")
    return np.array(fields.get_base_affine(), dtype=np.float64) if len(shape) >= 3 else np.eye(4)


def _quaternion(fields: nib.Nifti1Header) -> Array | None:
    """Return the affine (4, 4) of the qform; None if it is damaged. A quaternion too long by rounding is normalised."""
    vector = np.array([fields[f"quatern_{letter}"] for letter in "bcd"], dtype=np.float64)
    origin = np.array([fields[f"qoffset_{letter}"] for letter in "xyz"], dtype=np.float64)
    square = float(vector @ vector)
    if not (square <= 1 + TOO_LONG and np.isfinite(origin).all()):
        return None
    vector = vector / math.sqrt(square) if square > 1 else vector
    turned = quat2mat([math.sqrt(max(1 - square, 0.0)), *vector])
    sizes = np.array(fields["pixdim"][1:4], dtype=np.float64) * (1, 1, -1 if fields["pixdim"][0] < 0 else 1)
    return np.vstack([np.column_stack([turned * sizes, origin]), (0, 0, 0, 1)])


def _disagreement(sform: Array, quaternion: Array | None, shape: tuple[int, ...]) -> Iterator[str]:
    if quaternion is None:
        yield "the qform is damaged; the sform is used"
        return
    corners = np.stack(np.meshgrid(*((0, size - 1) for size in (*shape, 1, 1)[:3])), -1).reshape(-1, 3)
    difference = quaternion - sform
    distance = np.linalg.norm(corners @ difference[:3, :3].T + difference[:3, 3], axis=1).max()
    if not distance <= FORMS_DIFFER_MM:
        yield f"sform and qform differ by up to {distance:.2f} mm; the sform is used, other tools may use the qform"


def time_step(fields: nib.Nifti1Header, shape: tuple[int, ...], unit: str, warnings: list[str]) -> tuple[float, str]:
    stated = float(fields["pixdim"][4])
    if math.isfinite(stated) and stated >= 0:
        return stated, unit
    if len(shape) > 3 and shape[3] > 1:
        warnings.append(
            f"the header's time step is {stated:g}; {abs(stated) if math.isfinite(stated) else 'none'} is used"
        )
    return (abs(stated), unit) if math.isfinite(stated) else (0.0, "unknown")
