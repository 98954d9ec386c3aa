"""Image pyramid of the affine initialisation: coarse to fine, in closest RAS+ order, cropped to the foreground."""

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numba
import numpy as np

from ...errors import InputError
from ...geometry.field_of_view import FieldOfView
from ...geometry.grid import Grid, bounding_box, closest_ras, reorient, reorient_array
from ...images.intensity import FOREGROUND
from ...images.resampling.resample import smooth
from ...types import Array
from .kernels import MOMENTS, block_means, correlation_moments

FINEST_SHARE = 1 / 85  # finest spacing as a share of the fixed foreground's longest edge: about 2 mm for a head
LEVELS = (4, 2, 1)  # spacings, in units of the finest
MARGIN = 0.03  # margin around both foregrounds, in longest edges times the level's step
SMALLEST = 8  # least number of voxels along an axis of a level
CUT = 0.02  # share of foreground on a face of the image above which the object counts as cut off there
OVERLAP = 0.25  # share of the fixed energy that must fall on known parts of the moving image
FEWEST = 64  # least number of voxels for a correlation
BLUR = 0.7  # standard deviation of the smoothing, in voxels of each level
VOXELS_PER_THREAD = 150_000
MOST_PADDED, ALWAYS_PADDED = 16, 1 << 26  # limit of a padded image: times its own voxels, or voxels always allowed
HALF = 0.5  # share of a voxel that must be known for the voxel to count
LEAST = 1e-6  # smallest share of a voxel that is distinguished from none


@dataclass(frozen=True, eq=False)
class LevelImage:
    """One level of one image.

    Attributes:
        data: (I, J, K) float32, 0 where unknown.
        grid: RAS mm.
        cut: (3, 2) bool, the faces beyond which the object continues outside the scan.
        share: (I, J, K) float32, known share of each voxel; None: all voxels are known.
    """

    data: Array
    grid: Grid
    cut: Array
    share: Array | None = None

    @cached_property
    def known(self) -> tuple[Array, Array]:
        """Lowest and highest known voxel coordinates, infinite where the object is not cut off."""
        last = np.array(self.grid.shape) - 1.0
        return np.where(self.cut[:, 0], 0.0, -np.inf), np.where(self.cut[:, 1], last, np.inf)

    @cached_property
    def seen(self) -> Array:
        """The data with NaN where less than half of a voxel is known, which the kernels leave out of their sums."""
        return self.data if self.share is None else np.where(self.share < HALF, np.float32(np.nan), self.data)

    @cached_property
    def spacing(self) -> float:
        """Mean distance of the voxels, mm."""
        return float(np.mean(self.grid.spacing))

    @cached_property
    def energy(self) -> float:
        """Sum of all squares."""
        return float(np.square(self.data).sum(dtype=np.float64))

    @property
    def centre(self) -> Array:
        """Centre of mass, RAS mm."""
        mass = [self.data.sum(axis=tuple(a for a in range(3) if a != axis), dtype=np.float64) for axis in range(3)]
        return self.grid.to_physical(np.array([np.sum(np.arange(len(m)) * m) / np.sum(m) for m in mass]))


@dataclass(frozen=True, eq=False)
class Level:
    """Both images at one spacing, and their correlation."""

    fixed: LevelImage
    moving: LevelImage

    @property
    def spacing(self) -> float:
        """The fixed image's spacing, mm."""
        return self.fixed.spacing

    @contextmanager
    def threads(self) -> Iterator[None]:
        """Limit the number of threads to the work: on coarse levels waking them takes longer than the sums."""
        allowed = numba.get_num_threads()
        numba.set_num_threads(min(allowed, 1 + self.fixed.data.size // VOXELS_PER_THREAD))
        try:
            yield
        finally:
            numba.set_num_threads(allowed)

    def similarity(self, matrix: Array) -> float:
        """Return the correlation under a physical map fixed -> moving; -1 if it is undefined."""
        slices = np.zeros((self.fixed.grid.shape[0], MOMENTS))
        voxels = self.fixed.grid.voxel_map(self.moving.grid, matrix)
        with self.threads():
            correlation_moments(self.fixed.seen, self.moving.seen, voxels, *self.moving.known, slices)
        return self.correlation(slices.sum(axis=0))

    def correlation(self, moments: Array) -> float:
        """Return Pearson's correlation from n, sum f, sum m, sum f^2, sum m^2, sum f m; -1 for too little overlap."""
        n, f, m, ff, mm, fm = moments
        if n < FEWEST or ff < OVERLAP * self.fixed.energy:
            return -1.0
        norm = (ff - f * f / n) * (mm - m * m / n)
        return min(1.0, float((fm - f * m / n) / np.sqrt(norm))) if norm > 0 else -1.0


def cropped_to_foreground(
    data: Array, grid: Grid, argument: str, holes: Array | None = None, view: FieldOfView | None = None
) -> LevelImage:
    """Return the image in closest RAS+ order, cropped to its foreground; the same for any orientation of its voxels.

    Args:
        data: (I, J, K) in [0, 1], 0 in the holes.
        grid: RAS mm.
        argument: the image's name in messages.
        holes: (I, J, K) bool, where the image is unknown; None: nowhere.
        view: field of view of the scan; None: it is cut off at no side but the image's border.

    Raises:
        InputError: no voxel is above the foreground threshold, or the foreground is constant.
    """
    if data.shape != grid.shape:
        raise InputError(f"{argument}: got shape {data.shape}, expected {grid.shape}, its grid's")
    mask = data > FOREGROUND
    if not mask.any():
        raise InputError(f"{argument}: is empty, expected an image with its foreground above {FOREGROUND}")
    first, last = bounding_box(mask)
    box = tuple(slice(a, b + 1) for a, b in zip(first, last, strict=True))
    data = data[box]
    if data.min() == data.max():
        raise InputError(f"{argument}: is constant inside its foreground, expected an image with contrast to align")
    axes, signs = closest_ras(grid.affine)
    cut = _cut_faces(reorient_array(mask, axes, signs))
    if view is not None:
        cut |= np.array([view.sides[axis][::sign] for axis, sign in zip(axes, signs, strict=True)])
    grid = reorient(grid.crop(first, data.shape), axes, signs)
    share = None if holes is None else _ras_ordered(~holes[box], axes, signs)
    return LevelImage(_ras_ordered(data, axes, signs), grid, cut, share)


def _ras_ordered(array: Array, axes: tuple[int, int, int], signs: tuple[int, int, int]) -> Array:
    return np.ascontiguousarray(reorient_array(array, axes, signs), dtype=np.float32)


def _cut_faces(mask: Array) -> Array:
    """Return the faces of the image (low, high) that cut through the foreground, (3, 2) bool."""
    cut = np.zeros((3, 2), dtype=bool)
    for axis, side in itertools.product(range(3), (0, 1)):
        face: list[slice | int] = [slice(None)] * 3
        face[axis] = -side
        cut[axis, side] = mask[tuple(face)].mean() > CUT
    return cut


def longest_edge(image: LevelImage) -> float:
    """Return an image's longest edge, mm; that of the fixed image sets the spacings and margins of both pyramids."""
    return float((np.array(image.grid.shape) * image.grid.spacing).max())


def build_levels(image: LevelImage, edge: float) -> list[LevelImage]:
    """Return one image's levels, coarse to fine, for the longest edge of the fixed foreground (mm).

    The margin lets moving tissue count where fixed has none, and values fade out in the moving image.
    """
    levels: list[LevelImage] = []
    present = 0.0  # margin that the image already has
    for step in sorted(LEVELS):
        margin = MARGIN * step * edge
        image = _coarser(_padded(image, margin - present), FINEST_SHARE * step * edge)
        levels.insert(0, _blurred(image))
        present = margin
    return levels


def _padded(image: LevelImage, margin: float) -> LevelImage:
    """Pad with zeros on the sides where the object is not cut off."""
    voxels = np.ceil(margin / np.array(image.grid.spacing)).astype(int)
    width = np.where(image.cut, 0, voxels[:, None])
    padded = math.prod((np.array(image.data.shape) + width.sum(axis=1)).tolist())
    if padded > max(MOST_PADDED * image.data.size, ALWAYS_PADDED):
        sizes = " x ".join(f"{size:.3g}" for size in image.grid.spacing)
        raise InputError(
            f"--affine: voxels of {sizes} mm are too small beside the fixed foreground, which needs a margin of "
            f"{margin:.3g} mm; check the voxel sizes in both headers, or give --affine none"
        )
    data = np.pad(image.data, width)
    share = None if image.share is None else np.pad(image.share, width, constant_values=1)
    return LevelImage(data, image.grid.crop(-width[:, 0], data.shape), image.cut, share)


def _coarser(image: LevelImage, spacing: float) -> LevelImage:
    """Average the known parts of blocks about `spacing` wide; axes that would become too short keep their voxels."""
    shape, old = np.array(image.grid.shape), np.array(image.grid.spacing)
    factors = np.clip(np.rint(spacing / old), 1, np.maximum(shape // SMALLEST, 1)).astype(int)
    if (factors == 1).all():
        return image
    blocks = tuple(int(factor) for factor in factors)

    def means(voxels: Array) -> Array:
        result = np.empty(tuple(shape // factors), np.float32)
        block_means(voxels, blocks, result)
        return result

    data, share = _average_known(image, means)
    step = np.eye(4)
    step[:3, :3] = np.diag(factors)
    step[:3, 3] = (factors - 1) / 2  # centre of the first block, in old voxels
    return LevelImage(data, Grid(data.shape, image.grid.affine @ step), image.cut, share)


def _blurred(image: LevelImage) -> LevelImage:
    data, share = _average_known(image, lambda voxels: smooth(voxels, (BLUR,) * 3))
    return LevelImage(data, image.grid, image.cut, share)


def _average_known(image: LevelImage, averaged: Callable[[Array], Array]) -> tuple[Array, Array | None]:
    """Average the known parts of an image alone (normalised convolution), else 0, and return their share too."""
    if image.share is None:
        return averaged(image.data), None
    share = averaged(image.share)
    data = averaged(image.data * image.share) / np.maximum(share, np.float32(LEAST))
    return np.where(share < HALF, np.float32(0), data), share
