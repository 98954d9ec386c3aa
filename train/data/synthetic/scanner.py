"""Simulation of a scanner: resolution, contrast, shading and noise."""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from runtime.types import Array
from train.data.randomness import Randomness, shape_of
from train.data.synthetic.levels import blur

THICK_SLICES_SHARE = 0.15  # of similar scanners
COARSE_SLICES_SHARE, COARSE_VOXELS_SHARE = 0.35, 0.2  # of scanners drawn widely
KNOT, KNOTS = 0.25, 6  # length and number of the pieces of a contrast curve
MOST_NOISE, MOST_SHADING, MOST_CONTRAST = 0.07, 0.3, 0.7  # standard deviations: of values, logarithms, logarithms


def scan(random: Randomness, image: Tensor, apart: bool) -> Tensor:
    """Return the image (I, J, K) of a random scanner: one drawn widely if `apart`, else one similar to the others."""
    return _any(random, image) if apart else _usual(random, image)


def _usual(random: Randomness, image: Tensor) -> Tensor:
    """Simulate one of several similar scanners."""
    shape = shape_of(image)
    image = blur(image, random.between(0, 0.25))
    if random.chance(THICK_SLICES_SHARE):
        image = blur(image, random.between(0.3, 2 / 3), (random.count(0, 2),))
    image = image ** random.between(0.85, 1.18)
    image = image * (1 + random.between(0, 0.1) * random.smooth(shape, random.between(35, 70)))
    return image + random.between(0, 0.04) * random.grain(shape)


def _any(random: Randomness, image: Tensor) -> Tensor:
    """Simulate a scanner that differs from others as those of different hospitals do."""
    shape = shape_of(image)
    image = blur(image, random.between(0, 0.6))
    if random.chance(COARSE_SLICES_SHARE):
        image = coarsen(image, random.between(1.5, 4.5), (random.count(0, 2),))
    elif random.chance(COARSE_VOXELS_SHARE / (1 - COARSE_SLICES_SHARE)):
        image = coarsen(image, random.between(1.1, 2.0), (0, 1, 2))
    image = contrast_curve(image, random.numbers.normal(0, random.between(0, MOST_CONTRAST), KNOTS))
    image = image * torch.exp(random.between(0, MOST_SHADING) * random.smooth(shape, random.between(30, 90)))
    return image + random.between(0, MOST_NOISE) * random.grain(shape)


def coarsen(image: Tensor, voxels: float, axes: tuple[int, ...]) -> Tensor:
    """Average voxels or slices to `voxels` times their size along `axes` and interpolate back to the original shape."""
    shape = tuple(image.shape)
    fewer = tuple(max(round(size / voxels), 1) if axis in axes else size for axis, size in enumerate(shape))
    means = F.interpolate(image[None, None], size=fewer, mode="area")
    return F.interpolate(means, size=shape, mode="trilinear", align_corners=False)[0, 0]


def contrast_curve(image: Tensor, slopes: Sequence[float] | Array) -> Tensor:
    """Apply a rising piecewise linear curve that maps 0 to 0 and 1 to 1.

    Args:
        image: any shape, values above about 0.
        slopes: logarithms of the slopes of the pieces, each of length `KNOT`, up to a common factor.
    """
    rises = [float(rise) for rise in torch.as_tensor(slopes).exp()]
    whole = sum(rises[: round(1 / KNOT)])
    return cast(Tensor, sum((image / KNOT - n).clamp(0, 1) * (rise / whole) for n, rise in enumerate(rises)))
