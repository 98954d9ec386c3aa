"""Gauss-Newton ascent of the correlation of one level, for rigid and for affine maps.

The enhanced correlation coefficient of Evangelidis and Psarakis (IEEE TPAMI 30(10), 2008) with Levenberg-Marquardt
damping: no step is taken that lowers the correlation.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ...types import Array
from .kernels import MOMENTS, SUMS, normal_equations
from .pyramid import Level

STEPS = 30


def _elementary(row: int, column: int) -> Array:
    matrix = np.zeros((4, 4))
    matrix[row, column] = 1
    return matrix


_SHIFTS = [_elementary(row, 3) for row in range(3)]
RIGID = [_elementary(b, a) - _elementary(a, b) for a, b in ((0, 1), (1, 2), (2, 0))] + _SHIFTS
AFFINE = [_elementary(row, column) for row in range(3) for column in range(3)] + _SHIFTS


def ascend(level: Level, matrix: Array, generators: list[Array]) -> tuple[Array, float]:
    """Maximise the correlation by damped Gauss-Newton steps, until a step moves every corner by less than 0.01 voxel.

    Args:
        level: both images.
        matrix: start, (4, 4) RAS mm.
        generators: infinitesimal motions in moving space; six of them keep a rigid matrix rigid.

    Returns:
        (matrix, correlation): never worse than the start.
    """
    equations = _Equations(level)
    current, damping = equations.at(matrix), 1e-3
    for _ in range(STEPS):
        pivot = equations.pivot(matrix)
        step = current.solve(equations.jacobian(matrix, pivot, generators), damping)
        if step is None:
            break
        candidate = _moved(matrix, pivot, generators, step)
        proposed = equations.at(candidate)
        if proposed.correlation > current.correlation:
            size = equations.largest_move(matrix, candidate)
            matrix, current, damping = candidate, proposed, damping / 10
            if size < 0.01 * level.spacing:
                break
        else:
            damping = max(10 * damping, 1e-2)
            if damping > 1e3:
                break
    return matrix, current.correlation


def _moved(matrix: Array, pivot: Array, generators: list[Array], step: Array) -> Array:
    change = np.eye(4) + sum(size * generator for size, generator in zip(step, generators, strict=True))
    if len(generators) == len(RIGID):
        left, _, right = np.linalg.svd(change[:3, :3])
        change[:3, :3] = left @ right
    moved: Array = pivot @ change @ np.linalg.inv(pivot) @ matrix
    return moved


@dataclass(frozen=True, eq=False)
class _Normal:
    """The normal equations at one matrix: Hessian (12, 12), gradients against fixed and moving (12), all mean-free."""

    correlation: float
    hessian: Array
    against_fixed: Array
    against_moving: Array
    covariances: tuple[float, float, float]

    def solve(self, jacobian: Array, damping: float) -> Array | None:
        """Return the step along the columns of `jacobian` (12, parameters); None for a singular system."""
        hessian = jacobian.T @ self.hessian @ jacobian
        b_fixed, b_moving = jacobian.T @ self.against_fixed, jacobian.T @ self.against_moving
        hessian = hessian + damping * np.diag(np.diag(hessian))
        try:
            x_fixed, x_moving = np.linalg.solve(hessian, np.stack([b_fixed, b_moving], axis=1)).T
        except np.linalg.LinAlgError:
            return None
        ff, mm, fm = self.covariances
        if ff <= 0:
            return None
        below = fm - b_fixed @ x_moving
        gain = (mm - b_moving @ x_moving) / below if below > 0 else np.sqrt(max(mm, 0.0) / ff)
        step = gain * x_fixed - x_moving
        return step if np.isfinite(step).all() else None


class _Equations:
    """Normal equations of one level, with coordinates scaled so that all parameters are of the same magnitude."""

    def __init__(self, level: Level) -> None:
        shape = np.array(level.fixed.grid.shape)
        self.level = level
        self.centre, self.scale = (shape - 1) / 2, np.maximum(shape / 2, 1)
        unit = np.eye(4)
        unit[:3, :3], unit[:3, 3] = np.diag(self.scale), self.centre
        self.to_ras = level.fixed.grid.affine @ unit  # normalised fixed coordinates -> RAS
        self.to_moving = np.linalg.inv(level.moving.grid.affine)
        self.corners = np.array([(*corner, 1.0) for corner in itertools.product((-1, 1), repeat=3)]).T

    def at(self, matrix: Array) -> _Normal:
        level = self.level
        slices = np.zeros((level.fixed.grid.shape[0], SUMS))
        voxels = level.fixed.grid.voxel_map(level.moving.grid, matrix)
        with level.threads():
            normal_equations(
                level.fixed.seen, level.moving.seen, voxels, *level.moving.known, self.centre, self.scale, slices
            )
        return _normal(slices.sum(axis=0), level.correlation)

    def pivot(self, matrix: Array) -> Array:
        """Return the frame of the motions: origin at the image's centre, unit its radius."""
        pivot = np.eye(4)
        pivot[:3, :3] *= np.linalg.norm(self.to_ras[:3, :3], axis=0).mean()
        pivot[:3, 3] = (matrix @ self.to_ras)[:3, 3]
        return pivot

    def jacobian(self, matrix: Array, pivot: Array, generators: list[Array]) -> Array:
        """Return the derivative of the fixed-to-moving voxel map (12 entries) by the generators, (12, parameters)."""
        behind = np.linalg.inv(pivot) @ matrix @ self.to_ras
        ahead = (self.to_moving @ pivot)[:3]
        return np.stack([(ahead @ generator @ behind).ravel() for generator in generators], axis=1)

    def largest_move(self, before: Array, after: Array) -> float:
        """Return the largest motion of a corner of the fixed image, mm."""
        return float(np.linalg.norm(((after - before) @ self.to_ras @ self.corners)[:3], axis=0).max())


def _normal(sums: Array, correlation: Callable[[Array], float]) -> _Normal:
    n, f, m, ff, mm, fm = sums[:MOMENTS]
    j, jf, jm = sums[MOMENTS : MOMENTS + 36].reshape(3, 12)
    packed = iter(sums[MOMENTS + 36 :])
    hessian = np.zeros((3, 4, 3, 4))
    for a in range(3):
        for b in range(a, 3):
            for p in range(4):
                for q in range(p, 4):
                    value = next(packed)
                    for one, two in ((a, b), (b, a)):
                        hessian[one, p, two, q] = hessian[one, q, two, p] = value
    n = max(n, 1.0)
    return _Normal(
        correlation(sums[:MOMENTS]),
        hessian.reshape(12, 12) - np.outer(j, j) / n,
        jf - j * f / n,
        jm - j * m / n,
        (ff - f * f / n, mm - m * m / n, fm - f * m / n),
    )
