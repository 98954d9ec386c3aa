"""The fine steps of the affine start: what lies inside the surface, each place by its own mean and contrast.

Correlation over a whole image is mostly that of its outline: background against object. Two brains that were cut out
in two ways agree on no outline, so the last steps look at detail instead, and among that at what the two images agree
on: a step that would bring one fold onto another at the cost of everything around it finds little to pull on.
"""

import numpy as np

from ...images.intensity import FOREGROUND
from ...images.resampling.resample import resample, smooth
from ...types import Array
from .gauss_newton import climb
from .pyramid import Level, LevelImage

WINDOW = 1.0  # standard deviation of what counts as near, in spacings of the level
FAINT = 0.005  # intensity: contrast far below it is noise and stays small
OUTLINE = 0.7  # weight of the outermost voxels; one to two spacings further in it is 1
MARGIN = 2.0  # standard deviations of WINDOW from a cut face within which too little was seen
AGREEMENT = 3.0  # standard deviation of the neighbourhood that agrees or does not, in spacings
ROUNDS = 3  # times that weights follow the map and the map the weights
ALIKE = 0.05  # correlation of the details below which they say nothing: another contrast, or another object


def detail(image: LevelImage, spacing: float) -> LevelImage:
    """The image less its mean nearby, over its standard deviation nearby, both of the foreground alone; 0 outside.

    Foreground comes in gradually about its threshold, so that the result does not hang on where voxels happen to lie.

    Args:
        image: values in [0, 1].
        spacing: of the level, mm; windows follow it, so they are as wide in every direction.
    """
    widths = _widths(image, WINDOW * spacing)
    inside = np.clip(image.data * np.float32(0.5 / FOREGROUND), 0, 1)  # 0 in holes, whose data are
    near = np.maximum(smooth(inside, widths), np.float32(1e-3))
    values = image.data - smooth(image.data * inside, widths) / near
    values *= inside / (np.sqrt(smooth(values * values * inside, widths) / near) + np.float32(FAINT))
    values *= np.float32(OUTLINE) + np.float32(1 - OUTLINE) * np.clip(2 * near - 1, 0, 1)
    return _known_on_both_sides(LevelImage(values, image.grid, image.cut, image.share), widths)


def _known_on_both_sides(image: LevelImage, widths: tuple[float, float, float]) -> LevelImage:
    """Without what lies so near a face that cuts the object off that half of what is near was not seen."""
    margin = np.minimum(np.ceil(MARGIN * np.array(widths)).astype(int), np.array(image.grid.shape) // 8)
    first, last = np.where(image.cut, margin[:, None], 0).T
    shape = tuple(int(size) for size in np.array(image.grid.shape) - first - last)
    box = tuple(slice(start, start + size) for start, size in zip(first, shape, strict=True))
    share = None if image.share is None else image.share[box]
    return LevelImage(np.ascontiguousarray(image.data[box]), image.grid.crop(first, shape), image.cut, share)


def climb_detail(levels: list[Level], matrix: Array, generators: list[Array]) -> Array:
    """Steps on the detail of each level, coarse to fine, then at the finest by agreement.

    Args:
        levels: of `detail`.
        matrix: start, (4, 4) RAS mm, within a few spacings of the coarsest level.
        generators: as in `climb`.

    Returns:
        (4, 4) RAS mm; `matrix` where the details are not alike.
    """
    if not alike(levels[-1], matrix):
        return matrix
    for level in levels:
        matrix, _ = climb(level, matrix, generators)
    for _ in range(ROUNDS):
        matrix, _ = climb(agreeing(levels[-1], matrix), matrix, generators)
    return matrix


def alike(level: Level, matrix: Array) -> bool:
    """Whether the details have enough in common under `matrix` to be followed."""
    return level.similarity(matrix) >= ALIKE


def agreeing(level: Level, matrix: Array) -> Level:
    """The level with the fixed detail weighted by how well it correlates nearby with the moving one under `matrix`.

    The weight is the correlation r nearby, 0 where it is negative. Climbing with weights that follow the map maximises
    the sum of r^2 instead of that of r, as squared local correlation does.
    """
    fixed = level.fixed
    moving = resample(level.moving.data, level.moving.grid, fixed.grid, physical=matrix)
    widths = _widths(fixed, AGREEMENT * level.spacing)
    contrast = np.sqrt(smooth(fixed.data * fixed.data, widths) * smooth(moving * moving, widths))
    nearby = smooth(fixed.data * moving, widths) / (contrast + np.float32(1e-2))
    return Level(LevelImage(fixed.data * np.clip(nearby, 0, 1), fixed.grid, fixed.cut, fixed.share), level.moving)


def _widths(image: LevelImage, width: float) -> tuple[float, float, float]:
    """mm in voxels along each axis."""
    return tuple(width / spacing for spacing in image.grid.spacing)
