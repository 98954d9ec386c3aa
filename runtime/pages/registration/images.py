"""The images of a registration that its page shows."""

from dataclasses import dataclass, replace

import numpy as np

from ...geometry.grid import Grid
from ...images.intensity import foreground_mask
from ...images.pictures.planes import shown_box
from ...types import Array


@dataclass(frozen=True, eq=False)
class PageImages:
    """Images of a registration on its working grid.

    Attributes:
        fixed, moving, warped: (I, J, K) float32 in [0, 1], axes closest to RAS+; moving after the affine, warped after
            the flow.
        flow: (3, I, J, K) float32, voxels.
        grid: the working grid.
        labels: the warped label map on it, or None.
    """

    fixed: Array
    moving: Array
    warped: Array
    flow: Array
    grid: Grid
    labels: Array | None = None

    def cropped(self) -> "PageImages":
        """Return the images within the box that pictures show."""
        box = shown_box(foreground_mask(self.fixed) | foreground_mask(self.warped))
        affine = self.grid.affine.copy()
        affine[:3, 3] = self.grid.to_physical(np.array([[piece.start or 0 for piece in box]], np.float64))[0]
        fixed = self.fixed[box]
        return replace(
            self,
            fixed=fixed,
            moving=self.moving[box],
            warped=self.warped[box],
            flow=self.flow[(slice(None), *box)],
            grid=Grid(fixed.shape, affine),
            labels=None if self.labels is None else self.labels[box],
        )
