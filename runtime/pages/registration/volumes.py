"""The volumes of a registration for the page's viewer: NIfTI, compressed, at half the resolution or in full."""

import base64
import gzip
from dataclasses import dataclass

import numpy as np

from ...geometry.grid import Grid
from ...types import Array
from .images import PageImages

LEVEL = 6  # of compression
STEP = 2  # of intensities at half the resolution, of 256: files a tenth smaller
MOST_LABELS = 255  # that the viewer's 8 bits can tell apart; further ones share the last colour


@dataclass(frozen=True)
class PageVolume:
    """A volume of the viewer: its key, its title, and the file as base64."""

    key: str
    title: str
    content: str


def pack_volumes(images: PageImages, full: bool) -> list[PageVolume]:
    """Return fixed, moving and warped image, and the labels if there are any, as 8-bit NIfTI files.

    Args:
        images: those of the page.
        full: True for the working grid's own resolution; otherwise means over 2 x 2 x 2 voxels.
    """
    named = (
        ("fixed", "Fixed", images.fixed),
        ("warped", "Warped", images.warped),
        ("moving", "Moving, affine only", images.moving),
    )
    grid = images.grid if full else halved_grid(images.grid)
    found = []
    for key, title, image in named:
        if key == "moving" and not full:
            continue  # the pictures show it
        levels = np.rint(255 * np.clip(image if full else halved(image), 0, 1)).astype(np.uint8)
        found.append(PageVolume(key, title, _nifti(levels if full else levels // STEP * STEP, grid)))
    if images.labels is not None:
        labels = images.labels if full else every_second(images.labels)
        found.append(PageVolume("labels", "Labels", _nifti(_ranked(labels), grid)))
    return found


def _ranked(labels: Array) -> Array:
    """Return a label map with its labels numbered from 1 in 8 bits."""
    known = np.unique(labels)
    known = known[known != 0]
    ranks = np.searchsorted(known, labels) + 1
    return np.where(labels == 0, 0, ranks.clip(1, MOST_LABELS)).astype(np.uint8)


def every_second(labels: Array) -> Array:
    """Return one of each 2 x 2 x 2 voxels of a label map, on the grid of `halved`."""
    i, j, k = (size // 2 for size in labels.shape)
    return labels[: 2 * i : 2, : 2 * j : 2, : 2 * k : 2]


def halved(image: Array) -> Array:
    """Return the means over 2 x 2 x 2 voxels; an odd last voxel is left out."""
    i, j, k = (size // 2 for size in image.shape)
    blocks: Array = image[: 2 * i, : 2 * j, : 2 * k].reshape(i, 2, j, 2, k, 2).mean(axis=(1, 3, 5), dtype=np.float32)
    return blocks


def halved_grid(grid: Grid) -> Grid:
    """Return the grid of `halved`."""
    affine = grid.affine @ np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = grid.to_physical(np.full((1, 3), 0.5))[0]
    i, j, k = (size // 2 for size in grid.shape)
    return Grid((i, j, k), affine)


def _nifti(data: Array, grid: Grid) -> str:
    import nibabel

    content = nibabel.Nifti1Image(data, grid.affine).to_bytes()
    return base64.b64encode(gzip.compress(content, LEVEL, mtime=0)).decode("ascii")
