"""Last steps of the affine initialisation, on image detail normalised by its local mean and contrast.

The correlation of whole images is dominated by their outline: background against object. The outlines of two brains
that were skull-stripped differently do not agree, so the last steps use detail instead, weighted by how well the two
images agree locally: a step that would match one fold at the cost of everything around it gains little.
"""

from typing import cast

import numpy as np

from ...images.intensity import FOREGROUND
from ...images.resampling.resample import resample, smooth
from ...types import Array, Shape
from .gauss_newton import ascend
from .pyramid import Level, LevelImage

WINDOW = 1.0  # standard deviation of the local window, in spacings of the level
FAINT = 0.005  # intensity; contrast far below it is noise and stays small
OUTLINE = 0.7  # weight of the outermost voxels; one to two spacings further in it is 1
MARGIN = 2.0  # standard deviations of WINDOW from a cut face within which too little of a window was scanned
AGREEMENT = 3.0  # standard deviation of the window in which agreement is measured, in spacings
ROUNDS = 3  # alternations of updating the weights and the map
MIN_DETAIL_CORRELATION = 0.05  # below it details are not used: another contrast, or another object


def detail(image: LevelImage, spacing: float) -> LevelImage:
    """Return the image minus its local mean, over its local standard deviation, of the foreground only; 0 outside.

    Foreground is weighted gradually around its threshold, so that the result does not depend on the voxels' positions.

    Args:
        image: values in [0, 1].
        spacing: spacing of the level, mm; windows are proportional to it, and equally wide in every direction.
    """
    widths = _widths(image, WINDOW * spacing)
    inside = np.clip(image.data * np.float32(0.5 / FOREGROUND), 0, 1)  # 0 in holes, where the data are 0
    near = np.maximum(smooth(inside, widths), np.float32(1e-3))
    values = image.data - smooth(image.data * inside, widths) / near
    values *= inside / (np.sqrt(smooth(values * values * inside, widths) / near) + np.float32(FAINT))
    values *= np.float32(OUTLINE) + np.float32(1 - OUTLINE) * np.clip(2 * near - 1, 0, 1)
    return _crop_cut_margins(LevelImage(values, image.grid, image.cut, image.share), widths)


def _crop_cut_margins(image: LevelImage, widths: tuple[float, float, float]) -> LevelImage:
    """Crop voxels so close to a face that cuts the object off that half of their window was not scanned."""
    margin = np.minimum(np.ceil(MARGIN * np.array(widths)).astype(int), np.array(image.grid.shape) // 8)
    first, last = np.where(image.cut, margin[:, None], 0).T
    shape = cast(Shape, tuple(int(size) for size in np.array(image.grid.shape) - first - last))
    box = tuple(slice(start, start + size) for start, size in zip(first, shape, strict=True))
    share = None if image.share is None else image.share[box]
    return LevelImage(np.ascontiguousarray(image.data[box]), image.grid.crop(first, shape), image.cut, share)


def ascend_detail(levels: list[Level], matrix: Array, generators: list[Array]) -> Array:
    """Maximise the correlation of the details level by level, then at the finest level weighted by local agreement.

    Args:
        levels: images from `detail`.
        matrix: start, (4, 4) RAS mm, within a few spacings of the coarsest level.
        generators: as in `ascend`.

    Returns:
        (4, 4) RAS mm; `matrix` itself if the details are not similar.
    """
    if not details_correlate(levels[-1], matrix):
        return matrix
    for level in levels:
        matrix, _ = ascend(level, matrix, generators)
    for _ in range(ROUNDS):
        matrix, _ = ascend(weighted_by_agreement(levels[-1], matrix), matrix, generators)
    return matrix


def details_correlate(level: Level, matrix: Array) -> bool:
    """Return True if the details are similar enough under `matrix` to be used."""
    return level.similarity(matrix) >= MIN_DETAIL_CORRELATION


def weighted_by_agreement(level: Level, matrix: Array) -> Level:
    """Return the level with the fixed detail weighted by its local correlation with the moving one under `matrix`.

    The weight is the local correlation r, 0 where it is negative. Updating the weights along with the map
    maximises the sum of r^2 instead of that of r, as squared local correlation does.
    """
    fixed = level.fixed
    moving = resample(level.moving.data, level.moving.grid, fixed.grid, physical=matrix)
    widths = _widths(fixed, AGREEMENT * level.spacing)
    contrast = np.sqrt(smooth(fixed.data * fixed.data, widths) * smooth(moving * moving, widths))
    nearby = smooth(fixed.data * moving, widths) / (contrast + np.float32(1e-2))
    return Level(LevelImage(fixed.data * np.clip(nearby, 0, 1), fixed.grid, fixed.cut, fixed.share), level.moving)


def _widths(image: LevelImage, width: float) -> tuple[float, float, float]:
    """Return a width, mm, in voxels along each axis."""
    i, j, k = (width / spacing for spacing in image.grid.spacing)
    return i, j, k
