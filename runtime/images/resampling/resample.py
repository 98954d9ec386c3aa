"""Resampling between grids: a single interpolation through an affine map or a displacement field, in compiled code.

`runtime.geometry.flow.sample` is the reference for the trilinear kernels. Import this module only where it is needed:
it imports numba, and the first call compiles (the result is cached on disk).
"""

import numpy as np

from ...errors import InputError
from ...geometry.grid import Grid
from ...geometry.smoothing import gaussian_weights
from ...geometry.transform import slabs
from ...types import Array
from . import kernels

ORDERS = ("linear", "nearest", "cubic", "smooth")
OF_LABELS = ("nearest", "smooth")
WIDE = ("cubic", "smooth")
COARSER = 1.5  # above this ratio of target to source spacing, the source is smoothed before it is sampled
SNAP = 1e-4  # voxel; maps this close to whole voxels copy values instead of interpolating
FWHM = 2.3548  # full width at half maximum of a Gaussian, in standard deviations


def resample(
    image: Array,
    source: Grid,
    target: Grid,
    physical: Array | None = None,
    order: str = "linear",
    outside: float = 0,
) -> Array:
    """Resample an image on another grid: value(x) = image at the source voxel of ``physical @ x``, x in RAS mm.

    Corners outside the image count as `outside`. For "linear" and "cubic", axes of the source that the target samples
    more than 1.5 times coarser are smoothed first. If the map takes voxels to voxels, values are copied exactly.

    Args:
        image: (I, J, K) on `source`.
        source, target: grids in RAS mm.
        physical: (4, 4) RAS mm, target -> source (fixed -> moving); identity if None.
        order: for images "linear" or "cubic" (B-spline), whose result is float32; for label maps "nearest" or "smooth"
            (Gaussian voting), whose result has the image's type. "cubic" and "smooth" are described in
            `runtime.images.resampling.interpolation`.
        outside: value outside the image.

    Returns:
        (I, J, K) on `target`.

    Raises:
        InputError: if the image's shape is not the source grid's, the order is unknown, or "smooth" is requested for
            an image that is not of integers.
    """
    _check(image, source, order)
    matrix = _snapped(target.voxel_map(source, physical), target.shape)
    if _permutes(matrix):
        return _copied(image, matrix, np.full(target.shape, outside, _type(image, order)))
    if order in WIDE:
        return _wide(image, matrix, order, outside, target.shape)
    values = _samples(image, matrix, order)
    result = np.empty(target.shape, values.dtype)
    kernels.sample_affine(values, matrix, values.dtype.type(outside), order == "nearest", result)
    return result.astype(_type(image, order), copy=False)


def copies(source: Grid, target: Grid, physical: Array | None = None) -> bool:
    """Return whether `resample` copies voxels for these grids and this map, so that nothing is interpolated."""
    return _permutes(_snapped(target.voxel_map(source, physical), target.shape))


def resample_through(
    image: Array,
    source: Grid,
    displacement: Array,
    target: Grid,
    order: str = "linear",
    outside: float = 0,
) -> Array:
    """Resample an image through a displacement field: value(x) = image at ``x + displacement(x)``, interpolated once.

    Args:
        image: (I, J, K) on `source`.
        source, target: grids in RAS mm.
        displacement: (I, J, K, 3) RAS mm on `target`; where it is not finite the result is `outside`. Fastest in the
            memory order of `Transform.displacement`.
        order, outside and errors: as in `resample`.

    Returns:
        (I, J, K) on `target`, as in `resample` but in the memory order of files: first axis fastest.
    """
    _check(image, source, order)
    if displacement.shape != (*target.shape, 3):
        raise InputError(f"displacement: got shape {displacement.shape}, expected {(*target.shape, 3)}")
    matrix = target.voxel_map(source)
    linear = np.linalg.inv(source.affine)[:3, :3]
    planes = np.ascontiguousarray(displacement.T, dtype=np.float32)
    if order in WIDE:
        return _wide(image, matrix, order, outside, target.shape, linear, planes)
    values = _samples(image, matrix, order)
    result = np.empty(target.shape[::-1], values.dtype)
    nearest = order == "nearest"
    kernels.sample_field(values, matrix, linear, planes, values.dtype.type(outside), nearest, result)
    return result.T.astype(_type(image, order), copy=False)


def resample_series(
    series: Array,
    source: Grid,
    displacement: Array,
    target: Grid,
    order: str = "linear",
    outside: float = 0,
) -> Array:
    """Resample the volumes of a series, (I, J, K, N), all through the same displacement: see `resample_through`.

    Returns:
        (I, J, K, N) on `target`, first axis fastest.
    """
    if series.ndim != 4 or series.shape[3] < 1:
        raise InputError(f"series: got shape {series.shape}, expected (I, J, K, N) with one volume or more")
    result = np.empty((*target.shape, series.shape[3]), _type(series, order), order="F")
    for number in range(series.shape[3]):
        result[..., number] = resample_through(series[..., number], source, displacement, target, order, outside)
    return result


def smooth(image: Array, sigma: tuple[float, float, float]) -> Array:
    """Smooth with a Gaussian; beyond the border the nearest value is repeated.

    Args:
        image: (I, J, K).
        sigma: standard deviation along each axis, voxels; 0 leaves the axis as it is.

    Returns:
        (I, J, K) float32.
    """
    image = np.ascontiguousarray(image, dtype=np.float32)
    for axis, width in enumerate(sigma):
        if width > 0 and image.shape[axis] > 1:
            outer, size = int(np.prod(image.shape[:axis])), image.shape[axis]
            rows = np.empty((outer * size, image.size // (outer * size)), np.float32)
            kernels.smooth_middle(image.reshape(outer, size, -1), gaussian_weights(width), rows)
            image = rows.reshape(image.shape)
    return image


def _check(image: Array, source: Grid, order: str) -> None:
    if order not in ORDERS:
        raise InputError(f"order: got {order!r}, expected one of {', '.join(ORDERS)}")
    if image.shape != source.shape:
        raise InputError(f"image: got shape {image.shape}, expected {source.shape}, its grid's")
    if order == "smooth" and image.dtype.kind not in "iu":
        raise InputError(f"image: holds {image.dtype}, expected the integers of a label map for order 'smooth'")


def _snapped(matrix: Array, shape: tuple[int, int, int]) -> Array:
    """Round the map to integers if that moves no voxel of `shape` by more than `SNAP`."""
    whole = np.rint(matrix)
    reach = np.abs(matrix - whole)[:3] @ np.array([*shape, 1.0])
    return whole if reach.max() < SNAP else matrix


def _permutes(matrix: Array) -> bool:
    """Return whether the map takes voxels to voxels and only permutes, reverses and shifts the axes."""
    linear = np.abs(matrix[:3, :3])
    exact = bool((matrix == np.rint(matrix)).all())
    return exact and bool((linear.sum(axis=0) == 1).all() and (linear.sum(axis=1) == 1).all())


def _copied(image: Array, matrix: Array, result: Array) -> Array:
    """Copy voxels into `result`, which keeps its values where the image has none."""
    axes, signs = np.abs(matrix[:3, :3]).argmax(axis=0), matrix[:3, :3].sum(axis=0).astype(int)
    into, of = [], [slice(None)] * 3
    for axis, (old, sign) in enumerate(zip(axes, signs, strict=True)):
        shift = int(matrix[old, 3])  # the image's voxel at the result's voxel 0
        ends = sorted((-sign * shift, sign * (image.shape[old] - 1 - shift)))
        first, last = max(ends[0], 0), min(ends[1], result.shape[axis] - 1)
        if first > last:
            return result
        into.append(slice(first, last + 1))
        low, high = sorted((shift + sign * first, shift + sign * last))
        of[old] = slice(low, high + 1)
    moved = image[tuple(of)].transpose(tuple(axes))[tuple(slice(None, None, sign) for sign in signs)]
    result[tuple(into)] = moved
    return result


def _type(image: Array, order: str) -> np.dtype:
    """Return the type of a result: the image's own for labels, float32 otherwise."""
    return image.dtype if order in OF_LABELS else np.dtype(np.float32)


def _samples(image: Array, matrix: Array, order: str) -> Array:
    """Return the array to sample, contiguous: an image, smoothed if necessary, or labels as int32 (floats: float32)."""
    if order == "linear":
        return _antialiased(image, matrix)
    return np.ascontiguousarray(image, dtype=np.float32 if image.dtype.kind == "f" else np.int32)


def _wide(
    image: Array,
    matrix: Array,
    order: str,
    outside: float,
    shape: tuple[int, int, int],
    linear: Array | None = None,
    planes: Array | None = None,
) -> Array:
    """Sample the image at ``matrix [v, 1] + linear planes(v)``, slab by slab; displacement `planes` (3, K, J, I)."""
    from . import interpolation

    if order == "cubic":
        sampler = interpolation.spline(_antialiased(image, matrix), outside)
    else:
        sampler = interpolation.votes(image, _coarser(matrix), int(outside))
    result = np.empty(shape[::-1], np.float32 if order == "cubic" else np.int32)
    for some, positions in slabs(shape, matrix):
        if planes is not None and linear is not None:
            interpolation.move(positions, linear, planes, some.start)
        sampler(positions, result[some].reshape(-1))
    return result.T.astype(_type(image, order), copy=False)


def _coarser(matrix: Array) -> Array:
    """Return the number of source voxels that one target voxel spans, along the source's axes."""
    spans: Array = np.linalg.norm(matrix[:3, :3], axis=1)
    return spans


def _antialiased(image: Array, matrix: Array) -> Array:
    """Return the image as contiguous float32, smoothed along axes where a target voxel spans several source voxels."""
    ratio = _coarser(matrix)
    width = np.where(ratio > COARSER, np.sqrt(np.maximum(ratio**2 - 1, 0)) / FWHM, 0.0)
    width = np.minimum(width, np.array(image.shape) / 4)  # a wider Gaussian only costs time
    return smooth(image, tuple(width))
