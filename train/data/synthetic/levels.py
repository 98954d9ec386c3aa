"""Level functions (smooth fields that are positive inside a border) and images painted with them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from train.model import definition


@dataclass(frozen=True)
class Painting:
    """One image of a scene before the simulated scanner, on the scene's grid; maps are (I, J, K).

    Attributes:
        image: values in about [0, 1].
        shown: level function that is positive where the image is not black.
        labels: labels from 1, also where the image is black; 0 for what is not part of the anatomy.
        motion: displacement (3, I, J, K) of each point from its position in the scene, voxels, for structures that move
            in this image only; or None.
    """

    image: Tensor
    shown: Tensor
    labels: Tensor
    motion: Tensor | None = None


def edge(level: Tensor) -> Tensor:
    """Return the share of each voxel inside a border: a ramp one voxel wide."""
    return (level + 0.5).clamp(0, 1)


def distance(level: Tensor, steepest: float) -> Tensor:
    """Return about the signed distance in voxels to a level function's zero set; it is accurate only near it.

    Args:
        level: level function (I, J, K).
        steepest: smallest slope per voxel to divide by.
    """
    slope = cast(Tensor, sum(derivative.square() for derivative in torch.gradient(level))).sqrt()
    return level / blur(slope, 2 / 3).clamp(min=steepest)


def blur(image: Tensor, weight: float, axes: tuple[int, ...] = (0, 1, 2)) -> Tensor:
    """Mix each voxel with its two neighbours along `axes`, as partial volume does.

    `weight` is the share of the neighbours; 2/3 gives the mean of three voxels.
    """
    for axis in axes:
        first, last = image.narrow(axis, 0, 1), image.narrow(axis, image.shape[axis] - 1, 1)
        padded = torch.cat((first, image, last), axis)
        ends = padded.narrow(axis, 0, image.shape[axis]) + padded.narrow(axis, 2, image.shape[axis])
        image = (1 - weight) * image + weight / 2 * ends
    return image


def highest(fields: Iterable[Tensor]) -> Tensor:
    """Return the number of the highest field in every voxel. One field at a time: faster than argmax over a stack."""
    fields = iter(fields)
    best = next(fields)
    number = torch.zeros_like(best, dtype=torch.long)
    for n, candidate in enumerate(fields, start=1):
        number.masked_fill_(candidate > best, n)
        best = torch.maximum(best, candidate)
    return number


def sample(volume: Tensor, coordinates: Tensor, mode: str = "bilinear") -> Tensor:
    """Sample a volume (C, I, J, K) at voxel coordinates (3, A, B, C); outside, border values are repeated."""
    return definition.sample(volume[None], coordinates[None], mode, "border")[0]


def sample_smooth(volume: Tensor, coordinates: Tensor) -> Tensor:
    """Sample a smooth volume as `sample` does, but only at every second voxel of (A, B, C), and interpolate between."""
    shape = tuple(coordinates.shape[1:])
    fewer = [size // 2 + 1 for size in shape]
    half = F.interpolate(coordinates[None], size=fewer, mode="trilinear", align_corners=True)
    return F.interpolate(sample(volume, half[0])[None], size=shape, mode="trilinear", align_corners=True)[0]
