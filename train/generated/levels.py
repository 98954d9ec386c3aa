"""Level functions, smooth fields in voxels that are positive inside a border, and how values are made of them."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from train import textbook


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
    return textbook.sample(volume[None], coordinates[None], mode, "border")[0]


def sample_smooth(volume: Tensor, coordinates: Tensor) -> Tensor:
    """`sample` of a volume that is smooth, taken at every second voxel of (A, B, C) and interpolated in between."""
    shape = tuple(coordinates.shape[1:])
    fewer = [size // 2 + 1 for size in shape]
    half = F.interpolate(coordinates[None], size=fewer, mode="trilinear", align_corners=True)
    return F.interpolate(sample(volume, half[0])[None], size=shape, mode="trilinear", align_corners=True)[0]
