"""Spatial transforms, RAS mm -> RAS mm: mapping of points, displacement fields, inverses, chains.

A transform maps from its start (the fixed image's space) to its end (the moving image's). It resamples an image of the
end onto a grid of the start; its inverse maps points of the end to the start. Files, and the conventions of other
tools, are handled by `runtime.transforms`. Fields are computed in compiled code (`runtime.geometry.lattice`); the
formulas here and `runtime.geometry.flow.sample` are the reference.
"""

import functools
import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import numpy as np

from ..errors import InputError
from ..types import Array
from .grid import FARTHEST_MM, Grid, check_affine

if TYPE_CHECKING:
    from .lattice import Lattice

TOLERANCE_MM = 1e-3  # largest |T(x) - y| at which x counts as the inverse of y
SOLVER_TOLERANCE_MM = TOLERANCE_MM / 10  # residual at which the search ends: in a chain the links' residuals add up
LARGEST_STRETCH = 5.0  # of a plausible affine
SLAB = 1 << 19  # points that are mapped through a chain at a time


def check_plausible(matrix: Array, argument: str) -> None:
    """Refuse an affine that is implausible between two scans: in other units, in another tool's form, or damaged.

    Args:
        matrix: (4, 4) RAS mm, fixed -> moving.
        argument: what to call it in the message.

    Raises:
        InputError: it stretches or shifts too far.
    """
    stretch = np.linalg.svd(matrix[:3, :3], compute_uv=False)
    if not (stretch.max() <= LARGEST_STRETCH and stretch.min() >= 1 / LARGEST_STRETCH):
        raise InputError(
            f"{argument} stretches by {stretch.min():.3g} to {stretch.max():.3g}, expected {1 / LARGEST_STRETCH:g} to "
            f"{LARGEST_STRETCH:g}; is it in RAS mm, fixed to moving, or in another tool's form (--convention)?"
        )
    if not (shift := np.abs(matrix[:3, 3]).max()) <= FARTHEST_MM:
        raise InputError(f"{argument} shifts by {shift:.3g} mm, expected {FARTHEST_MM:.0f} mm at most; is it in mm?")


class Transform(ABC):
    """A spatial transform.

    Attributes:
        matrix: (4, 4) RAS mm if the transform is affine, else None.
    """

    matrix: Array | None = None

    @abstractmethod
    def points(self, points: Array) -> Array:
        """Map points of the start into the end, (N, 3) -> (N, 3) float64, RAS mm."""

    @abstractmethod
    def inverse(self) -> "Transform":
        """Return the map from the end to the start."""

    @property
    def merged(self) -> tuple["Transform", ...]:
        """The same map as a sequence of links: several for a chain, else this transform alone."""
        return (self,)

    def displacement(self, target: Grid) -> Array:
        """Compute ``points(x) - x`` at every voxel of a grid, (I, J, K, 3) float32, RAS mm, first axis fastest."""
        result = np.empty((3, *target.shape[::-1]), np.float32)
        for planes, positions in slabs(target.shape, target.affine):
            moved = self.points(positions) - positions
            result[:, planes] = moved.T.reshape(3, -1, *result.shape[2:])
        return result.T


@dataclass(frozen=True, eq=False)
class AffineTransform(Transform):
    """The affine map y = matrix [x, 1].

    Attributes:
        matrix: (4, 4) RAS mm.

    Raises:
        InputError: the matrix is not an invertible affine map.
    """

    matrix: Array = field()  # overrides the base class's None, which would be the default

    def __post_init__(self) -> None:
        check_affine(self.matrix, "affine")

    def points(self, points: Array) -> Array:
        return _checked(points) @ self.matrix[:3, :3].T + self.matrix[:3, 3]

    def displacement(self, target: Grid) -> Array:
        result = np.empty((3, *target.shape[::-1]), np.float32)
        k, j, i = (np.arange(size, dtype=np.float64) for size in target.shape[::-1])
        for component, row in zip(result, (self.matrix - np.eye(4)) @ target.affine, strict=False):
            plane = row[0] * i + row[1] * j[:, None]
            np.add(plane, (row[2] * k + row[3])[:, None, None], out=component, casting="same_kind")
        return result.T

    def inverse(self) -> "AffineTransform":
        return AffineTransform(np.linalg.inv(self.matrix))

    def after(self, matrix: Array) -> "AffineTransform":
        """Return the map that applies an affine (4, 4) first and then this transform."""
        return AffineTransform(self.matrix @ matrix)

    def before(self, matrix: Array) -> "AffineTransform":
        """Return the map that applies this transform first and then an affine (4, 4)."""
        return AffineTransform(matrix @ self.matrix)


@dataclass(frozen=True, eq=False)
class Chain(Transform):
    """Several transforms: a point of the start is mapped by the first, then the second, and so on (ANTs' ``-t`` order).

    Attributes:
        links: one or more.
    """

    links: tuple[Transform, ...]

    def points(self, points: Array) -> Array:
        for link in self.merged:
            points = link.points(points)
        return points

    def displacement(self, target: Grid) -> Array:
        return self.merged[0].displacement(target) if len(self.merged) == 1 else super().displacement(target)

    @functools.cached_property
    def merged(self) -> tuple[Transform, ...]:
        """The same map in as few links as possible: chains flattened, affines merged into their neighbours."""
        merged: list[Link] = []
        for link in cast("Iterator[Link]", itertools.chain.from_iterable(part.merged for part in self.links)):
            last = merged[-1] if merged else None
            if isinstance(last, AffineTransform):
                merged[-1] = link.after(last.matrix)
            elif last is not None and isinstance(link, AffineTransform):
                merged[-1] = last.before(link.matrix)
            else:
                merged.append(link)
        return tuple(merged)

    @property
    def matrix(self) -> Array | None:  # type: ignore[override]  # nobody assigns it, in any transform
        return self.merged[0].matrix if len(self.merged) == 1 else None

    def inverse(self) -> "Chain":
        return Chain(tuple(link.inverse() for link in reversed(self.links)))


@dataclass(frozen=True, eq=False)
class SpatialTransform(Transform):
    """A flow followed by an affine, as one map from the fixed to the moving image's space.

    A point x of fixed space (RAS mm) is mapped to

        y = affine( W( w + flow(w) ) ),   w = W^-1 x

    with W the working grid's voxel -> RAS map and flow(w) trilinear. Outside the working grid the flow is extrapolated
    with its nearest border value, so the map is continuous everywhere.

    Attributes:
        affine: (4, 4) RAS mm, fixed -> moving.
        flow: (3, I, J, K), voxels of `grid`; every axis has at least 2 voxels.
        grid: the working grid, a part of fixed space.

    Raises:
        InputError: if the flow's shape is not the grid's or the affine is not an invertible 4x4 matrix.
    """

    affine: Array
    flow: Array
    grid: Grid

    def __post_init__(self) -> None:
        check_affine(self.affine, "affine")
        if self.flow.shape != (3, *self.grid.shape) or min(self.grid.shape) < 2:
            raise InputError(f"flow: got shape {self.flow.shape}, expected {(3, *self.grid.shape)}, 2 or more voxels")

    def points(self, points: Array) -> Array:
        from .lattice import move_points

        return move_points(self.lattice, _checked(points))

    def displacement(self, target: Grid) -> Array:
        from .lattice import displacement

        return displacement(self.lattice, target)

    @functools.cached_property
    def lattice(self) -> "Lattice":
        """The flow and its affine maps in the form that compiled code takes; shares the flow's memory if possible."""
        from .lattice import lattice

        return lattice(self.flow, self.grid, self.affine)

    def inverse(self) -> "NumericalInverse":
        return NumericalInverse(self)

    def after(self, matrix: Array) -> "SpatialTransform":
        """Compose as in `AffineTransform.after`."""
        grid = Grid(self.grid.shape, np.linalg.inv(matrix) @ self.grid.affine)
        return SpatialTransform(self.affine @ matrix, self.flow, grid)

    def before(self, matrix: Array) -> "SpatialTransform":
        """Compose as in `AffineTransform.before`."""
        return SpatialTransform(matrix @ self.affine, self.flow, self.grid)


@dataclass(frozen=True, eq=False)
class NumericalInverse(Transform):
    """The inverse of a spatial transform: x such that ``forward.points(x) = y``, found by iteration.

    Attributes:
        forward: the transform to invert.
    """

    forward: SpatialTransform

    def points(self, points: Array) -> Array:
        return self.solve(points)[0]

    def inverse(self) -> SpatialTransform:
        return self.forward

    def after(self, matrix: Array) -> "NumericalInverse":
        """Compose as in `AffineTransform.after`."""
        return NumericalInverse(self.forward.before(np.linalg.inv(matrix)))

    def before(self, matrix: Array) -> "NumericalInverse":
        """Compose as in `AffineTransform.before`."""
        return NumericalInverse(self.forward.after(np.linalg.inv(matrix)))

    def solve(self, points: Array) -> tuple[Array, Array]:
        """Find the x that are mapped to y: Newton's method, and damped fixed-point iteration where that fails.

        A continuous field has such an x for every y. Where it folds there are several, of which one is found,
        preferably with a Jacobian determinant above 0, or in rare cases none: then the best approximation is returned.

        Returns:
            (x, residual): (N, 3) float64, and ``|forward.points(x) - y|`` (N,), mm.
        """
        from .lattice import solve_points

        return solve_points(self.forward.lattice, _checked(points), SOLVER_TOLERANCE_MM)


Link = AffineTransform | SpatialTransform | NumericalInverse  # the transforms that are no chain


def from_displacement(displacement: Array, grid: Grid) -> SpatialTransform:
    """Return the transform ``x + displacement(x)``: (I, J, K, 3) RAS mm on `grid`, trilinear, border extrapolated.

    Raises:
        InputError: the displacement is not finite, not of the grid's shape, or has an axis of one voxel.
    """
    from .lattice import memory_order, transform_vectors

    if displacement.shape != (*grid.shape, 3):
        raise InputError(f"displacement: got shape {displacement.shape}, expected {(*grid.shape, 3)}")
    with np.errstate(invalid="ignore"):
        finite = np.isfinite(displacement.sum(dtype=np.float64))
    if not finite:
        raise InputError("displacement: has NaN or Inf, expected mm; repair the file first")
    axes = memory_order(displacement)
    flow = transform_vectors(displacement.transpose(*axes, 3), np.linalg.inv(grid.affine[:3, :3]))
    return SpatialTransform(np.eye(4), np.moveaxis(flow.transpose(*np.argsort(axes), 3), -1, 0), grid)


def slabs(shape: tuple[int, int, int], matrix: Array) -> Iterator[tuple[slice, Array]]:
    """Yield slices of planes along K, and the positions ``matrix [v, 1]`` of their voxels v, (N, 3), I fastest."""
    i, j, k = (np.arange(size, dtype=np.float64) for size in shape)
    thickness = max(1, SLAB // (len(i) * len(j)))
    for start in range(0, len(k), thickness):
        planes = slice(start, min(start + thickness, len(k)))
        positions = np.empty((planes.stop - start, len(j), len(i), 3))
        for axis, row in enumerate(matrix[:3]):
            plane = row[0] * i + row[1] * j[:, None]
            np.add(plane, (row[2] * k[planes] + row[3])[:, None, None], out=positions[..., axis])
        yield planes, positions.reshape(-1, 3)


def _checked(points: Array) -> Array:
    points = np.asarray(points, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 3:
        raise InputError(f"points: got shape {points.shape}, expected (N, 3), RAS mm")
    return points
