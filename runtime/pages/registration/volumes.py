"""The volumes of a registration for the page's viewer: NIfTI, compressed, at half the resolution or in full."""

import base64
import gzip
from dataclasses import dataclass

import numpy as np

from ...geometry.grid import Grid
from ...types import Array
from .images import PageImages

LEVEL = 6  # of compression
STEP = 2  # of intensities at a reduced resolution, of 256: files a tenth smaller
FACTORS = (2, 3, 4, 6)  # by which the resolution is reduced
MOST_LABELS = 255  # that the viewer's 8 bits can tell apart; further ones share the last colour


@dataclass(frozen=True)
class PageVolume:
    """A volume of the viewer: its key, its title, and the file as base64."""

    key: str
    title: str
    content: str


def pack_volumes(images: PageImages, room: int | None) -> list[PageVolume]:
    """Return fixed and warped image, and the labels if there are any, as 8-bit NIfTI files.

    Args:
        images: those of the page.
        room: characters that they may take together: they are means over 2 x 2 x 2 voxels, or over more if that does
            not fit. None: the working grid's own resolution, with the moving image as well.
    """
    if room is None:
        return _packed(images, 1)
    for factor in FACTORS:
        found = _packed(images, factor)
        if sum(len(volume.content) for volume in found) <= room:
            break
    return found


def _packed(images: PageImages, factor: int) -> list[PageVolume]:
    named = [("fixed", "Fixed", images.fixed), ("warped", "Warped", images.warped)]
    if factor == 1:
        named.append(("moving", "Moving, affine only", images.moving))
    grid = reduced_grid(images.grid, factor)
    found = []
    for key, title, image in named:
        levels = np.rint(255 * np.clip(reduced(image, factor), 0, 1)).astype(np.uint8)
        found.append(PageVolume(key, title, _nifti(levels if factor == 1 else levels // STEP * STEP, grid)))
    if images.labels is not None:
        labels = _every(images.labels, factor)
        found.append(PageVolume("labels", "Labels", _nifti(_ranked(labels), grid)))
    return found


def _ranked(labels: Array) -> Array:
    """Return a label map with its labels numbered from 1 in 8 bits."""
    known = np.unique(labels)
    known = known[known != 0]
    ranks = np.searchsorted(known, labels) + 1
    return np.where(labels == 0, 0, ranks.clip(1, MOST_LABELS)).astype(np.uint8)


def _every(labels: Array, factor: int) -> Array:
    """Return one of each factor^3 voxels of a label map, on the grid of `reduced`."""
    i, j, k = (size // factor * factor for size in labels.shape)
    return labels[:i:factor, :j:factor, :k:factor]


def reduced(image: Array, factor: int) -> Array:
    """Return the means over factor^3 voxels; voxels that do not fill a cube are left out."""
    i, j, k = (size // factor for size in image.shape)
    cubes = image[: factor * i, : factor * j, : factor * k].reshape(i, factor, j, factor, k, factor)
    means: Array = cubes.mean(axis=(1, 3, 5), dtype=np.float32)
    return means


def reduced_grid(grid: Grid, factor: int) -> Grid:
    """Return the grid of `reduced`."""
    affine = grid.affine @ np.diag([factor, factor, factor, 1.0])
    affine[:3, 3] = grid.to_physical(np.full((1, 3), (factor - 1) / 2))[0]
    i, j, k = (size // factor for size in grid.shape)
    return Grid((i, j, k), affine)


def _nifti(data: Array, grid: Grid) -> str:
    import nibabel

    content = nibabel.Nifti1Image(data, grid.affine).to_bytes()
    return base64.b64encode(gzip.compress(content, LEVEL, mtime=0)).decode("ascii")
