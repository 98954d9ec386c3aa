"""The compiled loop of `runtime.geometry.jacobian`."""

import numpy as np
from numba import njit

from ...host.kernels import in_slices


@njit(forceinline=True, error_model="numpy")
def _neighbours(n, size):
    """Return the neighbours on both sides, clamped to the border, and the reciprocal of their distance."""
    low, high = max(n - 1, 0), min(n + 1, size - 1)
    return low, high, np.float32(1 / max(high - low, 1))


@njit(forceinline=True, error_model="numpy")
def _slopes(above, below, scale, step, result):
    """Write ``step + scale (above - below)`` along rows."""
    for i in range(len(result)):
        result[i] = step + scale * (above[i] - below[i])


@njit(forceinline=True, error_model="numpy")
def _slopes_along(row, step, result):
    """Write the same for the neighbours within a row, one-sided at both ends."""
    last = len(row) - 1
    for i in range(1, last):
        result[i] = step + np.float32(0.5) * (row[i + 1] - row[i - 1])
    result[0] = step + (row[min(1, last)] - row[0])
    result[last] = step + (row[last] - row[max(last - 1, 0)])


@in_slices(over="result")
def determinants(begin, end, displacement, steps, share, result):
    """Compute ``result = share det(steps + slopes)``, share = 1 / det(steps).

    displacement is (3, K, J, I), result (K, J, I). Column a of steps is the step of one voxel along axis a (I, J, K) in
    mm; column a of slopes is the change of the displacement over it, by central differences (one-sided at the border, 0
    along an axis of one voxel).

    1. steps + slopes of a row, component by component; 2. their determinants.
    """
    size_k, size_j, size_i = result.shape
    rows = np.empty((3, 3, size_i), np.float32)
    for k in range(begin, end):
        k0, k1, scale_k = _neighbours(k, size_k)
        for j in range(size_j):
            j0, j1, scale_j = _neighbours(j, size_j)
            for n in range(3):
                field = displacement[n]
                _slopes_along(field[k, j], steps[n, 0], rows[n, 0])
                _slopes(field[k, j1], field[k, j0], scale_j, steps[n, 1], rows[n, 1])
                _slopes(field[k1, j], field[k0, j], scale_k, steps[n, 2], rows[n, 2])
            line = result[k, j]
            for i in range(size_i):
                a, b, c = rows[0, 0, i], rows[0, 1, i], rows[0, 2, i]
                d, e, f = rows[1, 0, i], rows[1, 1, i], rows[1, 2, i]
                g, h, m = rows[2, 0, i], rows[2, 1, i], rows[2, 2, i]
                line[i] = share * (a * (e * m - f * h) - b * (d * m - f * g) + c * (d * h - e * g))
