"""Resampling between grids: one interpolation through an affine map or a displacement, in compiled code.

`runtime.geometry.flow.sample` is the definition of the trilinear kernels. Import this module where it is needed: it
brings numba, and the first call compiles (the result is cached on disk).
"""

import numpy as np
from numba import njit, prange

from runtime.geometry.errors import InputError
from runtime.geometry.grid import Grid

Array = np.ndarray
ORDERS = ("linear", "nearest")
COARSER = 1.5  # from this ratio of target to source spacing on, the source is smoothed before it is sampled
SNAP = 1e-4  # voxel; maps that stay this close to integer steps copy voxels instead of interpolating
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

    Corners outside the image count as `outside`. With ``order="linear"``, axes of the source that the target samples
    more than 1.5 times coarser are smoothed first. Where the map takes voxels to voxels, values are copied exactly.

    Args:
        image: (I, J, K) on `source`.
        source, target: grids in RAS mm.
        physical: (4, 4) RAS mm, target -> source (fixed -> moving); identity if None.
        order: "linear" (result float32) or "nearest" (result has the image's type).
        outside: value of what is not in the image.

    Returns:
        (I, J, K) on `target`.

    Raises:
        InputError: if the image's shape is not the source grid's, or the order is unknown.
    """
    _check(image, source, order)
    matrix = _snapped(target.voxel_map(source, physical), target.shape)
    if order == "nearest":
        values = _label_array(image)
        result = np.empty(target.shape, values.dtype)
        _nearest_affine(values, matrix, values.dtype.type(outside), result)
        return result.astype(image.dtype, copy=False)
    values = _antialiased(image, matrix)
    result = np.empty(target.shape, np.float32)
    _linear_affine(values, matrix, np.float32(outside), result)
    return result


def resample_through(
    image: Array,
    source: Grid,
    displacement: Array,
    target: Grid,
    order: str = "linear",
    outside: float = 0,
) -> Array:
    """Resample an image through a displacement: value(x) = image at ``x + displacement(x)``, one interpolation.

    Args:
        image: (I, J, K) on `source`.
        source, target: grids in RAS mm.
        displacement: (I, J, K, 3) RAS mm on `target`; where it is not finite the result is `outside`.
        order, outside, result and errors: as in `resample`.
    """
    _check(image, source, order)
    if displacement.shape != (*target.shape, 3):
        raise InputError(f"displacement: got shape {displacement.shape}, expected {(*target.shape, 3)}")
    matrix = target.voxel_map(source)
    linear = np.linalg.inv(source.affine)[:3, :3]
    displacement = np.ascontiguousarray(displacement, dtype=np.float32)
    if order == "nearest":
        values = _label_array(image)
        result = np.empty(target.shape, values.dtype)
        _nearest_field(values, matrix, linear, displacement, values.dtype.type(outside), result)
        return result.astype(image.dtype, copy=False)
    values = _antialiased(image, matrix)
    result = np.empty(target.shape, np.float32)
    _linear_field(values, matrix, linear, displacement, np.float32(outside), result)
    return result


def displacement_field(flow: Array, to_flow: Array, base: Array, linear: Array, shape: tuple[int, int, int]) -> Array:
    """``base [v, 1] + linear flow(to_flow [v, 1])`` at every voxel v, the flow continued by its nearest border value.

    The kernel of `SpatialTransform.displacement`, which defines the three matrices.

    Args:
        flow: (3, I, J, K).
        to_flow: (4, 4) voxel of the result -> voxel of the flow.
        base: (4, 4), of which the first three rows count.
        linear: (3, 3).
        shape: of the result.

    Returns:
        (I, J, K, 3) float32.
    """
    result = np.empty((*shape, 3), np.float32)
    last_axis = np.ascontiguousarray(np.moveaxis(flow, 0, -1), dtype=np.float32)
    _displacement(last_axis, np.ascontiguousarray(to_flow), np.ascontiguousarray(base), linear.copy(), result)
    return result


def smooth(image: Array, sigma: tuple[float, float, float]) -> Array:
    """Gaussian smoothing, the border continued by its nearest value.

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
            result = np.empty((outer, size, image.size // (outer * size)), np.float32)
            _smooth_middle(image.reshape(result.shape), _gaussian(width), result)
            image = result.reshape(image.shape)
    return image


def _check(image: Array, source: Grid, order: str) -> None:
    if order not in ORDERS:
        raise InputError(f"order: got {order!r}, expected one of {', '.join(ORDERS)}")
    if image.shape != source.shape:
        raise InputError(f"image: got shape {image.shape}, expected {source.shape}, its grid's")


def _snapped(matrix: Array, shape: tuple[int, int, int]) -> Array:
    """The map with integer entries if no voxel of `shape` moves by more than `SNAP` for it."""
    whole = np.rint(matrix)
    reach = np.abs(matrix - whole)[:3] @ np.array([*shape, 1.0])
    return whole if reach.max() < SNAP else matrix


def _label_array(image: Array) -> Array:
    """Contiguous int32 (float32 for float images): the two types the nearest kernels are compiled for."""
    return np.ascontiguousarray(image, dtype=np.float32 if image.dtype.kind == "f" else np.int32)


def _antialiased(image: Array, matrix: Array) -> Array:
    """The image as contiguous float32, smoothed along axes on which one target voxel spans several source voxels."""
    ratio = np.linalg.norm(matrix[:3, :3], axis=1)
    width = np.where(ratio > COARSER, np.sqrt(np.maximum(ratio**2 - 1, 0)) / FWHM, 0.0)
    width = np.minimum(width, np.array(image.shape) / 4)  # a wider one only costs time
    return smooth(image, tuple(width))


def _gaussian(sigma: float) -> Array:
    radius = max(1, int(np.ceil(3 * sigma)))
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return (weights / weights.sum()).astype(np.float32)


@njit(cache=True, parallel=True)
def _smooth_middle(image, weights, result):
    """Filter the middle axis of (A, N, B), indices clamped to the border."""
    outer, size, inner = image.shape
    radius = len(weights) // 2
    if inner == 1:
        for a in prange(outer):
            for x in range(size):
                total = np.float32(0)
                for tap in range(len(weights)):
                    total += weights[tap] * image[a, min(max(x + tap - radius, 0), size - 1), 0]
                result[a, x, 0] = total
        return
    for row in prange(outer * size):
        a, x = row // size, row % size
        line = result[a, x]
        for b in range(inner):
            line[b] = 0
        for tap in range(len(weights)):
            from_line = image[a, min(max(x + tap - radius, 0), size - 1)]
            weight = weights[tap]
            for b in range(inner):
                line[b] += weight * from_line[b]


@njit(inline="always")
def _trilinear(image, x, y, z, outside):
    """One trilinear sample; corners outside the image (and everything where x, y or z is NaN) are `outside`."""
    size_i, size_j, size_k = image.shape
    if not (x > -1 and y > -1 and z > -1 and x < size_i and y < size_j and z < size_k):
        return outside
    i, j, k = int(np.floor(x)), int(np.floor(y)), int(np.floor(z))
    fx, fy, fz = np.float32(x - i), np.float32(y - j), np.float32(z - k)
    gx, gy, gz = np.float32(1) - fx, np.float32(1) - fy, np.float32(1) - fz
    if i >= 0 and j >= 0 and k >= 0 and i < size_i - 1 and j < size_j - 1 and k < size_k - 1:
        low = gy * (gz * image[i, j, k] + fz * image[i, j, k + 1]) + fy * (
            gz * image[i, j + 1, k] + fz * image[i, j + 1, k + 1]
        )
        high = gy * (gz * image[i + 1, j, k] + fz * image[i + 1, j, k + 1]) + fy * (
            gz * image[i + 1, j + 1, k] + fz * image[i + 1, j + 1, k + 1]
        )
        return gx * low + fx * high
    total = np.float32(0)
    for di in range(2):
        for dj in range(2):
            for dk in range(2):
                weight = (fx if di else gx) * (fy if dj else gy) * (fz if dk else gz)
                a, b, c = i + di, j + dj, k + dk
                if a >= 0 and b >= 0 and c >= 0 and a < size_i and b < size_j and c < size_k:
                    total += weight * image[a, b, c]
                else:
                    total += weight * outside
    return total


@njit(inline="always")
def _nearest(image, x, y, z, outside):
    """The voxel that contains the point; `outside` if none does."""
    size_i, size_j, size_k = image.shape
    x, y, z = np.floor(x + 0.5), np.floor(y + 0.5), np.floor(z + 0.5)
    if x >= 0 and y >= 0 and z >= 0 and x < size_i and y < size_j and z < size_k:
        return image[int(x), int(y), int(z)]
    return outside


@njit(cache=True, parallel=True)
def _linear_affine(image, matrix, outside, result):
    for i in prange(result.shape[0]):
        for j in range(result.shape[1]):
            x = matrix[0, 0] * i + matrix[0, 1] * j + matrix[0, 3]
            y = matrix[1, 0] * i + matrix[1, 1] * j + matrix[1, 3]
            z = matrix[2, 0] * i + matrix[2, 1] * j + matrix[2, 3]
            for k in range(result.shape[2]):
                result[i, j, k] = _trilinear(
                    image, x + matrix[0, 2] * k, y + matrix[1, 2] * k, z + matrix[2, 2] * k, outside
                )


@njit(cache=True, parallel=True)
def _nearest_affine(image, matrix, outside, result):
    for i in prange(result.shape[0]):
        for j in range(result.shape[1]):
            x = matrix[0, 0] * i + matrix[0, 1] * j + matrix[0, 3]
            y = matrix[1, 0] * i + matrix[1, 1] * j + matrix[1, 3]
            z = matrix[2, 0] * i + matrix[2, 1] * j + matrix[2, 3]
            for k in range(result.shape[2]):
                result[i, j, k] = _nearest(
                    image, x + matrix[0, 2] * k, y + matrix[1, 2] * k, z + matrix[2, 2] * k, outside
                )


@njit(inline="always")
def _moved(matrix, linear, displacement, i, j, k, row):
    """Row `row` of ``matrix [i, j, k, 1] + linear displacement(i, j, k)``: a coordinate in the image."""
    return (
        matrix[row, 0] * i
        + matrix[row, 1] * j
        + matrix[row, 2] * k
        + matrix[row, 3]
        + linear[row, 0] * displacement[i, j, k, 0]
        + linear[row, 1] * displacement[i, j, k, 1]
        + linear[row, 2] * displacement[i, j, k, 2]
    )


@njit(cache=True, parallel=True)
def _linear_field(image, matrix, linear, displacement, outside, result):
    for i in prange(result.shape[0]):
        for j in range(result.shape[1]):
            for k in range(result.shape[2]):
                x = _moved(matrix, linear, displacement, i, j, k, 0)
                y = _moved(matrix, linear, displacement, i, j, k, 1)
                z = _moved(matrix, linear, displacement, i, j, k, 2)
                result[i, j, k] = _trilinear(image, x, y, z, outside)


@njit(cache=True, parallel=True)
def _nearest_field(image, matrix, linear, displacement, outside, result):
    for i in prange(result.shape[0]):
        for j in range(result.shape[1]):
            for k in range(result.shape[2]):
                x = _moved(matrix, linear, displacement, i, j, k, 0)
                y = _moved(matrix, linear, displacement, i, j, k, 1)
                z = _moved(matrix, linear, displacement, i, j, k, 2)
                result[i, j, k] = _nearest(image, x, y, z, outside)


@njit(cache=True, parallel=True)
def _displacement(flow, to_flow, base, linear, result):
    """1. the voxel's place in the flow, clamped to its border; 2. the trilinear flow there; 3. the two matrices."""
    size_i, size_j, size_k, _ = flow.shape
    for i in prange(result.shape[0]):
        for j in range(result.shape[1]):
            for k in range(result.shape[2]):
                x = to_flow[0, 0] * i + to_flow[0, 1] * j + to_flow[0, 2] * k + to_flow[0, 3]
                y = to_flow[1, 0] * i + to_flow[1, 1] * j + to_flow[1, 2] * k + to_flow[1, 3]
                z = to_flow[2, 0] * i + to_flow[2, 1] * j + to_flow[2, 2] * k + to_flow[2, 3]
                x, y, z = min(max(x, 0), size_i - 1), min(max(y, 0), size_j - 1), min(max(z, 0), size_k - 1)
                a, b, c = min(int(x), size_i - 2), min(int(y), size_j - 2), min(int(z), size_k - 2)
                fx, fy, fz = np.float32(x - a), np.float32(y - b), np.float32(z - c)
                gx, gy, gz = np.float32(1) - fx, np.float32(1) - fy, np.float32(1) - fz
                f0, f1, f2 = np.float32(0), np.float32(0), np.float32(0)
                for da in range(2):
                    for db in range(2):
                        for dc in range(2):
                            weight = (fx if da else gx) * (fy if db else gy) * (fz if dc else gz)
                            f0 += weight * flow[a + da, b + db, c + dc, 0]
                            f1 += weight * flow[a + da, b + db, c + dc, 1]
                            f2 += weight * flow[a + da, b + db, c + dc, 2]
                for row in range(3):
                    place = base[row, 0] * i + base[row, 1] * j + base[row, 2] * k + base[row, 3]
                    result[i, j, k, row] = place + linear[row, 0] * f0 + linear[row, 1] * f1 + linear[row, 2] * f2
