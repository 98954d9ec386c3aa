"""Compiled arithmetic on rows of voxels, and the tiles of rows that kernels distribute among threads."""

from typing import Any

from numba import njit

TILE = 16  # rows along the two outer axes


def tiles(*arguments: Any) -> int:
    """Return the number of tiles of a kernel's last argument, its result (..., rows, rows, row)."""
    depth, height, _ = arguments[-1].shape[-3:]
    return -(-depth // TILE) * -(-height // TILE)


@njit(forceinline=True, error_model="numpy")
def linear_row(matrix, row, j, k, line):
    """Write row `row` of ``matrix [i, j, k, 1]`` along a row of voxels, for all i."""
    for i in range(len(line)):
        line[i] = matrix[row, 0] * i + matrix[row, 1] * j + matrix[row, 2] * k + matrix[row, 3]


@njit(forceinline=True, error_model="numpy")
def add_row(linear, row, vectors, line):
    """Add row `row` of ``linear v`` to `line`, for the vectors (3, I) of a row of voxels."""
    for i in range(len(line)):
        place = line[i] + linear[row, 0] * vectors[0, i]
        line[i] = place + linear[row, 1] * vectors[1, i] + linear[row, 2] * vectors[2, i]
