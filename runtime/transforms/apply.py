"""Resampling of images, label maps, series and points from a scan's space into a reference's, interpolated once."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import InputError, require_single
from ..geometry.grid import Grid
from ..geometry.transform import Chain, Transform
from ..host.files.output_path import writing
from ..host.machine import require_memory
from ..host.progress import Progress, silent
from ..images.formats.image_file import read_header
from ..images.formats.nifti_writer import write_volume
from ..images.kinds import looks_like_directions, looks_like_labels
from ..images.label_position import label_position_warnings
from ..images.volume import Source, Volume, read_labels, read_series, read_source
from ..types import Array
from .chain import ReadRoute, Route, read_route
from .motion import read_motion
from .operations import with_warnings
from .points.tables import read_points

IMAGE_ORDERS, LABEL_ORDERS = ("linear", "cubic", "nearest"), ("nearest", "smooth")
PROBABILITY_ORDERS = ("linear", "nearest")
MOST_PROBABLE = (1.0, 100.0)  # largest sums of probabilities, as fractions and as percent
EXACT = 1 << 24  # smaller integers are exact in float32; this one may be the next one, rounded
BYTES, FIELD_BYTES = 4, 24  # per voxel: of an image; of a displacement and the temporary arrays it is computed from
INVERTED_MM = 0.01  # largest error of an inverted point, mapped forward through the chain again


@dataclass(frozen=True)
class Applied:
    """The outcome of an `apply`.

    Attributes:
        summary: text to print.
        failed: one line about the part that could not be done; None if there is none.
    """

    summary: str
    failed: str | None = None


def apply_image(
    image: Path,
    route: Route,
    output: Path,
    order: str = "linear",
    outside: float = 0,
    progress: Progress = silent,
    nan: float | None = None,
    motion: str | None = None,
) -> Applied:
    """Resample an image, or every volume of a 4-D series, onto the route's reference.

    The result is float32, or the image's own integer type where nothing is interpolated. The header's description of
    the values (description, display range, time offset, intent) is kept.

    Args:
        image: in the scan's space, on any grid.
        route: from the reference to the scan.
        output: .nii or .nii.gz.
        order: one of `IMAGE_ORDERS`.
        outside: value outside the image.
        progress: called with the name of each stage as it begins.
        nan: number that replaces NaN; None: NaN is refused.
        motion: for a series, a folder or glob with one transform for each volume, in the order of their names, from
            where the route ends into that volume. Each is composed with the route, so that voxels are interpolated
            once.

    Raises:
        InputError: invalid input, in one line.
    """
    _check_order(order, IMAGE_ORDERS, "--image")
    if math.isfinite(outside):  # NaN and infinity mark what lies outside
        require_single(outside, "--outside")
    progress("read")
    volume = read_series(image, "--image", nan)
    further = read_motion(motion, volume, route.convention) if motion is not None else ()
    return _apply_volume(volume, "--image", route, output, order, outside, progress, further)


def apply_labels(
    labels: Path, route: Route, output: Path, order: str | None = None, progress: Progress = silent
) -> Applied:
    """Resample a label map, 0 outside it, and write it in the smallest integer type that holds it.

    Each volume of a 4-D map holds one label's probability, at most 1 (or 100) in sum; it is interpolated as an image,
    which keeps the sums.

    Arguments and errors are those of `apply_image`; `order` is one of `LABEL_ORDERS` (None: "nearest") or, for a 4-D
    map, of `PROBABILITY_ORDERS` (None: "linear").
    """
    if math.prod(read_header(labels, "--labels").shape[3:]) > 1:
        _check_order(order or "linear", PROBABILITY_ORDERS, "--labels of 4 dimensions")
        progress("read")
        volume = read_series(labels, "--labels")
        _check_probabilities(volume)
        return _apply_volume(volume, "--labels", route, output, order or "linear", 0, progress)
    order = order or "nearest"
    _check_order(order, LABEL_ORDERS, "--labels")
    progress("read")
    return _apply_volume(read_labels(labels, "--labels"), "--labels", route, output, order, 0, progress)


def apply_points(
    points: Path,
    route: Route,
    output: Path,
    frame: str | None = None,
    scan: Path | None = None,
    progress: Progress = silent,
) -> Applied:
    """Map points of the scan's space into the reference's, through the inverse of the route.

    The inverse is solved for each point. Points without an inverse are left without coordinates.

    Args:
        points: CSV, .fcsv or .mrk.json, see `runtime.transforms.points.tables.read_points`.
        route: from the reference to the scan, as for images.
        output: same format, columns and frame as `points`; voxel coordinates are those of the reference's grid.
        frame: frame of the coordinates, see `read_points`.
        scan: image on the grid of voxel coordinates; None: the grid on which the last file ends.
        progress: called with the name of each stage as it begins.

    Raises:
        InputError: invalid input, in one line.
    """
    progress("read")
    source = None if scan is None else read_source(scan, "--scan")
    table = read_points(points, frame)
    read = read_route(route, source)
    target = read.require_target().grid if table.frame == "voxels" else None
    positions = table.physical(_voxel_grid(source, read) if table.frame == "voxels" else None)
    progress("solve")
    moved, residuals = read.map_back(positions)
    found = residuals <= INVERTED_MM
    progress("write")
    with writing(output):
        table.moved(np.where(found[:, None], moved, np.nan), target).write(output)
    outside = int(np.count_nonzero(read.outside(moved[found])))
    summary, failed = _points_summary(output, table.frame, residuals, found, outside)
    return Applied(with_warnings(summary, read.warnings), failed)


def _apply_volume(
    volume: Volume,
    argument: str,
    route: Route,
    output: Path,
    order: str,
    outside: float,
    progress: Progress,
    motion: Sequence[Transform] = (),
) -> Applied:
    # The hash of a label map does not identify the scan it belongs to; its grid does.
    scan = volume.source if argument == "--image" else Source(grid=volume.grid)
    read = read_route(route, scan)
    target = read.require_target()
    warnings = [*volume.warnings, *read.warnings, *_input_warnings(volume, argument, read, order)]
    _check_memory(target.grid, 1 if volume.step is None else volume.data.shape[3])
    progress("resample")
    data = _resample(volume, read, target.grid, order, outside, motion)
    if argument == "--image":
        data = _as_stored(volume, data, read.transform.matrix, target.grid, order)
    progress("write")
    with writing(output):
        write_volume(output, data, target.grid, target.codes, step=volume.step, remarks=volume.remarks)
    many = "" if data.ndim == 3 else f", {data.shape[3]} volumes"
    size = " x ".join(map(str, target.grid.shape))
    summary = f"wrote {output}: {size} voxels{many}, {data.dtype}, {order}"
    if data.min() == data.max() and volume.data.min() < volume.data.max():
        summary += f"\nwarning: no part of {volume.path} falls on this grid; check the transform and the reference"
    return Applied(with_warnings(summary, warnings))


def _input_warnings(volume: Volume, argument: str, read: ReadRoute, order: str) -> Iterator[str]:
    """Yield warnings about the input; InputError for labels that lie apart from the grid on which the route ends."""
    name = f"{argument}: {volume.path}"
    if argument == "--labels" and read.end is not None:
        yield from label_position_warnings(volume.grid, read.end.grid, name, "the transform's moving scan")
    if argument == "--image" and order != "nearest" and looks_like_labels(volume.data):
        yield f"{name} looks like a label map, whose values {order} interpolation mixes; give it as --labels"
    if argument == "--image" and looks_like_directions(volume.data):
        yield f"{name} looks like a map of directions, which must be reoriented with the anatomy but are not"
    stored = volume.remarks.stored if volume.remarks else None
    if argument == "--image" and stored is not None and max(volume.data.max(), -volume.data.min()) >= EXACT:
        yield f"{name} holds integers beyond {EXACT}, which single precision rounds; give label maps as --labels"


def _as_stored(volume: Volume, data: Array, matrix: Array | None, target: Grid, order: str) -> Array:
    """Convert the result to the image's stored type, if that is an integer type and nothing was interpolated."""
    from ..images.resampling.resample import copies

    stored = volume.remarks.stored if volume.remarks else None
    whole = order == "nearest" or (matrix is not None and copies(volume.grid, target, matrix))
    if stored is None or not whole or stored.itemsize > BYTES:
        return data
    low, high = data.min(), data.max()
    limits = np.iinfo(stored)
    exact = low > -EXACT and high < EXACT and (low, high) == (round(low), round(high))
    cast = data.astype(stored) if exact and limits.min <= low and high <= limits.max else data
    return cast if np.array_equal(cast, data) else data


def _resample(
    volume: Volume, read: ReadRoute, target: Grid, order: str, outside: float, motion: Sequence[Transform] = ()
) -> Array:
    """Resample all volumes through one map, a matrix if it is affine, with each volume's own motion if given."""
    from ..images.resampling import resample

    if motion:
        result = np.empty((*target.shape, len(motion)), np.float32, order="F")
        for n, further in enumerate(motion):
            displacement = Chain((read.transform, further)).displacement(target)
            arguments = (volume.data[..., n], volume.grid, displacement, target, order, outside)
            result[..., n] = resample.resample_through(*arguments)
        return result
    if (matrix := read.transform.matrix) is None:
        through = resample.resample_through if volume.data.ndim == 3 else resample.resample_series
        return through(volume.data, volume.grid, read.displacement(), target, order, outside)
    if volume.data.ndim == 3:
        return resample.resample(volume.data, volume.grid, target, matrix, order, outside)
    result = np.empty((*target.shape, volume.data.shape[3]), np.float32, order="F")
    for n in range(volume.data.shape[3]):
        result[..., n] = resample.resample(volume.data[..., n], volume.grid, target, matrix, order, outside)
    return result


def _check_memory(target: Grid, volumes: int) -> None:
    """Refuse a result that does not fit into memory: a series' grid is often much coarser than the reference's."""
    size = " x ".join(map(str, target.shape))
    needed = math.prod(target.shape) * (volumes * BYTES + FIELD_BYTES)
    require_memory(needed, f"--reference: a result of {volumes} x {size} voxels", "give one of a coarser grid")


def _voxel_grid(source: Source | None, read: ReadRoute) -> Grid:
    """Return the grid of the voxel coordinates of the points to be moved."""
    if source is not None:
        return source.grid
    if read.end is None:
        raise InputError("--scan: is needed for voxels, since no -t states their grid; give the points' scan")
    return read.end.grid


def _check_probabilities(volume: Volume) -> None:
    low, most = volume.data.min(), float(volume.data.sum(axis=-1, dtype=np.float32).max())
    if low < 0 or all(most > limit * 1.01 for limit in MOST_PROBABLE):
        raise InputError(
            f"--labels: {volume.path} has {volume.data.shape[3]} volumes with values from {low:g} and sums up to "
            f"{most:g}, expected probabilities, which add up to 1 (or 100) at most; give one 3-D label map, or --image"
        )


def _check_order(order: str, allowed: tuple[str, ...], argument: str) -> None:
    if order not in allowed:
        raise InputError(f"--interpolation: got {order}, expected {' or '.join(allowed)} for {argument}")


def _points_summary(output: Path, frame: str, residuals: Array, found: Array, outside: int) -> tuple[str, str | None]:
    count = f"{len(residuals)} point{'s' if len(residuals) != 1 else ''}"
    worst = residuals[found].max(initial=0)
    missed = f"; mapped back, they agree within {worst:.1g} mm" if worst else ""
    summary = f"wrote {output}: {count}, {frame}{missed}"
    if outside:
        summary += f"\nwarning: {outside} of them lie outside the field and were moved by its border value"
    if found.all():
        return summary, None
    lines = ", ".join(str(number) for number in np.flatnonzero(~found)[:10] + 1)
    more = " ..." if np.count_nonzero(~found) > 10 else ""
    return summary, (
        f"{np.count_nonzero(~found)} of {count} could not be inverted (the transform folds there, or they lie beyond "
        f"it) and were left empty in {output}: number {lines}{more}"
    )
