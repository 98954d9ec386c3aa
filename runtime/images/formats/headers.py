"""Headers of NIfTI-1, NIfTI-2 and MGH: checked and repaired in one place, for images, label maps and fields alike.

A header is read from its bytes with nibabel's structures. A fault that can be resolved in only one way, the way NIfTI's
own library, ITK and FSL read it, is repaired with a warning; any other is refused.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NoReturn, cast

import nibabel as nib
import numpy as np
from nibabel.freesurfer.mghformat import DATA_OFFSET, MGHHeader
from nibabel.quaternions import quat2mat

from ...errors import InputError
from ...geometry.grid import SAME_SPACING
from ...types import Array
from .nifti_bytes import CODES_NOT_KNOWN
from .remarks import Remarks

FORMS_DIFFER_MM = 0.1
TOO_LONG = 1e-3  # by which a quaternion's squared length may exceed 1 through rounding, as some scanners write it
MILLIMETRES = {1: ("meter", 1e3), 3: ("micron", 1e-3)}  # NIfTI's code of a unit other than mm: name, size in mm
TIME_UNITS = {0: "unknown", 8: "sec", 16: "msec", 24: "usec", 32: "hz", 40: "ppm", 48: "rads"}
SPACE_BITS, TIME_BITS = 0x07, 0x38  # of xyzt_units
FORM_CODES = range(6)
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


def _refuse(name: str, what: str) -> NoReturn:
    raise InputError(f"{name} cannot be read, damaged, truncated or not an image ({what})")


def _nifti(kind: type, size: int, beginning: bytes, name: str) -> Header:
    if len(beginning) < size:
        _refuse(name, f"its header ends after {len(beginning)} bytes")
    orders = [order for order in "<>" if 1 <= kind(beginning[:size], order, check=False)["dim"][0] <= 7]
    if not orders:
        _refuse(name, "the number of axes in its header is not 1 to 7")
    fields = kind(beginning[:size], orders[0], check=False)
    warnings: list[str] = []
    shape = tuple(int(number) for number in fields["dim"][1 : 1 + int(fields["dim"][0])])
    dtype = _dtype(fields, name)
    offset = _offset(fields, size + 4, warnings)
    slope, inter = _scale(fields, warnings)
    time = TIME_UNITS.get(int(fields["xyzt_units"]) & TIME_BITS)
    unit, millimetres = _unit(fields, time, warnings)
    zooms = _mended_zooms(fields, name, warnings)
    codes = _form_code(fields, "sform_code", warnings), _form_code(fields, "qform_code", warnings)
    affine = _affine(fields, codes, shape, name, warnings)
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
        step=_step(fields, shape, time or "unknown", warnings),
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
        _refuse(name, "a voxel size in its header is below 0")
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
        _refuse(name, f"data code {error} not supported")
    if not dtype.itemsize:
        _refuse(name, f"data code of {dtype} not supported")
    return dtype


def _offset(fields: nib.Nifti1Header, lowest: int, warnings: list[str]) -> int:
    """Return the byte at which the voxels begin: after the header and the 4 bytes that announce extensions.

    For an invalid offset, ITK begins right after the header, and so takes these 4 bytes for voxels.
    """
    stated = float(fields["vox_offset"])
    if math.isfinite(stated) and stated >= lowest:
        return int(fields["vox_offset"])
    warnings.append(f"the header's voxel offset is {stated:g}, inside the header; voxels are read from byte {lowest}")
    return lowest


def _scale(fields: nib.Nifti1Header, warnings: list[str]) -> tuple[float, float]:
    slope, inter = float(fields["scl_slope"]), float(fields["scl_inter"])
    if not (math.isfinite(slope) and math.isfinite(inter)):
        if slope and not math.isnan(slope):  # some writers use NaN for "no scaling"
            warnings.append(f"slope {slope:g} and intercept {inter:g} are not both finite; stored values are unscaled")
        return 1.0, 0.0
    return (slope, inter) if slope else (1.0, 0.0)


def _unit(fields: nib.Nifti1Header, time: str | None, warnings: list[str]) -> tuple[str | None, float]:
    """Return the name of a unit other than mm, None for mm, and its size in mm."""
    code = int(fields["xyzt_units"])
    if code & SPACE_BITS in MILLIMETRES:
        return MILLIMETRES[code & SPACE_BITS]
    if code & SPACE_BITS not in (0, 2) or time is None or code & ~(SPACE_BITS | TIME_BITS):
        warnings.append(f"the header's unit code is {code}, which NIfTI does not define; mm is assumed")
    return None, 1.0


def _mended_zooms(fields: nib.Nifti1Header, name: str, warnings: list[str]) -> Array:
    """Return the voxel sizes, (3,), in the header's unit, 0 where invalid; also set them in `fields`, with 1 for 0."""
    stated = np.array(fields["pixdim"][1:4], dtype=np.float64)
    zooms = np.where(np.isfinite(stated), np.abs(stated), 0)
    if np.any(zooms != stated) or not np.all(zooms):
        placed = int(fields["sform_code"]) in FORM_CODES[1:]
        if not placed and not np.all(np.isfinite(stated)):
            _refuse(name, "a voxel size in its header is not a number, and there is no sform")
        by = "those of the sform are used" if placed else "their absolute values, or 1 mm for 0, are used"
        warnings.append(f"the header's voxel sizes are {' x '.join(f'{size:g}' for size in stated)}; {by}")
    fields["pixdim"][1:4] = np.where(zooms > 0, zooms, 1)
    return zooms


def _form_code(fields: nib.Nifti1Header, form: str, warnings: list[str]) -> int:
    code = int(fields[form])
    if code in FORM_CODES:
        return code
    warnings.append(f"{form} is {code}, which NIfTI does not define; that form is not used")
    return 0


def _affine(
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
            _refuse(name, "the quaternion of its qform is longer than 1 or not a number, and there is no sform")
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


def _step(fields: nib.Nifti1Header, shape: tuple[int, ...], unit: str, warnings: list[str]) -> tuple[float, str]:
    stated = float(fields["pixdim"][4])
    if math.isfinite(stated) and stated >= 0:
        return stated, unit
    if len(shape) > 3 and shape[3] > 1:
        warnings.append(
            f"the header's time step is {stated:g}; {abs(stated) if math.isfinite(stated) else 'none'} is used"
        )
    return (abs(stated), unit) if math.isfinite(stated) else (0.0, "unknown")
