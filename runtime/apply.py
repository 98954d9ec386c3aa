"""Images, label maps, series and points carried from a scan's space into a reference's, each interpolated once."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtime.geometry.errors import InputError
from runtime.geometry.grid import Grid
from runtime.geometry.image_kinds import looks_like_directions, looks_like_labels
from runtime.geometry.label_place import label_place_doubts
from runtime.geometry.volume import Source, Volume, read_labels, read_series, read_source, write_volume
from runtime.machine import available_bytes
from runtime.output_file import writing
from runtime.points_file import read_points
from runtime.stages import Progress, silent
from runtime.transform_chain import ReadRoute, Route, read_route

Array = np.ndarray
IMAGE_ORDERS, LABEL_ORDERS = ("linear", "cubic", "nearest"), ("nearest", "smooth")
BYTES, FIELD_BYTES = 4, 24  # for a voxel: of an image, of a displacement and what it is made of
INVERTED_MM = 0.01  # by how much a chain may miss a point from the place found for it


@dataclass(frozen=True)
class Applied:
    """What was done.

    Attributes:
        summary: for people.
        failed: what part of it could not be done, one line; None if all could.
    """

    summary: str
    failed: str | None = None


def apply_image(
    image: Path, route: Route, output: Path, order: str = "linear", outside: float = 0, progress: Progress = silent
) -> Applied:
    """Resamples an image, or every volume of a 4-D series, onto the route's reference; writes float32.

    Args:
        image: in the scan's space, on any grid.
        route: from the reference to the scan.
        output: .nii or .nii.gz.
        order: one of `IMAGE_ORDERS`.
        outside: value of what lies outside the image.
        progress: told the name of each stage as it begins.

    Raises:
        InputError: in one line.
    """
    _check_order(order, IMAGE_ORDERS, "--image")
    progress("read")
    volume = read_series(image, "--image")
    return _apply_volume(volume, "--image", route, output, order, outside, progress)


def apply_labels(
    labels: Path, route: Route, output: Path, order: str = "nearest", progress: Progress = silent
) -> Applied:
    """Carries a label map along, 0 outside it; writes the smallest integer type that holds it.

    Args and errors as for `apply_image`; `order` is one of `LABEL_ORDERS`.
    """
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
    """Carries points of the scan's space into the reference's, through the inverse of the route.

    The inverse is solved for each point. Points that have none are left without coordinates.

    Args:
        points: CSV, see `runtime.points_file.read_points`.
        route: from the reference to the scan, as for images.
        output: .csv, with the columns of `points`, in the same frame; voxels are those of the reference's grid.
        frame: of the coordinates, see `read_points`.
        scan: image on the grid whose voxels are meant; None: where the last file ends.
        progress: told the name of each stage as it begins.

    Raises:
        InputError: in one line.
    """
    progress("read")
    source = None if scan is None else read_source(scan, "--scan")
    table = read_points(points, frame)
    read = read_route(route, source)
    target = read.require_target().grid if table.frame == "voxels" else None
    places = table.physical(_voxel_grid(source, read) if table.frame == "voxels" else None)
    progress("solve")
    moved, residuals = read.pulled(places)
    found = residuals <= INVERTED_MM
    progress("write")
    with writing(output):
        table.moved(np.where(found[:, None], moved, np.nan), target).write(output)
    return Applied(*_told_of_points(output, table.frame, residuals, found))


def _apply_volume(
    volume: Volume, argument: str, route: Route, output: Path, order: str, outside: float, progress: Progress
) -> Applied:
    # The hash of a label map tells nothing of the scan it belongs to; its grid does.
    scan = volume.source if argument == "--image" else Source(grid=volume.grid)
    read = read_route(route, scan)
    target = read.require_target()
    doubts = [*volume.warnings, *_doubts(volume, argument, read, order)]
    _check_memory(target.grid, 1 if volume.step is None else volume.data.shape[3])
    progress("resample")
    data = _resampled(volume, read, target.grid, order, outside)
    progress("write")
    with writing(output):
        write_volume(output, data, target.grid, target.codes, step=volume.step)
    many = "" if data.ndim == 3 else f", {data.shape[3]} volumes"
    size = " x ".join(map(str, target.grid.shape))
    told = f"wrote {output}: {size} voxels{many}, {data.dtype}, {order}"
    if data.min() == data.max() and volume.data.min() < volume.data.max():
        told += f"\nwarning: nothing of {volume.path} falls on this grid; is this the right transform, and reference?"
    return Applied("\n".join([told, *(f"warning: {doubt}" for doubt in doubts)]))


def _doubts(volume: Volume, argument: str, read: ReadRoute, order: str) -> Iterator[str]:
    """What may be wrong with what is carried; InputError for labels that lie apart from where the transforms end."""
    name = f"{argument}: {volume.path}"
    if argument == "--labels" and read.end is not None:
        yield from label_place_doubts(volume.grid, read.end.grid, name, "the transform's moving scan")
    if argument == "--image" and order != "nearest" and looks_like_labels(volume.data):
        yield f"{name} looks like a label map, whose values {order} interpolation mixes; give it as --labels"
    if argument == "--image" and looks_like_directions(volume.data):
        yield f"{name} looks like a map of directions, which would have to turn with the head and do not here"


def _resampled(volume: Volume, read: ReadRoute, target: Grid, order: str, outside: float) -> Array:
    """All volumes through one map: a matrix where that is all there is, else one displacement."""
    from runtime import resample

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
    """Refuses a result that would not fit: a series' grid is often much coarser than the reference's."""
    needed, available = math.prod(target.shape) * (volumes * BYTES + FIELD_BYTES), available_bytes()
    if available is not None and needed > available:
        raise InputError(
            f"--reference: {volumes} volume(s) of {' x '.join(map(str, target.shape))} voxels need about "
            f"{needed / 2**30:.1f} GiB of memory, {available / 2**30:.1f} GiB are available; give one of a coarser grid"
        )


def _voxel_grid(source: Source | None, read: ReadRoute) -> Grid:
    """The grid that voxels of points to be moved are meant on."""
    if source is not None:
        return source.grid
    if read.end is None:
        raise InputError("--scan: is needed for voxels, since no -t says on which grid they are; give the points' scan")
    return read.end.grid


def _check_order(order: str, allowed: tuple[str, ...], argument: str) -> None:
    if order not in allowed:
        raise InputError(f"--interpolation: got {order}, expected {' or '.join(allowed)} for {argument}")


def _told_of_points(output: Path, frame: str, residuals: Array, found: Array) -> tuple[str, str | None]:
    count = f"{len(residuals)} point{'s' if len(residuals) != 1 else ''}"
    worst = residuals[found].max(initial=0)
    missed = f"; the chain leads back to them within {worst:.1g} mm" if worst else ""
    summary = f"wrote {output}: {count}, {frame}{missed}"
    if found.all():
        return summary, None
    lines = ", ".join(str(number) for number in np.flatnonzero(~found)[:10] + 1)
    more = " ..." if np.count_nonzero(~found) > 10 else ""
    return summary, (
        f"{np.count_nonzero(~found)} of {count} could not be inverted (the transform folds there, or they lie beyond "
        f"it) and were left empty in {output}: number {lines}{more}"
    )
