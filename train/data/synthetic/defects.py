"""Defects that only one image of a pair shows: lesions, and residue of skull stripping around the brain."""

from dataclasses import replace

import torch
from torch import Tensor

from train.data.randomness import Randomness, identity, shape_of
from train.data.synthetic.levels import Painting, edge


def with_residue(random: Randomness, painting: Painting, depth: Tensor) -> Painting:
    """Add patches of a shell of dura and skull 1 to 5 voxels outside the brain, bright or grey and without label.

    Args:
        random: source of randomness.
        painting: the image to add them to.
        depth: depth below the brain's surface, voxels, negative outside, (I, J, K).
    """
    shape = shape_of(depth)
    middle, half = random.between(1.5, 3.5), random.between(0.7, 1.6)
    patches = 3 * (random.smooth(shape, random.between(12, 35)) - random.between(-0.3, 1.2))
    shell = torch.minimum(half - (depth + middle).abs(), patches)
    value = random.between(0.3, 1.1) + 0.12 * random.smooth(shape, random.between(3, 6))
    return _replaced(painting, shell, value.clamp(min=0.05))


def _replaced(painting: Painting, shell: Tensor, value: Tensor) -> Painting:
    """Return the painting with `value` wherever a voxel is outside the brain and inside the shell."""
    added = (shell > 0) & (painting.shown <= 0)
    return replace(
        painting,
        image=torch.where(added, value, painting.image),
        shown=torch.maximum(painting.shown, shell),
        labels=painting.labels.masked_fill(added, 0),
    )


def with_lesions(random: Randomness, painting: Painting, depth: Tensor, count: int) -> Painting:
    """Add uneven balls of bright or dark values anywhere inside the brain; labels are not changed."""
    coordinates, image, shape = identity(shape_of(depth), random.device), painting.image, shape_of(depth)
    uneven = random.smooth(shape, random.between(4, 8))
    for _ in range(count):
        centre = random.tensor([random.between(0.15, 0.85) * size for size in shape]).view(3, 1, 1, 1)
        radius = random.between(1.5, 7)
        ball = radius * (1 + 0.3 * uneven) - (coordinates - centre).square().sum(0).sqrt()
        inside = edge(torch.minimum(ball, depth - 2) / random.between(1, 3))
        image = image + (random.between(0, 1.1) - image) * inside
    return replace(painting, image=image)
