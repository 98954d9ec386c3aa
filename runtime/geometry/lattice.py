"""Spatial transforms in compiled code: mapping of points and grids, and the inverse problem for given points.

The formulas are in `runtime.geometry.transform`. Import this module only where it is needed: it imports numba, and the
first call compiles (the result is cached on disk). The start is the space a transform maps from, the end the space it
maps to; a position is a position on the flow's lattice, in voxels.
"""

import functools
from dataclasses import dataclass

import numpy as np

from ..types import Array
from .grid import Grid
from .kernels import maps as kernels

FIT_SAMPLES = 24  # samples of a flow along each axis that its trend is fitted to
SINGULAR = 1e3  # condition number from which on a fit is too close to singular to serve as a trend


@dataclass(frozen=True, eq=False)
class Lattice:
    """A transform's flow with its axes in memory order, and the affine maps before and after it.

    A point x of the start is mapped to ``affine [x, 1] + linear flow(to_lattice [x, 1])``.

    Attributes:
        flow: (A, B, C, 3) float32, contiguous; not a copy if the transform's memory layout allows.
        from_lattice: (4, 4) position on the lattice -> RAS mm of the start.
        affine: (4, 4) RAS mm, start -> end.
        linear: (3, 3) flow -> RAS mm of the end.
    """

    flow: Array
    from_lattice: Array
    affine: Array
    linear: Array

    @property
    def to_lattice(self) -> Array:
        """The map RAS mm of the start -> position on the lattice, (4, 4)."""
        return np.linalg.inv(self.from_lattice)

    @functools.cached_property
    def steps(self) -> Array:
        """The map from a step on the lattice to the flow vector of the same displacement, (3, 3)."""
        return np.linalg.solve(self.linear, (self.affine @ self.from_lattice)[:3, :3])

    @functools.cached_property
    def trend(self) -> Array:
        """The inverse of ``steps w + flow(w)`` for the flow's best affine fit, (4, 4); entry [3, 3] is its determinant.

        Where the fit would be singular (a flow that maps everything onto a plane), its linear part is left out.
        """
        axes = [np.unique(np.linspace(0, size - 1, FIT_SAMPLES).astype(int)) for size in self.flow.shape[:3]]
        positions = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
        basis = np.column_stack((positions, np.ones(len(positions))))
        fit = np.linalg.lstsq(basis, self.flow[np.ix_(*axes)].reshape(-1, 3).astype(np.float64), rcond=None)[0].T
        slope = self.steps + fit[:, :3]
        if not np.linalg.cond(slope) < SINGULAR:
            slope = self.steps
        trend = np.zeros((4, 4))
        trend[:3, :3] = np.linalg.inv(slope)
        trend[:3, 3] = -trend[:3, :3] @ fit[:, 3]
        trend[3, 3] = np.linalg.det(trend[:3, :3])
        return trend


def lattice(flow: Array, grid: Grid, affine: Array) -> Lattice:
    """Convert flow, grid and affine of a `runtime.geometry.transform.SpatialTransform` to the form the kernels take."""
    last = np.moveaxis(flow, 0, -1)
    axes = memory_order(last)
    flow = np.ascontiguousarray(last.transpose(*axes, 3), dtype=np.float32)
    from_lattice = grid.affine[:, [*axes, 3]]
    linear = (affine @ grid.affine)[:3, :3]
    return Lattice(flow, from_lattice, np.array(affine, dtype=np.float64), linear)


def memory_order(vectors: Array) -> tuple[int, int, int]:
    """Return the first three axes of (I, J, K, 3), slowest in memory first."""
    order = np.argsort([-abs(stride) for stride in vectors.strides[:3]], kind="stable")
    return int(order[0]), int(order[1]), int(order[2])


def move_points(given: Lattice, points: Array) -> Array:
    """Map points of the start into the end, (N, 3) -> (N, 3) float64, RAS mm."""
    moved = np.empty(points.shape)
    points = np.ascontiguousarray(points, dtype=np.float64)
    kernels.move_points(given.flow, given.to_lattice, given.affine, given.linear, points, moved)
    return moved


def displacement(given: Lattice, target: Grid) -> Array:
    """Compute ``points(x) - x`` on a grid, (I, J, K, 3) float32, RAS mm, first axis fastest."""
    result = np.empty((3, *target.shape[::-1]), np.float32)
    base = (given.affine - np.eye(4)) @ target.affine
    kernels.displacement(given.flow, given.to_lattice @ target.affine, base, given.linear, result)
    return result.T


def solve_points(given: Lattice, points: Array, tolerance: float) -> tuple[Array, Array]:
    """Find the points x of the start that are mapped to points y of the end.

    With w the position of x on the lattice and D the linear part, the equation is ``S w + flow(w) = g`` with
    ``S = D^-1 affine from_lattice`` and the target ``g = D^-1 (y - affine from_lattice [0, 1])``.

    Args:
        points: (N, 3) RAS mm.
        tolerance: mm; the search for a point ends once its miss, the distance of T(x) to y, is smaller.

    Returns:
        (x, miss): (N, 3) and (N,) float64, mm.
    """
    points = np.ascontiguousarray(points, dtype=np.float64)
    found, misses = np.empty(points.shape), np.empty(len(points))
    back, origin = np.linalg.inv(given.linear), given.affine @ given.from_lattice[:, 3]
    to_target = np.eye(4)
    to_target[:3] = np.column_stack((back, -back @ origin[:3]))
    matrices = (given.steps, given.linear, given.trend, to_target, given.from_lattice)
    kernels.solve_points(given.flow, *map(np.ascontiguousarray, matrices), float(tolerance), points, found, misses)
    return found, misses


def transform_vectors(vectors: Array, matrix: Array) -> Array:
    """Return ``matrix v`` for vectors (A, B, C, 3), as contiguous float32.

    The input is not copied if its vectors lie one after the other in memory, or component by component as in files.
    """
    rows = vectors.reshape(-1, 3).astype(np.float32, copy=False)
    if not (rows.flags.c_contiguous or rows.flags.f_contiguous):
        rows = np.ascontiguousarray(rows)
    result = np.empty(rows.shape, np.float32)
    strides = (rows.strides[0] // rows.itemsize, rows.strides[1] // rows.itemsize)
    kernels.transform_vectors(rows.ravel(order="K"), *strides, np.ascontiguousarray(matrix, dtype=np.float32), result)
    return result.reshape(vectors.shape)
