"""Volume change of a transform: its Jacobian determinant, and two summary measures, folded share and SDlogJ."""

import math

import numpy as np

from ..errors import InputError
from ..types import Array
from .grid import Grid


def jacobian_of_displacement(displacement: Array, grid: Grid) -> Array:
    """Compute det d(x + u(x)) / dx in physical space by central differences (one-sided at the border), compiled.

    1 means no change of volume, 2 a doubling, values <= 0 are folds. The result does not depend on orientation,
    obliqueness, spacing or shear of the grid.

    Args:
        displacement: u, (I, J, K, 3) RAS mm. Fastest in the memory order of `Transform.displacement`.
        grid: its grid. Along an axis of one voxel the displacement is taken to be constant.

    Returns:
        (I, J, K) float32, first axis fastest in memory.

    Raises:
        InputError: the displacement's shape is not the grid's.
    """
    from .kernels.jacobian import determinants

    if displacement.shape != (*grid.shape, 3):
        raise InputError(f"displacement: got shape {displacement.shape}, expected {(*grid.shape, 3)}, its grid's")
    planes = np.ascontiguousarray(displacement.T, dtype=np.float32)
    result = np.empty(planes.shape[1:], np.float32)
    steps = np.ascontiguousarray(grid.affine[:3, :3], dtype=np.float32)
    determinants(planes, steps, np.float32(1 / np.linalg.det(grid.affine[:3, :3])), result)
    return result.T


def jacobian_of_flow(flow: Array) -> Array:
    """Compute the Jacobian determinant of a flow (3, I, J, K) in voxels of its own grid, (I, J, K) float32, compiled.

    `runtime.geometry.flow.jacobian_determinant` is the reference.
    """
    from .kernels.jacobian import determinants

    result = np.empty(flow.shape[1:], np.float32)
    # The kernel wants the axes reversed; this matrix of steps reverses the components with them.
    reversal = np.ascontiguousarray(np.eye(3, dtype=np.float32)[::-1])
    determinants(np.ascontiguousarray(flow, np.float32), reversal, np.float32(np.linalg.det(reversal)), result)
    return result


def folded_share(determinant: Array, mask: Array | None = None) -> float:
    """Return the share of voxels, or of those in a mask, whose determinant is <= 0, in [0, 1]."""
    return float(np.mean(_within(determinant, mask) <= 0))


def sd_log_jacobian(determinant: Array, mask: Array | None = None) -> float:
    """Compute SDlogJ, the standard deviation of the determinant's logarithm: the roughness where nothing folds.

    Folded voxels have no logarithm and are left out: a substitute value would outweigh all others, and `folded_share`
    describes them better. The scripts of the Learn2Reg challenge add 3 to the determinant and give smaller numbers.

    Args:
        determinant: from `jacobian_of_displacement`.
        mask: voxels that count; all if None.

    Returns:
        The standard deviation; NaN if every voxel is folded.
    """
    values = _within(determinant, mask)
    logarithms = np.log(values[values > 0], dtype=np.float64)
    return float(np.std(logarithms)) if logarithms.size else math.nan


def _within(determinant: Array, mask: Array | None) -> Array:
    if mask is None:
        return determinant
    if mask.shape != determinant.shape or not mask.any():
        raise InputError(
            f"mask: got shape {mask.shape} with {np.count_nonzero(mask)} voxels, expected some of {determinant.shape}"
        )
    within: Array = determinant[mask.astype(bool)]
    return within
