"""Volumes and label maps: reading and checking of files written by scanners and other tools."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import cast

import numpy as np

from ..errors import InputError, explained, require_single
from ..geometry.grid import Grid
from ..host.files.hashes import sha256_of_file
from ..host.machine import require_memory
from ..types import Array, Record, Shape
from .formats.headers import Header
from .formats.image_file import SUFFIXES, open_image, read_header
from .formats.nifti_bytes import CODES_NOT_KNOWN
from .formats.remarks import Remarks
from .kinds import looks_like_labels

WHOLE = 1e-3  # how far a label may be from a whole number: scl_slope is stored in single precision
LABEL_TYPES = (np.uint8, np.int16, np.uint16, np.int32)
NOT_SCALAR = {  # by NIfTI intent: images whose values would have to be reoriented with the anatomy
    **dict.fromkeys(
        (1004, 1005),
        "tensors, which have to be reoriented with the anatomy; expected a scalar image: register one of the tensors' "
        "scalar maps, and warp the tensors with antsApplyTransforms -e 2",
    ),
    **dict.fromkeys(
        (1006, 1007, 2006),
        "vectors, expected a scalar image; give a displacement field with -t; directions would have to be reoriented",
    ),
}
TILE = 16  # voxels along K of one tile when the memory order changes: a cache line of the processor


@dataclass(frozen=True, eq=False, kw_only=True)
class Source:
    """The facts about a volume besides its voxels.

    Attributes:
        grid: shape and voxel -> RAS mm.
        path, sha256: the file and the hash of its bytes; None if it was not read from a file.
        codes: NIfTI (sform, qform) codes to write back with.
        warnings: warnings about the header, one line each.
        zooms: the header's voxel sizes, mm, where they differ from its sform's, which FSL ignores; None: they agree.
    """

    grid: Grid
    path: Path | None = None
    sha256: str | None = None
    codes: tuple[int, int] = CODES_NOT_KNOWN
    warnings: tuple[str, ...] = ()
    zooms: tuple[float, float, float] | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Volume(Source):
    """Voxels and their grid.

    Attributes:
        data: (I, J, K), C-contiguous; float32 from `read_volume`, an integer type from `read_labels`. A series, from
            `read_series`, is (I, J, K, N), first axis fastest.
        step: of a series, from one volume to the next and its unit, such as (2.5, "sec").
        remarks: further header fields about the values; None: none.
    """

    data: Array
    step: tuple[float, str] | None = None
    remarks: Remarks | None = None

    @property
    def source(self) -> Source:
        """The facts without the voxels, which are large."""
        return Source(**{field.name: getattr(self, field.name) for field in fields(Source)})


def scan_name(path: str | PathLike[str] | None) -> str:
    """Return a file's name without its type's suffix; "scan" if there is no file."""
    name = Path(path).name if path else "scan"
    suffix = next((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), "")
    return name[: len(name) - len(suffix)]


def read_volume(path: str | PathLike[str], argument: str = "image", nan: float | None = None) -> Volume:
    """Read a scalar volume, scaled as its header says, as float32.

    NIfTI (.nii, .nii.gz) and MGH (.mgh, .mgz); any integer or float type, orientation and obliqueness. Axes of size 1
    after the third are dropped.

    Args:
        path: the file.
        argument: what to call it in messages, such as ``--fixed``.
        nan: the number that replaces NaN; None: NaN is refused.

    Raises:
        InputError: missing, unreadable or truncated file; other dimensions, complex or colour voxels; NaN or Inf;
            all voxels equal; an affine that is singular or not finite.
    """
    volume = _read(path, argument, partial(_scaled, nan=nan))
    if volume.data.min() == volume.data.max():
        value = volume.data.flat[0]
        raise InputError(f"{argument}: every voxel of {path} is {value:g}, expected an image with contrast")
    if looks_like_labels(volume.data):
        warning = f"{Path(path).name}: looks like a label map; expected a scan's intensities"
        return replace(volume, warnings=(*volume.warnings, warning))
    return volume


def read_labels(path: str | PathLike[str], argument: str = "labels", lowest: int | None = None) -> Volume:
    """Read a label map in the smallest of uint8, int16, uint16 and int32 that holds it.

    Args and errors as for `read_volume`; float files pass if their values are whole, a constant map is allowed, and
    values below `lowest` are refused.
    """
    volume = _read(path, argument, _whole)
    if lowest is not None and (found := volume.data.min()) < lowest:
        raise InputError(f"{argument}: {path} holds {found}, expected {lowest} and above")
    return volume


def read_series(path: str | PathLike[str], argument: str, nan: float | None = None) -> Volume:
    """Read a scalar volume, or a 4-D series of them, scaled as its header says, as float32.

    Args and errors as for `read_volume`, but an image without contrast is allowed.
    """
    return _read(path, argument, partial(_scaled, nan=nan), series=True)


def read_source(path: str | PathLike[str], argument: str) -> Source:
    """Read the grid and the other facts of a volume or series, without the voxels.

    Raises:
        InputError: as for `read_volume`, as far as the header shows.
    """
    path = Path(path)
    header = read_header(path, argument)
    name = f"{argument}: {path}"
    grid = grid_of(header, name, _checked_shape(header, name, series=True)[:3])
    with explained(argument):
        return Source(grid=grid, path=path, sha256=sha256_of_file(path), **_facts(header, path))


def _check_memory(header: Header, name: str) -> None:
    """Refuse an image that, going by its header, does not fit into memory as stored and as float32 together."""
    count = math.prod(header.shape)
    subject = f"{name}: an image of {count / 1e6:.3g} million voxels"
    require_memory(header.bytes + 4 * count, subject, "give a coarser or a smaller copy")


def grid_of(header: Header, name: str, shape: tuple[int, ...] | None = None) -> Grid:
    """Return the grid of a header's image.

    Args:
        header: of an image, a field or a series.
        name: argument and file, for messages.
        shape: the grid's shape; None: the header's first three sizes.

    Raises:
        InputError: the grid is invalid or implausible, see `Grid`.
    """
    try:
        return Grid(cast(Shape, header.shape[:3] if shape is None else shape), header.affine)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None


def _read(
    path: str | PathLike[str], argument: str, convert: Callable[[Header, Array, str], Array], series: bool = False
) -> Volume:
    path, name = Path(path), f"{argument}: {path}"
    with open_image(path, argument) as image:
        shape = _checked_shape(image.header, name, series)
        grid = grid_of(image.header, name, shape[:3])
        _check_memory(image.header, name)
        stored = image.voxels().reshape(shape, order="F")
    with np.errstate(invalid="ignore", over="ignore"):
        data = convert(image.header, stored, name)
    step = image.header.step if len(shape) == 4 else None
    known = {"path": path, "sha256": image.sha256, "remarks": image.header.remarks, **_facts(image.header, path)}
    return Volume(data=data, step=step, grid=grid, **known)


def rescaled(header: Header, stored: Array, dtype: type) -> Array:
    """Apply slope and intercept to stored values (..., N) in double precision, first axis fastest.

    The result is a view of `stored` if there is nothing to compute or convert.
    """
    with np.errstate(invalid="ignore", over="ignore"):  # callers refuse values that become infinite
        if header.unscaled:
            return np.asfortranarray(stored, dtype)
        result: Array = np.empty(stored.shape, dtype, order="F")
        for n in range(stored.shape[-1]):
            result[..., n] = np.multiply(stored[..., n], header.slope, dtype=np.float64) + header.inter
        return result


def _facts(header: Header, path: Path) -> Record:
    """Return the facts of a header besides shape and affine, as arguments of `Source`."""
    warnings = tuple(f"{path.name}: {line}" for line in header.warnings)
    return {"codes": header.codes, "warnings": warnings, "zooms": header.other_zooms}


def _checked_shape(header: Header, name: str, series: bool = False) -> tuple[int, ...]:
    """Check type and axes; return (I, J, K), or (I, J, K, N) for a series if one is allowed."""
    shape, dtype = header.shape, header.dtype
    if dtype.fields:
        raise InputError(f"{name} holds colour voxels ({dtype}), expected one number per voxel")
    if dtype.kind == "c":
        raise InputError(f"{name} holds complex voxels, expected real ones; take the magnitude first")
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise InputError(f"{name} holds voxels of type {dtype}, expected integers or floats of 64 bits at most")
    if any(size > 1 for size in shape[3:]) and header.intent in NOT_SCALAR:
        raise InputError(f"{name} holds {NOT_SCALAR[header.intent]}")
    if any(size > 1 for size in shape[4 if series else 3 :]):
        volumes, wanted = int(np.prod(shape[3:])), "one volume or a 4-D series" if series else "one"
        raise InputError(f"{name} holds {volumes} volumes {shape}, expected {wanted}; extract one first")
    if len(shape) < 3 or min(shape[:3]) < 2:
        raise InputError(f"{name} is a slice of shape {shape}, expected a volume of two or more slices")
    return shape[:4] if series and shape[3:4] > (1,) else shape[:3]


def _scaled(header: Header, stored: Array, name: str, nan: float | None = None) -> Array:
    if stored.ndim == 4:
        data = rescaled(header, stored, np.float32)
    else:
        data = stored if header.unscaled else rescaled(header, stored, np.float32)
        data = _last_axis_fastest(data, np.float32)
    if nan is not None:
        require_single(nan, "--nan")
        data[np.isnan(data)] = nan  # `data` is a copy if the stored values are floats
    if not np.isfinite(data.sum(dtype=np.float64)):
        _refuse_non_finite(data, name)
    return data


def _whole(header: Header, stored: Array, name: str) -> Array:
    data = stored if header.unscaled else rescaled(header, stored, np.float64)
    if data.dtype.kind == "f":
        data = _whole_numbers(data, name)
    low, high = data.min(), data.max()
    for dtype in LABEL_TYPES:
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return _last_axis_fastest(data, dtype)
    raise InputError(f"{name} has labels from {low} to {high}, expected values that fit 32 bits")


def _whole_numbers(data: Array, name: str) -> Array:
    """Convert floats to int32, or to integer-valued floats if some do not fit."""
    whole = data.astype(np.int32)
    if np.array_equal(whole, data):
        return whole
    _refuse_non_finite(data, name)
    whole = np.rint(data)
    if (count := int(np.count_nonzero(np.abs(data - whole) > WHOLE))) > 0:
        raise InputError(f"{name} has {count} voxels that are not whole numbers, expected a label map")
    return whole


def _last_axis_fastest(data: Array, dtype: type) -> Array:
    """Return a C-contiguous copy in another type; tile by tile, because source and copy have opposite memory orders."""
    result: Array = np.empty(data.shape, dtype)
    for start in range(0, data.shape[2], TILE):
        result[:, :, start : start + TILE] = data[:, :, start : start + TILE]
    return result


def _refuse_non_finite(data: Array, name: str) -> None:
    missing, count = int(np.count_nonzero(np.isnan(data))), data.size - int(np.count_nonzero(np.isfinite(data)))
    if count:
        found, taken = ("NaN or infinite", "") if count > missing else ("NaN", " (register, prepare, apply: --nan 0)")
        raise InputError(f"{name} has {count} voxels that are {found}; set them to single-precision numbers{taken}")
