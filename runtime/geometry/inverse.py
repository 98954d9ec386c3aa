"""The inverse of a transform as a displacement on a grid, and its accuracy."""

import math
from dataclasses import dataclass

import numpy as np

from ..types import Array
from .grid import Grid
from .transform import TOLERANCE_MM, NumericalInverse, SpatialTransform, Transform, slabs


@dataclass(frozen=True, eq=False)
class Inversion:
    """An inverse on the voxels y of a grid, and its residuals ``|T(x) - y|``, mm.

    Attributes:
        displacement: (I, J, K, 3) float32, RAS mm: x - y, first axis fastest in memory.
        residual_mm: mean, percentile_95 and max over the grid.
        unresolved_share: share of voxels whose residual is above the tolerance; they keep the best x found.
        tolerance: mm.
    """

    displacement: Array
    residual_mm: dict[str, float]
    unresolved_share: float
    tolerance: float


def invert_displacement(transform: Transform, target: Grid) -> Inversion:
    """Compute the inverse of a transform at every voxel of a grid.

    Where the transform folds, several x have the same T(x), and one of them is returned: if possible, one at which the
    transform preserves orientation (Jacobian determinant above 0).

    Args:
        transform: T.
        target: a grid in its target space, such as the moving image's.
    """
    result, residuals = np.empty((3, *target.shape[::-1]), np.float32), np.empty(target.shape[::-1], np.float32)
    for planes, positions in slabs(target.shape, target.affine):
        found, residual = _solved(transform, positions)
        found -= positions
        result[:, planes] = found.T.reshape(3, *residuals[planes].shape)
        residuals[planes] = residual.reshape(residuals[planes].shape)
    return Inversion(result.T, spread(residuals), float(np.mean(~(residuals <= TOLERANCE_MM))), TOLERANCE_MM)


def spread(distances: Array) -> dict[str, float]:
    """Return mean, 95th percentile and maximum; NaN if there are no values."""
    if not distances.size:
        return dict.fromkeys(("mean", "percentile_95", "max"), math.nan)
    percentile = float(np.percentile(distances, 95))
    return {"mean": float(distances.mean()), "percentile_95": percentile, "max": float(distances.max())}


def _solved(transform: Transform, positions: Array) -> tuple[Array, Array]:
    if isinstance(transform, SpatialTransform):
        return NumericalInverse(transform).solve(positions)
    found = transform.inverse().points(positions)
    return found, np.linalg.norm(transform.points(found) - positions, axis=1)
