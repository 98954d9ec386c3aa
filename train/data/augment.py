"""Random augmentation of pairs of real images, for training on few scans.

Each image is deformed, together with its label map, by its own small affine map and smooth elastic displacement, and
its intensities are changed; both images are mirrored alike. The changes depend only on a seed and an index and are
computed on the pair's device.
"""

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from runtime.errors import InputError
from train.data.image_pair import ImagePair
from train.data.randomness import Randomness, identity, shape_of
from train.model.fields import warp

_STREAM = 0x617567  # part of the seed: separates these random numbers from others drawn by seed and index


@dataclass(frozen=True)
class Augmentation:
    """Strengths of the random changes; 0 switches one off. Values are drawn for each image of each pair.

    Attributes:
        rotation: standard deviation of the angle about each axis, degrees.
        zoom: standard deviation of the logarithm of the scale along each axis.
        shear: standard deviation of the shear.
        shift: standard deviation of the shift along each axis, voxels.
        elastic: largest standard deviation of the smooth displacement, voxels.
        elastic_width: smallest and largest width of the displacement's bumps, voxels.
        gamma: standard deviation of the logarithm of the exponent applied to intensities.
        contrast: standard deviation of the logarithm of the factor that scales intensities about their mean.
        bias: standard deviation of the logarithm of the smooth field that multiplies intensities.
        noise: largest standard deviation of the noise, in intensity.
        blur: largest standard deviation of the Gaussian blur, voxels.
        flip: probability that both images are mirrored, for each of the `flip_axes`.
        flip_axes: axes that may be mirrored; 0 is left to right.
    """

    rotation: float = 5.0
    zoom: float = 0.05
    shear: float = 0.02
    shift: float = 2.0
    elastic: float = 1.5
    elastic_width: tuple[float, float] = (16.0, 48.0)
    gamma: float = 0.15
    contrast: float = 0.1
    bias: float = 0.1
    noise: float = 0.03
    blur: float = 0.8
    flip: float = 0.5
    flip_axes: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        for name in _STRENGTHS:
            if not 0 <= getattr(self, name) < np.inf:
                raise InputError(f"augment: {name} is {getattr(self, name)}, expected 0 or more")
        low, high = self.elastic_width
        if not 1 <= low <= high:
            raise InputError(f"augment: elastic_width is {low} to {high}, expected two widths in voxels, 1 or more")
        if self.flip > 1:
            raise InputError(f"augment: flip is {self.flip}, expected a probability, 0 to 1")
        if not set(self.flip_axes) <= {0, 1, 2}:
            raise InputError(f"augment: flip_axes are {self.flip_axes}, expected some of 0, 1, 2")

    def scaled(self, strength: float) -> "Augmentation":
        """Return these options with all changes `strength` times as large; flips stay as likely (0: never)."""
        stronger = {name: strength * getattr(self, name) for name in _STRENGTHS if name != "flip"}
        return replace(self, **stronger, flip=self.flip if strength else 0.0)


_STRENGTHS = tuple(field.name for field in fields(Augmentation) if field.type in (float, "float"))


def augment(pair: ImagePair, options: Augmentation, seed: int, index: int) -> ImagePair:
    """Return a changed pair; label maps, if present, are deformed with their images.

    Args:
        pair: images (I, J, K) in [0, 1].
        options: strengths of the changes.
        seed: seed of the run.
        index: index of the pair in the run; seed and index determine the changes.
    """
    numbers = np.random.default_rng([seed, index, _STREAM])
    draw = Randomness(numbers, pair.moving.device)
    flipped = [axis for axis in options.flip_axes if draw.chance(options.flip)]
    moving, moving_labels = _changed(pair.moving, pair.moving_labels, options, draw)
    fixed, fixed_labels = _changed(pair.fixed, pair.fixed_labels, options, draw)
    return ImagePair(moving, fixed, moving_labels, fixed_labels).map(lambda volume: volume.flip(flipped).contiguous())


def _changed(
    image: Tensor, labels: Tensor | None, options: Augmentation, draw: Randomness
) -> tuple[Tensor, Tensor | None]:
    flow = displacement(shape_of(image), options, draw)[None]
    image = intensities(warp(image[None, None], flow)[0, 0], options, draw)
    if labels is not None:
        labels = warp(labels[None, None].float(), flow, mode="nearest")[0, 0].to(labels.dtype)
    return image, labels


def displacement(shape: tuple[int, int, int], options: Augmentation, draw: Randomness) -> Tensor:
    """Return a random affine map about the centre plus an elastic displacement, as a flow (3, I, J, K) in voxels."""
    matrix, shift = affine(options, draw), draw.tensor(draw.numbers.normal(0, options.shift, 3))
    centre = draw.tensor((np.array(shape) - 1) / 2).view(3, 1, 1, 1)
    flow = torch.einsum("ab,bijk->aijk", matrix - draw.tensor(np.eye(3)), identity(shape, draw.device) - centre)
    flow = flow + shift.view(3, 1, 1, 1)
    width, size = draw.between(*options.elastic_width), draw.between(0, options.elastic)
    return flow + size * torch.stack([draw.smooth(shape, width) for _ in range(3)]) if size else flow


def affine(options: Augmentation, draw: Randomness) -> Tensor:
    """Return a random 3x3 matrix: zoom along each axis, then shear, then rotations about the axes."""
    turns = np.deg2rad(draw.numbers.normal(0, options.rotation, 3))
    matrix = np.diag(np.exp(draw.numbers.normal(0, options.zoom, 3)))
    matrix = (np.eye(3) + np.triu(draw.numbers.normal(0, options.shear, (3, 3)), 1)) @ matrix
    for axis, (cosine, sine) in enumerate(zip(np.cos(turns), np.sin(turns), strict=True)):
        a, b = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[a, a], turn[a, b], turn[b, a], turn[b, b] = cosine, -sine, sine, cosine
        matrix = turn @ matrix
    return draw.tensor(matrix)


def intensities(image: Tensor, options: Augmentation, draw: Randomness) -> Tensor:
    """Return an image (I, J, K) in [0, 1] with changed intensities; zeros stay 0 except at blurred edges."""
    image = blurred(image, draw.between(0, options.blur))
    inside = image > 0
    exponent, factor = np.exp(draw.normal(options.gamma)), np.exp(draw.normal(options.contrast))
    image = image.clamp(0, 1) ** exponent
    # NumPy's order of summation is fixed; torch's depends on the number of threads, which is 1 in workers.
    mean = float(image.cpu().numpy().sum(dtype=np.float64)) / max(int(inside.sum()), 1)
    image = mean + factor * (image - mean)
    bias, noise, width = draw.normal(options.bias), draw.between(0, options.noise), draw.between(30, 80)
    if bias:
        image = image * torch.exp(bias * draw.smooth(shape_of(image), width))
    if noise:
        image = image + noise * draw.grain(shape_of(image))
    return torch.where(inside, image, 0).clamp(0, 1)


def blurred(image: Tensor, deviation: float) -> Tensor:
    """Return an image (I, J, K) blurred by a Gaussian of `deviation` voxels, cut off at 3 deviations and normalised.

    At the border the weights inside the image are renormalised; below 0.2 voxels nothing is done.
    """
    if deviation < 0.2:
        return image
    for axis in range(3):
        index = torch.arange(image.shape[axis], device=image.device, dtype=torch.float32)
        distance = (index[:, None] - index).abs() / deviation
        weights = torch.exp(-(distance**2) / 2) * (distance <= 3)
        weights = weights / weights.sum(dim=1, keepdim=True)
        image = torch.tensordot(weights, image, dims=([1], [axis])).movedim(0, axis)
    return image
