"""Planes through a volume for display, in radiological orientation.

The patient's right is at the left of a picture, superior is up, anterior is up in the axial plane and to the left in
the sagittal one.
"""

from dataclasses import dataclass

import numpy as np

from ...geometry.flow import jacobian_determinant
from ...geometry.grid import bounding_box
from ...types import Array, Shape

BORDER_VOXELS = 5


@dataclass(frozen=True)
class Plane:
    """A plane through a volume in RAS+ order, oriented for display.

    Attributes:
        name: shown beside its row.
        axis: the axis perpendicular to it, 0 to 2.
        index: position along that axis, in voxels.
        sides: the anatomical letters at the left and the right of the picture.
    """

    name: str
    axis: int
    index: int
    sides: tuple[str, str]

    @property
    def in_plane(self) -> tuple[int, int]:
        """The axes shown from top to bottom and from left to right, both running backwards."""
        across, down = (axis for axis in range(3) if axis != self.axis)
        return down, across

    def cut(self, volume: Array) -> Array:
        """Cut the plane from a volume (..., I, J, K), as a picture (..., rows, columns)."""
        plane = volume[(..., *(self.index if axis == self.axis else slice(None) for axis in range(3)))]
        return np.swapaxes(plane, -1, -2)[..., ::-1, ::-1]

    def folded(self, flow: Array) -> Array:
        """Return the folds of a flow (3, I, J, K) in this plane, Jacobian determinant <= 0, (rows, columns) bool."""
        first = max(self.index - 1, 0)
        slab = flow[(..., *(slice(first, self.index + 2) if axis == self.axis else slice(None) for axis in range(3)))]
        if min(slab.shape[1:]) < 2:
            return np.zeros(self.cut(flow[0]).shape, bool)
        inside = Plane(self.name, self.axis, self.index - first, self.sides)
        return inside.cut(jacobian_determinant(slab) <= 0)


def shown_box(foreground: Array) -> tuple[slice, ...]:
    """Return the region to show, three slices: the foreground's box and a border; all without a foreground."""
    if not foreground.any():
        return (slice(None),) * 3
    first, last = bounding_box(foreground)
    first, stop = first - BORDER_VOXELS, last + BORDER_VOXELS + 1
    # The left-right extent is widened to the front-back one, so that the panels of all three planes fill their column.
    spare = max(stop[1] - first[1] - (stop[0] - first[0]), 0)
    first[0], stop[0] = first[0] - spare // 2, stop[0] + spare - spare // 2
    return tuple(slice(max(a, 0), min(b, size)) for a, b, size in zip(first, stop, foreground.shape, strict=True))


def planes_at(i: int, j: int, k: int) -> tuple[Plane, ...]:
    """Return the sagittal, coronal and axial plane through a voxel."""
    return Plane("sagittal", 0, i, ("A", "P")), Plane("coronal", 1, j, ("R", "L")), Plane("axial", 2, k, ("R", "L"))


def middle_planes(shape: Shape) -> tuple[Plane, ...]:
    """Return the planes through the middle of a volume."""
    i, j, k = (size // 2 for size in shape)
    return planes_at(i, j, k)
