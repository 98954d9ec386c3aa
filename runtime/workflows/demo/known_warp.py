"""A random smooth warp, known exactly: the ground truth of a registration. Needs SciPy, which nilearn installs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...geometry.flow import jacobian_determinant
from ...geometry.grid import Grid
from ...types import Array


MAX_WARP_MM = 10.0
SMALLEST_JACOBIAN = 0.15
# Spacing of control points in mm -> amplitude, at the scale of lobes, gyri and sulci.
WARP_SCALES = {56: 1.0, 32: 0.8, 20: 0.5}
MOST_ITERATIONS = 100
LARGEST_RESIDUAL_MM = 0.01


@dataclass(frozen=True, eq=False)
class KnownWarp:
    """A smooth invertible map between fixed and moving points, RAS mm.

    It is defined from moving to fixed, ``g(z) = affine^-1 z + v(z)``, so that a moving image can be made from a fixed
    one by ``moving(z) = fixed(g(z))``. Registration seeks its inverse.

    Attributes:
        affine: (4, 4), fixed -> moving.
        field: (3, I, J, K), v in mm (RAS components), trilinear between voxels, constant beyond the border.
        grid: grid of v, in moving space.
    """

    affine: Array
    field: Array
    grid: Grid

    def to_fixed(self, points: Array) -> Array:
        """Return g at moving points (N, 3): fixed points (N, 3), RAS mm."""
        return move(np.linalg.inv(self.affine), points) + self._displacement(points)

    def voxels_to_fixed(self) -> Array:
        """Return g at every voxel of the grid: fixed points (I, J, K, 3), RAS mm."""
        voxels = np.moveaxis(np.indices(self.grid.shape), 0, -1)
        return move(np.linalg.inv(self.affine), self.grid.to_physical(voxels)) + np.moveaxis(self.field, 0, -1)

    def to_moving(self, points: Array) -> Array:
        """Return g^-1 at fixed points (N, 3): moving points (N, 3), RAS mm, by iterating ``z <- affine (x - v(z))``.

        Raises:
            ArithmeticError: the residual of a point stays at 0.01 mm or more.
        """
        moved, change = move(self.affine, points), np.inf
        for _ in range(MOST_ITERATIONS):
            if change < LARGEST_RESIDUAL_MM / 10:
                break
            before, moved = moved, move(self.affine, points - self._displacement(moved))
            change = np.abs(moved - before).max()
        residual = np.linalg.norm(self.to_fixed(moved) - points, axis=1).max()
        if not residual < LARGEST_RESIDUAL_MM:
            raise ArithmeticError(f"inverse of the known warp: residual {residual:.3g} mm, expected below 0.01 mm")
        return moved

    def smallest_jacobian(self) -> float:
        """Return the smallest Jacobian determinant of the warp without its affine (1 keeps volume), at every 2nd voxel."""
        to_voxels = np.linalg.inv(self.grid.affine)[:3, :3] @ self.affine[:3, :3]
        # Every second voxel is kept: a displacement of n voxels is n / 2 steps of the coarser grid.
        flow = np.tensordot(to_voxels, self.field[:, ::2, ::2, ::2], axes=1) / 2
        return float(jacobian_determinant(flow).min())

    def _displacement(self, points: Array) -> Array:
        voxels = self.grid.to_voxels(points)
        return np.stack([interpolate(component, voxels, mode="nearest") for component in self.field], axis=-1)


def random_warp(rng: np.random.Generator, affine: Array, grid: Grid) -> KnownWarp:
    """Draw a warp of several scales on a grid of moving space: at most 10 mm, and nowhere near a fold.

    Raises:
        ArithmeticError: the drawn field compresses a voxel to less than 0.15 of its volume.
    """
    field = np.zeros((3, *grid.shape), np.float32)
    for spacing, amplitude in WARP_SCALES.items():
        for component in field:
            component += amplitude * smooth_field(rng, grid, spacing)
    field *= MAX_WARP_MM / np.linalg.norm(field, axis=0).max()
    warp = KnownWarp(affine, field, grid)
    if (smallest := warp.smallest_jacobian()) < SMALLEST_JACOBIAN:
        raise ArithmeticError(f"known warp: smallest Jacobian determinant {smallest:.2f}, expected 0.15 or more")
    return warp


def random_pose(rng: np.random.Generator, centre: Array) -> Array:
    """Draw an affine (4, 4): per axis, 4 to 9 degrees about `centre`, up to 4 % scaling and a shift of 6 to 12 mm."""
    pose = np.eye(4)
    pose[:3, :3] = rotation(rng.uniform(4, 9, 3) * rng.choice((-1, 1), 3)) @ np.diag(rng.uniform(0.96, 1.04, 3))
    pose[:3, 3] = centre + rng.uniform(6, 12, 3) * rng.choice((-1, 1), 3) - pose[:3, :3] @ centre
    return pose


def smooth_field(rng: np.random.Generator, grid: Grid, spacing: float) -> Array:
    """Draw a field (I, J, K) of unit standard deviation: a cubic B-spline with knots every `spacing` mm, float32."""
    bases = [_spline_basis(size, spacing / step) for size, step in zip(grid.shape, grid.spacing, strict=True)]
    field: Array = rng.standard_normal([basis.shape[1] for basis in bases])
    for basis in bases:
        field = np.tensordot(field, basis, axes=(0, 1))
    return (field / field.std()).astype(np.float32)


def _spline_basis(size: int, spacing: float) -> Array:
    """Return the basis (size, coefficients): cubic B-splines centred `spacing` voxels apart, at the voxels of an axis."""
    centres = np.arange(-1, int(np.ceil((size - 1) / spacing)) + 2)
    distance = np.abs(np.arange(size)[:, None] / spacing - centres)
    near, far = 2 / 3 - distance**2 + distance**3 / 2, np.clip(2 - distance, 0, None) ** 3 / 6
    return np.where(distance < 1, near, far)


def rotation(degrees: Sequence[float] | Array) -> Array:
    """Return the rotation (3, 3) about R, then A, then S."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        turn, (a, b) = np.eye(3), [n for n in range(3) if n != axis]
        turn[a, a], turn[a, b], turn[b, a], turn[b, b] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        matrix = turn @ matrix
    return matrix


def move(affine: Array, points: Array) -> Array:
    """Apply a (4, 4) affine to points (..., 3)."""
    return points @ affine[:3, :3].T + affine[:3, 3]


def interpolate(image: Array, voxels: Array, order: int = 1, mode: str = "constant") -> Array:
    """Sample an image at voxel coordinates (..., 3): trilinear (order 1) or nearest (0); 0 outside, or as `mode` says.

    SciPy samples here, not this project's own code, so that the ground truth is independent of what it checks.
    """
    from scipy.ndimage import map_coordinates

    return map_coordinates(image, np.moveaxis(voxels, -1, 0), order=order, mode=mode)
