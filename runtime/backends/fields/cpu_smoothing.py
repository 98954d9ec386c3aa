"""Smoothing of residual flows on the CPU, compiled by numba. Reference: `runtime.geometry.smoothing`.

Arrays are float32 and contiguous: images and confidences (I, J, K), flows (I, J, K, 3) or, with the last two axes
merged, (I, J, 3 K). A residual may have another layout; it is passed as flat memory and four strides in elements. Work
is split over the first axis; no slice depends on what another slice of the same call writes, so that results do not
depend on the number of threads.
"""

import numpy as np
from numba import njit

from ...geometry.smoothing import EDGE, LEAST
from ...host.kernels import in_slices

F = np.float32
U = np.uintp  # unsigned indices avoid the check for negative ones

_inlined = njit(forceinline=True, error_model="numpy")


@in_slices(over="out")
def halve(begin, end, image, out):
    """Compute the means of blocks of 2x2x2 voxels: image (2 I, 2 J, 2 K), out (I, J, K)."""
    _, size_j, size_k = out.shape
    for i in range(begin, end):
        for j in range(size_j):
            for k in range(size_k):
                total = F(0)
                for a in range(2 * i, 2 * i + 2):
                    for b in range(2 * j, 2 * j + 2):
                        total += image[a, b, 2 * k] + image[a, b, 2 * k + 1]
                out[i, j, k] = total * F(0.125)


@_inlined
def _slope(low, high, before, after):
    """Return the difference quotient between two neighbours, one of which may be the voxel itself."""
    return (high - low) / F(max(after - before, 1))


@in_slices(over="out")
def confidences(begin, end, image, out):
    """Compute ``g / (g + EDGE)``, g the squared gradient as in `numpy.gradient`; image and out (I, J, K)."""
    size_i, size_j, size_k = image.shape
    for i in range(begin, end):
        i0, i1 = max(i - 1, 0), min(i + 1, size_i - 1)
        for j in range(size_j):
            j0, j1 = max(j - 1, 0), min(j + 1, size_j - 1)
            for k in range(size_k):
                k0, k1 = max(k - 1, 0), min(k + 1, size_k - 1)
                a = _slope(image[i0, j, k], image[i1, j, k], i0, i1)
                b = _slope(image[i, j0, k], image[i, j1, k], j0, j1)
                c = _slope(image[i, j, k0], image[i, j, k1], k0, k1)
                squared = a * a + b * b + c * c
                out[i, j, k] = squared / (squared + F(EDGE))


@_inlined
def _trusted_row(residual, first, res_k, res_c, trusted, row):
    """Compute ``c r`` of a row, channels-last; the residual's row begins at `first`, trusted (K,), row (3 K,)."""
    for c in range(3):
        for k in range(len(trusted)):
            row[3 * k + c] = trusted[k] * residual[first + U(c) * U(res_c) + U(k) * U(res_k)]


@_inlined
def _add(weight, row, out):
    """Add ``weight row`` to `out`, of the same length."""
    for n in range(len(out)):
        out[n] += weight * row[n]


@_inlined
def _clamped(place, size):
    return min(max(place, 0), size - 1)


@_inlined
def _smooth_row(row, weights, longer, out):
    """Filter a row (3 K,) along K into `out`; `longer` is scratch for the row padded with its first and last voxel."""
    radius, size = len(weights) // 2, len(row)
    for n in range(3 * radius):
        longer[n], longer[3 * radius + size + n] = row[n % 3], row[size - 3 + n % 3]
    longer[3 * radius : 3 * radius + size] = row
    out[:] = F(0)
    for tap in range(len(weights)):
        _add(weights[tap], longer[3 * tap : 3 * tap + size], out)


@in_slices(over="out")
def smooth_slices(begin, end, residual, res_i, res_j, res_k, res_c, trusted, weights, out):
    """Filter ``c r`` along J and K: residual of any strides, trusted (I, J, K), out (I, J, 3 K).

    1. compute c r of a row; 2. filter it along K; 3. once all rows of a slice are done, filter them along J.
    """
    _, size_j, size_k = trusted.shape
    radius = len(weights) // 2
    for i in range(begin, end):
        row, longer = np.empty(3 * size_k, np.float32), np.empty(3 * (size_k + len(weights)), np.float32)
        rows = np.empty((size_j, 3 * size_k), np.float32)
        for j in range(size_j):
            _trusted_row(residual, U(i) * U(res_i) + U(j) * U(res_j), res_k, res_c, trusted[i, j], row)
            _smooth_row(row, weights, longer, rows[j])
        for j in range(size_j):
            out[i, j] = F(0)
            for tap in range(len(weights)):
                _add(weights[tap], rows[_clamped(j + tap - radius, size_j)], out[i, j])


@in_slices(over="out")
def fill_in(begin, end, residual, res_i, res_j, res_k, res_c, trusted, around, slices, weights, out):
    """Compute ``c r + (1 - c) S(c r) / (S(c) + LEAST)`` from the output of `smooth_slices`, filtering it along I.

    residual r of any strides; trusted c and around S(c) (I, J, K); slices and out (I, J, 3 K).
    """
    size_i, size_j, size_k = trusted.shape
    radius = len(weights) // 2
    for i in range(begin, end):
        row, near = np.empty(3 * size_k, np.float32), np.empty(3 * size_k, np.float32)
        for j in range(size_j):
            _trusted_row(residual, U(i) * U(res_i) + U(j) * U(res_j), res_k, res_c, trusted[i, j], row)
            near[:] = F(0)
            for tap in range(len(weights)):
                _add(weights[tap], slices[_clamped(i + tap - radius, size_i), j], near)
            for k in range(size_k):
                share = (F(1) - trusted[i, j, k]) / (around[i, j, k] + F(LEAST))
                for n in range(3 * k, 3 * k + 3):
                    out[i, j, n] = row[n] + share * near[n]
