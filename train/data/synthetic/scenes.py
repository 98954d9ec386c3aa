"""The scenes that both images of a generated pair show: made of noise alone, or from a template brain."""

from typing import Any

import torch
from torch import Tensor

from train.data.randomness import Randomness, Shape, identity, shape_of
from train.data.synthetic.deformation import deformation, linear
from train.data.synthetic.levels import highest, sample, sample_smooth
from train.data.synthetic.population import ALIKE, Population, happens
from train.data.synthetic.regions import body
from train.data.synthetic.sheets import Sheets
from train.data.synthetic.structures import blobs, structures_of
from train.data.synthetic.template import DEEPEST, Template


def _values(random: Randomness) -> tuple[float, float, float]:
    """Draw the values of fluid, grey and white matter: dark to bright as in T1 scans, or in any order."""
    if random.chance(0.85):
        return random.between(0.05, 0.35), random.between(0.45, 0.72), random.between(0.78, 1.0)
    values = [random.between(0.05, 0.3), random.between(0.4, 0.6), random.between(0.75, 1.0)]
    fluid, grey, white = (float(value) for value in random.numbers.permutation(values))
    return fluid, grey, white


def _inclusions(random: Randomness, shape: Shape, count: int) -> tuple[tuple[Tensor, float], ...]:
    """Draw inclusions of the core: level functions of blobs or thin sheets of noise, each with a value.

    Blobs are where the noise is high, sheets around its zero set.
    """
    structures = []
    for _ in range(count):
        noise = random.smooth(shape, random.between(10, 28))
        blob = random.chance(0.7)
        level = noise - random.between(0.6, 1.4) if blob else random.between(0.08, 0.2) - noise.abs()
        structures.append((level, random.between(0.05, 1.0)))
    return tuple(structures)


def _parcels(random: Randomness, shape: Shape) -> tuple[Tensor, int]:
    """Draw regions 20 to 45 voxels wide. Returns their numbers (I, J, K) from 1, and how many there are at most."""
    count, spacing = random.count(3, 8), random.between(20, 45)
    return highest(random.smooth(shape, spacing) for _ in range(count)) + 1, count


def _contrast(random: Randomness, labels: int) -> Tensor:
    """Draw the deviation of each label's value, (labels, 1); it is small in most scenes."""
    deviation = random.between(0, 0.03) if random.chance(0.88) else random.between(0.03, 0.15)
    return random.tensor(random.numbers.normal(0, deviation, (labels, 1)))


def _sheets(
    random: Randomness, white: Tensor, steep: float, grey: Tensor, depth: Tensor, shade: Tensor, **more: Any
) -> Sheets:
    shape = shape_of(depth)
    parcels, count = _parcels(random, shape)
    return Sheets(
        white=white,
        steep=steep,
        grey=grey,
        depth=depth,
        shade=shade,
        thickness=random.between(1.9, 3.3),
        parcels=parcels,
        parcel_count=count,
        inclusions=_inclusions(random, shape, random.count(0, 4)),
        values=_values(random),
        contrast=_contrast(random, 3 * count + 1),
        stripped=random.chance(0.7),
        fluid_depth=random.between(14, 30),
        softness=random.between(0.9, 1.6),
        **more,
    )


def shapes(random: Randomness, shape: Shape, population: Population) -> Sheets:
    """Return a scene of noise: a random body whose core is folded by noise, more strongly near the surface."""
    depth = body(random, shape)
    amplitude = random.between(2, 8) * torch.exp(-(depth - 8).clamp(min=0) / random.between(8, 25))
    white = depth - random.between(4, 10) + amplitude * random.smooth(shape, random.between(6, 13))
    white = white + 0.3 * amplitude * random.smooth(shape, random.between(4, 7))
    shade = 0.15 * random.smooth(shape, random.between(10, 25)).clamp(-2, 2)
    grey = torch.full_like(white, -1.0)
    structures = blobs(random, depth) if happens(random, population.structures) else None
    return _sheets(random, 0.12 * white, 0.05, grey, depth, shade, structures=structures)


def brain(random: Randomness, shape: Shape, template: Template, population: Population) -> Sheets:
    """Return a scene from a random window of the template: rescaled, deformed, its white core folded anew by noise."""
    coordinates, voxel = _window(random, shape, template)
    image, grey, white, depth = sample(template.maps, coordinates)
    depth = (DEEPEST * depth - 1) / voxel
    more: dict[str, Any] = {}
    if population != ALIKE:  # pairs of ALIKE stay bit for bit those that the shipped weights were trained on
        outside, levels = _surroundings(template, coordinates)
        depth = torch.where(depth > 0, depth, -outside / voxel)
        more["template"] = torch.stack((image, grey, white))
        if happens(random, population.structures):
            more["structures"] = structures_of(random, levels / voxel)
    # Deep white matter stays intact; nearer the surface, noise decides where the sheet folds.
    folding = random.between(0.05, 0.4) * random.smooth(shape, random.between(5, 12))
    white = white - random.between(0.4, 0.6) + folding
    nuclei = grey - random.between(0.6, 0.9) - 0.15 * (12 - depth).clamp(0, 12) / 12
    shade = random.between(0, 1.2) * ((0.9 - image) / 0.3).clamp(-0.3, 1)
    return _sheets(random, white, 0.06, nuclei, depth, shade, **more)


def _window(random: Randomness, shape: Shape, template: Template) -> tuple[Tensor, float]:
    """Return a scene's coordinates in the template, (3, I, J, K) in its voxels, and the scene's voxel size in them."""
    size = random.tensor(template.shape).view(3, 1, 1, 1)
    window = random.tensor(shape).view(3, 1, 1, 1)
    voxel = random.between(1.6, 2.1) if random.chance(0.15) else random.between(0.85, 1.2)
    centre = size / 2 + (size - 0.75 * voxel * window).clamp(min=0) / 2 * random.vector(-1, 1)
    centred = identity(shape, random.device) - window / 2
    if random.chance(0.5):
        centred = centred * random.tensor([-1, 1, 1]).view(3, 1, 1, 1)
    matrix = linear(random, 0.05) * voxel
    return torch.einsum("ab,bijk->aijk", matrix, centred + deformation(random, shape)) + centre, voxel


def _surroundings(template: Template, coordinates: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distance from the brain, also beyond the template's box, and the levels of structures.

    Both are in voxels of the template.
    """
    outside, *levels = sample_smooth(template.levels, coordinates)
    last = coordinates.new_tensor(template.shape).view(3, 1, 1, 1) - 1
    beyond = coordinates - torch.minimum(coordinates.clamp(min=0), last)
    return outside + beyond.square().sum(0).sqrt(), torch.stack(levels)
