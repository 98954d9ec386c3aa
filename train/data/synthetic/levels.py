"""Level functions, smooth fields that are positive inside a border, and the images that are painted with them."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from train.model import definition


@dataclass(frozen=True)
class Painting:
    """One image of a scene, before any scanner has seen it, on the scene's grid, (I, J, K) each.

    image: values in about [0, 1]. shown: level function, positive where they are not black. labels: from 1, also of
    what is not shown; 0 for what is no part of the anatomy. motion: (3, I, J, K), voxels, how far from its place in the
    scene each point is painted, or None: the anatomy of the other image, moved on its own.
    """

    image: Tensor
    shown: Tensor
    labels: Tensor
    motion: Tensor | None = None


def edge(level: Tensor) -> Tensor:
    """Share of a voxel inside a border: a ramp one voxel wide."""
    return (level + 0.5).clamp(0, 1)


def distance(level: Tensor, steepest: float) -> Tensor:
    """About the signed distance in voxels to a level function's zero set, reliable near it."""
    slope = sum(derivative.square() for derivative in torch.gradient(level)).sqrt()
    return level / blur(slope, 2 / 3).clamp(min=steepest)


def blur(image: Tensor, weight: float, axes: tuple[int, ...] = (0, 1, 2)) -> Tensor:
    """Mix with the neighbours along `axes`: partial volume. 2/3 is the mean of three voxels."""
    for axis in axes:
        first, last = image.narrow(axis, 0, 1), image.narrow(axis, image.shape[axis] - 1, 1)
        padded = torch.cat((first, image, last), axis)
        ends = padded.narrow(axis, 0, image.shape[axis]) + padded.narrow(axis, 2, image.shape[axis])
        image = (1 - weight) * image + weight / 2 * ends
    return image


def highest(fields: Iterable[Tensor]) -> Tensor:
    """Number of the field that is highest, voxel by voxel. One at a time: faster than argmax over a stack."""
    fields = iter(fields)
    best = next(fields)
    number = torch.zeros_like(best, dtype=torch.long)
    for n, candidate in enumerate(fields, start=1):
        number.masked_fill_(candidate > best, n)
        best = torch.maximum(best, candidate)
    return number


def sample(volume: Tensor, coordinates: Tensor, mode: str = "bilinear") -> Tensor:
    """Samples of (C, I, J, K) at voxel coordinates (3, A, B, C); the border's value outside."""
    return definition.sample(volume[None], coordinates[None], mode, "border")[0]


def sample_smooth(volume: Tensor, coordinates: Tensor) -> Tensor:
    """`sample` of a volume that is smooth, taken at every second voxel of (A, B, C) and interpolated in between."""
    shape = tuple(coordinates.shape[1:])
    fewer = [size // 2 + 1 for size in shape]
    half = F.interpolate(coordinates[None], size=fewer, mode="trilinear", align_corners=True)
    return F.interpolate(sample(volume, half[0])[None], size=shape, mode="trilinear", align_corners=True)[0]
