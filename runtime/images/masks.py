"""Masks of scans: the voxels that count, the background, and holes of unknown content.

A mask leaves out two kinds of voxels. Those outside the region it encloses (beyond the brain, say) are background, 0,
as after skull-stripping, which is what the networks were trained on. Those in a hole (a lesion, a resection) are
unknown: no sum of the affine initialisation or the stop rule includes them, and the networks get the other scan there.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..geometry.grid import Grid
from ..types import Array
from .volume import Volume, read_labels


@dataclass(frozen=True, eq=False)
class Mask:
    """A mask on the grid of its scan.

    Attributes:
        counts: (I, J, K) bool, where the scan counts.
    """

    counts: Array

    @cached_property
    def holes(self) -> Array | None:
        """The excluded voxels that are not connected to the image's border, (I, J, K) bool; None: there are none."""
        from scipy.ndimage import label

        parts, _ = label(~self.counts)
        faces = [np.unique(np.take(parts, side, axis)) for axis in range(3) for side in (0, -1)]
        holes = ~self.counts & ~np.isin(parts, np.unique(np.concatenate(faces)))
        return holes if holes.any() else None

    def applied(self, data: Array, background: float) -> Array:
        """Return the intensities (I, J, K) with `background` wherever the scan does not count."""
        return np.where(self.counts, data, np.float32(background))


def read_mask(source: Path | str | Volume, argument: str) -> Volume:
    """Read a mask, unless it is a volume already: a label map in which every value but 0 counts."""
    return source if isinstance(source, Volume) else read_labels(Path(source), argument)


def mask_of(volume: Volume, grid: Grid, argument: str) -> Mask:
    """Resample a mask onto a scan's grid, nearest neighbour.

    Raises:
        InputError: none of the scan's voxels is left.
    """
    from .resampling.resample import resample

    counts = resample((volume.data != 0).astype(np.uint8), volume.grid, grid, order="nearest").astype(bool)
    if not counts.any():
        raise InputError(
            f"{argument}: {volume.path or 'the mask'} contains no voxel of its scan; give that scan's mask, 0 at "
            "voxels to ignore"
        )
    return Mask(counts)


def filled(fixed: Array, moving: Array, fixed_holes: Array | None, moving_holes: Array | None) -> tuple[Array, Array]:
    """Return two images of one grid, the holes of each filled from the other, or with 0 where both have a hole.

    Where both images are equal, no difference drives the flow.

    Args:
        fixed, moving: (I, J, K) in [0, 1].
        fixed_holes, moving_holes: (I, J, K) bool; None: none.
    """
    one, other = (fixed, fixed_holes), (moving, moving_holes)
    return _filled_from(*one, *other), _filled_from(*other, *one)


def _filled_from(image: Array, holes: Array | None, other: Array, other_holes: Array | None) -> Array:
    if holes is None:
        return image
    known = other if other_holes is None else np.where(other_holes, np.float32(0), other)
    return np.where(holes, known, image)
