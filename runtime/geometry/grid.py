"""Voxel grids: a shape and a voxel-to-RAS map, and the working grid of the network.

Physical coordinates are millimetres in RAS+ everywhere; voxel (i, j, k) is the centre of that voxel.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import nibabel as nib
import numpy as np

from ..errors import InputError
from ..types import Array, Mask

ORTHOGONAL = 1e-3  # largest cosine between two axes that still counts as a right angle (0.06 degrees)
SAME_SPACING = 0.01  # relative difference of spacing below which the fixed image's own voxels are used
FEWEST_VOXELS = 2  # working-grid voxels that the foreground must span along its longest axis
LARGEST_ENTRY = 1e15  # of an affine, beyond which arithmetic with it is unreliable
SINGULAR = 1e-4  # smallest volume of the parallelepiped of the three unit axes
FARTHEST_MM = 0.01 * 2**23  # from the origin: beyond it neighbouring float32 numbers are more than 0.01 mm apart
SPACINGS_MM = (1e-4, 1e3)  # smallest and largest voxel size: from light microscopy to far beyond any scanner
ROUNDING = 1e-5  # relative, of voxel sizes that headers keep in single precision
MOST_VOXELS = 2**53  # of a grid: larger counts are not exact in double precision
SIZE_MULTIPLE = 8  # of the shapes that RP-Net takes: its coarsest level has an eighth of the size


def is_network_shape(shape: Sequence[int]) -> bool:
    """Return whether RP-Net takes images of this shape: three sizes, each a multiple of 8 above 0."""
    return len(shape) == 3 and all(size >= SIZE_MULTIPLE and size % SIZE_MULTIPLE == 0 for size in shape)


@dataclass(frozen=True, eq=False)
class Grid:
    """A lattice of voxels in space.

    Attributes:
        shape: (I, J, K), each at least 1.
        affine: (4, 4) voxel -> RAS mm, invertible; shear is allowed. Read-only.

    Raises:
        InputError: if the shape or the affine is invalid, or the voxels' size or position is implausible for a scan.
    """

    shape: tuple[int, int, int]
    affine: Array

    def __post_init__(self) -> None:
        shape = tuple(int(size) for size in self.shape)
        if len(shape) != 3 or min(shape) < 1:
            raise InputError(f"grid: got shape {shape}, expected three sizes of at least 1 voxel")
        affine = np.array(self.affine, dtype=np.float64)
        check_affine(affine, "voxel-to-world affine")
        _check_place(shape, affine)
        affine.flags.writeable = False
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)

    def __eq__(self, other: object) -> bool:
        """Compare shape and affine exactly; `close` allows for rounding."""
        return isinstance(other, Grid) and self.shape == other.shape and np.array_equal(self.affine, other.affine)

    def __hash__(self) -> int:
        return hash((self.shape, self.affine.tobytes()))

    @property
    def spacing(self) -> tuple[float, float, float]:
        """The distance between neighbouring voxels along I, J, K, mm."""
        along_i, along_j, along_k = (float(length) for length in np.linalg.norm(self.affine[:3, :3], axis=0))
        return along_i, along_j, along_k

    @property
    def directions(self) -> Array:
        """The unit vectors of the axes I, J, K in RAS, as columns, (3, 3)."""
        directions: Array = self.affine[:3, :3] / np.array(self.spacing)
        return directions

    @property
    def orthogonal(self) -> bool:
        """True if the axes are at right angles, so that a quaternion (qform) or ITK can represent them."""
        cosines = self.directions.T @ self.directions - np.eye(3)
        return bool(np.abs(cosines).max() < ORTHOGONAL)

    @property
    def corners(self) -> Array:
        """The positions of the eight corner voxels, (8, 3), RAS mm."""
        return self.to_physical(np.array(list(itertools.product(*((0, size - 1) for size in self.shape)))))

    def to_physical(self, voxels: Array) -> Array:
        """Convert voxel coordinates (..., 3) to RAS mm (..., 3)."""
        return voxels @ self.affine[:3, :3].T + self.affine[:3, 3]

    def to_voxels(self, points: Array) -> Array:
        """Convert RAS mm (..., 3) to voxel coordinates (..., 3)."""
        inverse = np.linalg.inv(self.affine)
        return points @ inverse[:3, :3].T + inverse[:3, 3]

    def inside(self, voxels: Array) -> Array:
        """Return which voxel coordinates (N, 3) lie in a voxel of this grid, (N,) bool."""
        inside: Array = np.all((voxels > -0.5) & (voxels < np.array(self.shape) - 0.5), axis=1)
        return inside

    def voxel_map(self, other: "Grid", physical: Array | None = None) -> Array:
        """Return the (4, 4) map: voxel of this grid -> RAS -> `physical` -> voxel of `other`.

        Args:
            other: the grid the result points into.
            physical: (4, 4) RAS mm -> RAS mm applied in between, such as fixed -> moving; identity if None.
        """
        physical = np.eye(4) if physical is None else physical
        return np.linalg.inv(other.affine) @ physical @ self.affine

    def close(self, other: "Grid", tolerance_mm: float = 1e-2) -> bool:
        """Return whether both have the same shape and no voxel's position differs by more than `tolerance_mm`."""
        if self.shape != other.shape:
            return False
        return bool(np.linalg.norm(self.corners - other.corners, axis=1).max() <= tolerance_mm)

    def crop(self, start: Array, shape: tuple[int, int, int]) -> "Grid":
        """Return the same lattice from voxel `start` on (negative: padding), with another shape."""
        affine = self.affine.copy()
        affine[:3, 3] = self.to_physical(np.asarray(start, dtype=np.float64))
        return Grid(shape, affine)


def check_affine(affine: Array, argument: str) -> None:
    """Refuse a matrix that is not an invertible affine map.

    Args:
        affine: the matrix; (4, 4), finite, last row 0 0 0 1.
        argument: what to call it in the message.

    Raises:
        InputError: the matrix is not such a map.
    """
    if affine.shape != (4, 4):
        raise InputError(f"{argument}: got shape {affine.shape}, expected a 4x4 matrix")
    if not np.isfinite(affine).all():
        raise InputError(f"{argument}: has entries that are not finite, expected 16 numbers; repair the header or file")
    if np.abs(affine).max() > LARGEST_ENTRY:
        largest = np.abs(affine).max()
        raise InputError(f"{argument}: has entries up to {largest:.3g}, expected mm; repair the header or file")
    if not np.allclose(affine[3], (0, 0, 0, 1), atol=1e-6):
        raise InputError(f"{argument}: last row is {affine[3].tolist()}, expected 0 0 0 1")
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if lengths.min() <= 0 or abs(np.linalg.det(affine[:3, :3] / lengths)) < SINGULAR:
        raise InputError(f"{argument}: is singular (axes of length 0 or in one plane); repair the header or file")


def _check_place(shape: tuple[int, int, int], affine: Array) -> None:
    """Refuse implausible voxels: damaged headers produce them, and single precision cannot resolve their positions."""
    if math.prod(shape) > MOST_VOXELS:
        raise InputError(f"grid: got shape {shape}, expected {MOST_VOXELS} voxels at most; repair the header or file")
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not (lengths.min() >= (1 - ROUNDING) * SPACINGS_MM[0] and lengths.max() <= (1 + ROUNDING) * SPACINGS_MM[1]):
        sizes = " x ".join(f"{length:.3g}" for length in lengths)
        raise InputError(
            f"voxel-to-world affine: has voxels of {sizes} mm, expected {SPACINGS_MM[0]:g} to {SPACINGS_MM[1]:g} mm; "
            "check the voxel size and its unit in the header"
        )
    reach = np.abs(affine[:3, 3]) + np.abs(affine[:3, :3]) @ (np.array(shape) - 1.0)
    if not reach.max() <= FARTHEST_MM:
        raise InputError(
            f"voxel-to-world affine: reaches {reach.max():.3g} mm from the origin, expected {FARTHEST_MM:.0f} mm at "
            "most, beyond which single precision is coarser than 0.01 mm; check origin and voxel size in the header"
        )


def closest_ras(affine: Array) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Return the order and direction of a grid's axes that come closest to R, A, S.

    Returns:
        (axes, signs): new axis n is old axis ``axes[n]``, reversed where ``signs[n]`` is -1.
    """
    orientation = nib.orientations.io_orientation(affine)
    i, j, k = (int(axis) for axis in np.argsort(orientation[:, 0]))
    return (i, j, k), (int(orientation[i, 1]), int(orientation[j, 1]), int(orientation[k, 1]))


def reorient(grid: Grid, axes: tuple[int, int, int], signs: tuple[int, int, int]) -> Grid:
    """Return the grid with axes permuted and reversed, same voxels; `reorient_array` does the same to the data."""
    affine = np.eye(4)
    start = np.zeros(3)
    for new, (old, sign) in enumerate(zip(axes, signs, strict=True)):
        affine[:3, new] = sign * grid.affine[:3, old]
        start[old] = 0 if sign > 0 else grid.shape[old] - 1
    affine[:3, 3] = grid.to_physical(start)
    i, j, k = (grid.shape[axis] for axis in axes)
    return Grid((i, j, k), affine)


def reorient_array(array: Array, axes: tuple[int, int, int], signs: tuple[int, int, int]) -> Array:
    """Return a view of (I, J, K) data with axes permuted and reversed as in `reorient`."""
    return array.transpose(axes)[tuple(slice(None, None, sign) for sign in signs)]


def fit_to(array: Array, shape: tuple[int, int, int]) -> Array:
    """Crop or zero-pad an array (I, J, K) about its centre."""
    missing = [max(new - old, 0) for old, new in zip(array.shape, shape, strict=True)]
    array = np.pad(array, [(size // 2, size - size // 2) for size in missing])
    starts = [(old - new) // 2 for old, new in zip(array.shape, shape, strict=True)]
    return array[tuple(slice(start, start + new) for start, new in zip(starts, shape, strict=True))]


def bounding_box(foreground: Array) -> tuple[Array, Array]:
    """Return the first and last voxel (inclusive) of a mask along each axis, two (3,) integer arrays.

    Raises:
        InputError: if the mask is empty.
    """
    over_k, over_i = cast(Mask, foreground.any(axis=2)), cast(Mask, foreground.any(axis=0))  # (I, J) and (J, K)
    used = [np.flatnonzero(line) for line in (over_k.any(axis=1), over_k.any(axis=0), over_i.any(axis=0))]
    if not used[0].size:
        raise InputError("foreground: is empty, expected at least one voxel above the threshold")
    return np.array([line[0] for line in used]), np.array([line[-1] for line in used])


def plan_working_grid(
    grid: Grid,
    foreground: Array,
    spacing: float,
    multiple: int = 8,
    minimum: int = 16,
    margin_mm: float = 8.0,
    argument: str = "--fixed",
) -> Grid:
    """Compute the working grid of the network: foreground plus margin, isotropic spacing, axes closest to RAS+.

    Where the fixed image's spacing is within 1 % of `spacing` and its axes are orthogonal, the working voxels are
    voxels of the fixed image (and of its lattice continued beyond the border), so nothing is interpolated. Otherwise
    the axes are the orthonormalised (polar factor) directions of the fixed grid. The margin ends at the image's
    border; rounding up to `multiple` and `minimum` may go beyond it.

    Args:
        grid: the fixed image's grid, any orientation, shear allowed.
        foreground: (I, J, K) bool on `grid`.
        spacing: mm, what the network was trained at.
        multiple: every size is a multiple of this.
        minimum: smallest size, rounded up to a multiple.
        margin_mm: distance kept around the foreground.
        argument: the image's name in messages.

    Raises:
        InputError: if the foreground is empty or its shape is not the grid's.
    """
    if foreground.shape != grid.shape:
        raise InputError(f"foreground: got shape {foreground.shape}, expected {grid.shape}, the fixed image's")
    if not spacing > 0:
        raise InputError(f"spacing: got {spacing}, expected mm above 0")
    axes, signs = closest_ras(grid.affine)
    canonical = reorient(grid, axes, signs)
    first, last = bounding_box(reorient_array(foreground, axes, signs))
    lattice = canonical if _matches(canonical, spacing) else _orthonormal(canonical, spacing)
    low, high = _box_on(lattice, canonical, first, last)
    extent = (last - first + 1) * canonical.spacing
    if extent.max() < FEWEST_VOXELS * spacing:
        raise InputError(
            f"{argument}: its foreground spans {extent.max():.2g} mm at most, expected several voxels of {spacing:g} "
            "mm, the network's spacing; check the voxel size and its unit in its header"
        )
    border_low, border_high = _box_on(lattice, canonical, np.zeros(3), np.array(canonical.shape) - 1)
    margin = margin_mm / np.array(lattice.spacing)
    # 1e-6: rounding errors in voxel coordinates must not add a voxel.
    start = np.floor(np.maximum(low - margin, border_low) + 1e-6)
    stop = np.ceil(np.minimum(high + margin, border_high) - 1e-6)
    size = np.maximum(stop - start + 1, minimum)
    padded = (np.ceil(size / multiple) * multiple).astype(int)
    start = start.astype(int) - (padded - (stop - start + 1).astype(int)) // 2  # padding is split between both sides
    return lattice.crop(start, tuple(padded))


def _matches(grid: Grid, spacing: float) -> bool:
    return grid.orthogonal and bool(np.abs(np.array(grid.spacing) / spacing - 1).max() <= SAME_SPACING)


def _orthonormal(grid: Grid, spacing: float) -> Grid:
    """Return a lattice with orthogonal axes at `spacing` through the grid's first voxel; its shape is a dummy."""
    left, _, right = np.linalg.svd(grid.directions)
    affine = grid.affine.copy()
    affine[:3, :3] = left @ right * spacing
    return Grid((1, 1, 1), affine)


def _box_on(lattice: Grid, grid: Grid, first: Array, last: Array) -> tuple[Array, Array]:
    """Return the smallest box, in voxels of `lattice`, around the voxels `first` to `last` of `grid`."""
    corners = np.array(list(itertools.product(*zip(first, last, strict=True))), dtype=np.float64)
    voxels = lattice.to_voxels(grid.to_physical(corners))
    return voxels.min(axis=0), voxels.max(axis=0)
