"""Compiled loops of linear resampling, in tiles of rows: data shared by neighbouring rows stays in the CPU cache.

Results that go into files have the memory order of files, first axis fastest: here (K, J, I).
"""

import numpy as np
from numba import njit

from ...geometry.kernels.rows import TILE, add_row, linear_row, tiles
from ...host.kernels import in_slices

U = np.uintp  # unsigned indices avoid the test for negative ones


@in_slices(over="rows")
def smooth_middle(begin, end, image, weights, rows):
    """Filter the middle axis of (A, N, B) into rows (A N, B), indices clamped to the border."""
    _, size, inner = image.shape
    radius = len(weights) // 2
    for row in range(begin, end):
        a, x = row // size, row % size
        if inner == 1:
            total = np.float32(0)
            for tap in range(len(weights)):
                total += weights[tap] * image[a, min(max(x + tap - radius, 0), size - 1), 0]
            rows[row, 0] = total
            continue
        line = rows[row]
        for b in range(inner):
            line[b] = 0
        for tap in range(len(weights)):
            from_line = image[a, min(max(x + tap - radius, 0), size - 1)]
            weight = weights[tap]
            for b in range(inner):
                line[b] += weight * from_line[b]


@njit(forceinline=True, error_model="numpy")
def _trilinear(image, x, y, z, outside):
    """Return a trilinear sample; corners outside the image (and everything if x, y or z is NaN) are `outside`."""
    size_i, size_j, size_k = image.shape
    if x >= 0 and y >= 0 and z >= 0 and x < size_i - 1 and y < size_j - 1 and z < size_k - 1:
        low_x, low_y, low_z = np.floor(x), np.floor(y), np.floor(z)
        fx, fy, fz = np.float32(x - low_x), np.float32(y - low_y), np.float32(z - low_z)
        gx, gy, gz = np.float32(1) - fx, np.float32(1) - fy, np.float32(1) - fz
        i, j, k = U(int(low_x)), U(int(low_y)), U(int(low_z))
        p, q, r = i + U(1), j + U(1), k + U(1)
        low = gy * (gz * image[i, j, k] + fz * image[i, j, r]) + fy * (gz * image[i, q, k] + fz * image[i, q, r])
        high = gy * (gz * image[p, j, k] + fz * image[p, j, r]) + fy * (gz * image[p, q, k] + fz * image[p, q, r])
        return gx * low + fx * high
    if not (x > -1 and y > -1 and z > -1 and x < size_i and y < size_j and z < size_k):
        return outside
    i, j, k = int(np.floor(x)), int(np.floor(y)), int(np.floor(z))
    fx, fy, fz = np.float32(x - i), np.float32(y - j), np.float32(z - k)
    gx, gy, gz = np.float32(1) - fx, np.float32(1) - fy, np.float32(1) - fz
    total = np.float32(0)
    for di in range(2):
        for dj in range(2):
            for dk in range(2):
                weight = (fx if di else gx) * (fy if dj else gy) * (fz if dk else gz)
                a, b, c = i + di, j + dj, k + dk
                if a >= 0 and b >= 0 and c >= 0 and a < size_i and b < size_j and c < size_k:
                    total += weight * image[a, b, c]
                elif weight > 0:  # `outside` may be NaN
                    total += weight * outside
    return total


@njit(forceinline=True, error_model="numpy")
def _nearest(image, x, y, z, outside):
    """Return the voxel that contains the point; `outside` if none does."""
    size_i, size_j, size_k = image.shape
    x, y, z = np.floor(x + 0.5), np.floor(y + 0.5), np.floor(z + 0.5)
    if x >= 0 and y >= 0 and z >= 0 and x < size_i and y < size_j and z < size_k:
        return image[U(int(x)), U(int(y)), U(int(z))]
    return outside


@njit(forceinline=True, error_model="numpy")
def _sample_row(image, positions, outside, nearest, line):
    """Sample the image at a row of `positions` (3, N), nearest or trilinear."""
    if nearest:
        for n in range(len(line)):
            line[n] = _nearest(image, positions[0, n], positions[1, n], positions[2, n], outside)
    else:
        for n in range(len(line)):
            line[n] = _trilinear(image, positions[0, n], positions[1, n], positions[2, n], outside)


@in_slices(over=tiles)
def sample_affine(begin, end, image, matrix, outside, nearest, result):
    """Compute ``result(v) = image(matrix [v, 1])``. 1. positions of a row in the image; 2. samples there."""
    size_i, size_j, size_k = result.shape
    across = -(-size_j // TILE)
    for tile in range(begin, end):
        positions = np.empty((3, size_k))
        top, left = tile // across * TILE, tile % across * TILE
        for i in range(top, min(top + TILE, size_i)):
            for j in range(left, min(left + TILE, size_j)):
                for row in range(3):
                    start = matrix[row, 0] * i + matrix[row, 1] * j + matrix[row, 3]
                    for k in range(size_k):
                        positions[row, k] = start + matrix[row, 2] * k
                _sample_row(image, positions, outside, nearest, result[i, j])


@in_slices(over=tiles)
def sample_field(begin, end, image, matrix, linear, displacement, outside, nearest, result):
    """Compute ``result(v) = image(matrix [v, 1] + linear displacement(v))``.

    result is (K, J, I), displacement (3, K, J, I). 1. positions of a row in the image; 2. samples there.
    """
    depth, height, width = result.shape
    across = -(-height // TILE)
    for tile in range(begin, end):
        positions = np.empty((3, width))
        top, left = tile // across * TILE, tile % across * TILE
        for k in range(top, min(top + TILE, depth)):
            for j in range(left, min(left + TILE, height)):
                for row in range(3):
                    linear_row(matrix, row, j, k, positions[row])
                    add_row(linear, row, displacement[:, k, j], positions[row])
                _sample_row(image, positions, outside, nearest, result[k, j])
