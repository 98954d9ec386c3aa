"""Field of view: where a scan ends although the body goes on, so that nothing is known beyond.

A scan that shows only a part of a head ends in a plane that cuts through tissue. Beyond it there is no background but
nothing at all, and neither a similarity nor a flow can be asked for there. Scans that end in background are not cut.
"""

import itertools
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..types import Array, Mask
from .grid import Grid

# Area of the outermost slice of the foreground, as a share of the largest slice, above which the body is cut there. The
# outermost slice of an ellipsoid whose axis spans n slices has up to 4 / n of the area. The slices of fourteen brains
# and a template at 1 mm have 0.03 at most.
CUT = 0.1
ROUNDED = 6.0


@dataclass(frozen=True, eq=False)
class FieldOfView:
    """The part of space that a scan shows, bounded by planes between its voxels.

    Attributes:
        grid: grid of the scan.
        low, high: (3,) voxel coordinates of the first and last slice that shows the body; infinite where it is not cut.
    """

    grid: Grid
    low: Array
    high: Array

    @property
    def sides(self) -> Array:
        """The sides on which the body is cut off, low and high of each axis, (3, 2) bool."""
        sides: Mask = np.isfinite(np.stack([self.low, self.high], axis=1))
        return sides

    @cached_property
    def unseen(self) -> Array | None:
        """Voxels of the scan beyond its field of view, padding, (I, J, K) bool; None: there are none."""
        return self.beyond(self.grid)

    def beyond(self, grid: Grid, physical: Array | None = None) -> Array | None:
        """Return the voxels of another grid that lie beyond the field of view.

        Args:
            grid: the other grid.
            physical: (4, 4) RAS mm, from there to the scan; None: identity.

        Returns:
            (I, J, K) bool on `grid`, or None if there are no such voxels.
        """
        if not self.sides.any():
            return None
        voxels = grid.voxel_map(self.grid, physical)
        i, j, k = np.ogrid[tuple(map(slice, grid.shape))]
        found = np.zeros(grid.shape, bool)
        for axis in range(3):
            if not self.sides[axis].any():
                continue
            along = (voxels[axis, column] * index for column, index in enumerate((i, j, k)))
            position = sum(along, start=voxels[axis, 3])
            found |= (position < self.low[axis] - 0.5) | (position > self.high[axis] + 0.5)
        return found if found.any() else None


def field_of_view(foreground: Array, grid: Grid) -> FieldOfView:
    """Find the sides on which the foreground ends in a plane.

    Args:
        foreground: (I, J, K) bool on `grid`; if it is empty, it is cut on no side.
        grid: grid of the scan.
    """
    low, high = np.full(3, -np.inf), np.full(3, np.inf)
    over_k = np.count_nonzero(foreground, axis=2)
    areas = over_k.sum(axis=1), over_k.sum(axis=0), np.count_nonzero(foreground, axis=0).sum(axis=0)
    for (axis, area), side in itertools.product(enumerate(areas), (0, -1)):
        slices = np.flatnonzero(area)
        if not slices.size:
            continue
        end = slices[side]
        if area[end] > (CUT + ROUNDED / len(slices)) * area.max():
            (high if side else low)[axis] = end
    return FieldOfView(grid, low, high)
