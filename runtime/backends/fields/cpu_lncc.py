"""Local correlation on the CPU, compiled by numba. Reference: `runtime.images.similarity.lncc`.

Window sums run along one axis after the other, each adding the voxel that enters the window and subtracting the one
that leaves it. Images are float32, (I, J, K, 1) and contiguous.
"""

import numpy as np
from numba import njit

from ...host.kernels import in_slices

# Sums may be reordered for vector instructions, in the same order in every run.
_summing = njit(error_model="numpy", fastmath={"reassoc", "contract"})

# Planes per block. Each block has one partial sum, so that results do not depend on the number of threads.
BLOCK = 20


@_summing
def _add_plane(fixed, warped, i, sign, columns):
    """Add (sign 1) or subtract (-1) plane i of f, w, f^2, w^2, f w in the sums along the first axis, (J, 5, K)."""
    _, size_j, size_k, _ = fixed.shape
    for j in range(size_j):
        column = columns[j]
        for k in range(size_k):
            f, w = np.float64(fixed[i, j, k, 0]), np.float64(warped[i, j, k, 0])
            column[0, k] += sign * f
            column[1, k] += sign * w
            column[2, k] += sign * f * f
            column[3, k] += sign * w * w
            column[4, k] += sign * f * w


@_summing
def _correlation_of_row(line, radius, epsilon, sums):
    """Return the sum of the squared correlations of one row.

    line: its sums over the other two axes, (5, K) padded with radius + 1 zeros before and radius zeros after. sums:
    (5, K), scratch memory.
    """
    s0, s1, s2, s3, s4 = 0.0, 0.0, 0.0, 0.0, 0.0
    for k in range(2 * radius + 1):
        s0, s1, s2, s3, s4 = s0 + line[0, k], s1 + line[1, k], s2 + line[2, k], s3 + line[3, k], s4 + line[4, k]
    for k in range(sums.shape[1]):
        n = k + 2 * radius + 1
        s0 += line[0, n] - line[0, k]
        s1 += line[1, n] - line[1, k]
        s2 += line[2, n] - line[2, k]
        s3 += line[3, n] - line[3, k]
        s4 += line[4, n] - line[4, k]
        sums[0, k], sums[1, k], sums[2, k], sums[3, k], sums[4, k] = s0, s1, s2, s3, s4
    result, share = 0.0, 1 / float(2 * radius + 1) ** 3
    for k in range(sums.shape[1]):
        f, w = sums[0, k], sums[1, k]
        var_f, var_w = sums[2, k] - f * f * share, sums[3, k] - w * w * share
        cross = sums[4, k] - f * w * share
        result += cross * cross / (var_f * var_w + epsilon)
    return result


@_summing
def _correlation_of_plane(columns, radius, epsilon, line, sums):
    """Return the sum of the squared correlations of one plane, from the sums along the first axis (J, 5, K)."""
    size_j, _, size_k = columns.shape
    line[:] = 0.0
    result = 0.0
    for j in range(-radius, size_j):
        for c in range(5):
            middle = line[c, radius + 1 : radius + 1 + size_k]
            if j + radius < size_j:
                column = columns[j + radius, c]
                for k in range(size_k):
                    middle[k] += column[k]
            if j - radius - 1 >= 0:
                column = columns[j - radius - 1, c]
                for k in range(size_k):
                    middle[k] -= column[k]
        if j >= 0:
            result += _correlation_of_row(line, radius, epsilon, sums)
    return result


@in_slices(over="partial")
def lncc_sums(begin, end, fixed, warped, radius, epsilon, partial):
    """Sum the squared local correlation over voxels, one partial sum per block of BLOCK planes."""
    size_i, size_j, size_k, _ = fixed.shape
    for block in range(begin, end):
        first, last = block * BLOCK, min((block + 1) * BLOCK, size_i)
        columns = np.zeros((size_j, 5, size_k))
        line, sums = np.empty((5, size_k + 2 * radius + 1)), np.empty((5, size_k))
        result = 0.0
        for i in range(first - radius, last + radius):
            if 0 <= i < size_i:
                _add_plane(fixed, warped, i, 1.0, columns)
            if i - 2 * radius - 1 >= max(first - radius, 0):
                _add_plane(fixed, warped, i - 2 * radius - 1, -1.0, columns)
            if first <= i - radius < last:
                result += _correlation_of_plane(columns, radius, epsilon, line, sums)
        partial[block] = result
