"""What both images of a generated pair show, and how one of them is painted: an anatomy of sheets, or of regions.

An anatomy is described by level functions: smooth fields in voxels, positive inside, whose zero set is a border. The
second image of a pair is painted from the same fields with small changes of its own, so that folds come and go as they
do from one person to the next.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from train import textbook
from train.generated.deformation import deformation, linear
from train.generated.template import DEEPEST, Template
from train.randomness import Randomness, Shape, identity


@dataclass(frozen=True)
class Painting:
    """One image of a scene on the scene's grid, (I, J, K) each.

    image: values in about [0, 1]. shown: level function, positive where they are not black. labels: from 1, also of
    what is not shown.
    """

    image: Tensor
    shown: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Sheets:
    """An anatomy of a folded grey sheet about a white core, with deep structures, in fluid. Maps are (I, J, K).

    white: level function of the core, about 0.5 deep inside; steep: the slope per voxel below which it is not believed.
    grey: level function of what is grey without being sheet, such as deep nuclei.
    depth: voxels below the outer surface, negative outside.
    shade: how far the core's value has gone to that of grey matter, about 0 to 1.
    thickness: of the sheet, voxels.
    parcels: int64, region of each voxel, 1 to `parcel_count`.
    deep: level function and value of structures inside the core.
    values: of fluid, grey and white matter. contrast: (labels, 1), what is added to the value of each label.
    stripped: whether the fluid less than `fluid_depth` below the surface is black, as skull stripping often leaves it.
    softness: width of the borders, voxels.
    """

    white: Tensor
    steep: float
    grey: Tensor
    depth: Tensor
    shade: Tensor
    thickness: float
    parcels: Tensor
    parcel_count: int
    deep: tuple[tuple[Tensor, float], ...]
    values: tuple[float, float, float]
    contrast: Tensor
    stripped: bool
    fluid_depth: float
    softness: float

    def paint(self, random: Randomness) -> Painting:
        """One image: the shared anatomy with its own small differences."""
        shape = tuple(self.depth.shape)
        white = self.white + random.between(0.15, 0.4) * random.smooth(shape, random.between(4, 10))
        core = distance(white, self.steep)
        thickness = self.thickness + random.normal(0.25) + 0.3 * random.smooth(shape, random.between(8, 20))
        nuclei = 8 * (self.grey + random.between(0, 0.08) * random.smooth(shape, random.between(6, 12)))
        matter = torch.maximum(core + thickness, nuclei)
        is_white, is_matter = edge(core / self.softness), edge(matter / self.softness)

        fluid, grey, bright = (value + random.normal(0.02) for value in self.values)
        bright = bright + (grey - bright) * self.shade
        image = fluid + is_matter * (grey - fluid) + is_white * (bright - grey)
        labels = self._labels(core, matter)
        image = image + F.embedding(labels, self.contrast)[..., 0]
        for number, (level, value) in enumerate(self.deep, start=1):
            inside = edge(level * 4) * is_white
            image = image + (value - image) * inside
            labels = torch.where(inside > 0.5, 3 * self.parcel_count + number, labels)
        depth = self.depth + random.between(0, 0.6) * random.smooth(shape, random.between(6, 16))
        shown = self._shown(random, depth, matter)
        return Painting(image, shown, labels)

    def _labels(self, core: Tensor, matter: Tensor) -> Tensor:
        """Region times tissue: fluid 1..P, grey P+1..2P, white 2P+1..3P."""
        tissue = (matter > 0).long() + (core > 0).long()
        return tissue * self.parcel_count + self.parcels

    def _shown(self, random: Randomness, depth: Tensor, matter: Tensor) -> Tensor:
        """Positive where the image is not black: the brain, with the fluid about it or stripped of it."""
        if not self.stripped:
            return depth
        deep = depth - self.fluid_depth - 2 * random.smooth(tuple(depth.shape), 20)
        return torch.minimum(depth, torch.maximum(matter + random.between(-0.4, 0.9), deep))


@dataclass(frozen=True)
class Regions:
    """An anatomy of uniform regions, each where its score is the highest; black outside the body.

    scores: a smooth field for each region. values: their intensities. depth: voxels below the surface.
    """

    scores: tuple[Tensor, ...]
    values: Tensor
    depth: Tensor

    def paint(self, random: Randomness) -> Painting:
        shape = tuple(self.depth.shape)
        own = [random.smooth(shape, random.between(5, 10)) for _ in range(3)]
        mixing = random.numbers.normal(0, 0.15, (len(self.scores), 3))
        changes = (sum(float(w) * field for w, field in zip(row, own, strict=True)) for row in mixing)
        labels = highest(score + change for score, change in zip(self.scores, changes, strict=True))
        image = self.values[labels] + 0.03 * own[0]
        depth = self.depth + 0.5 * own[1]
        return Painting(blur(image, 0.25), depth, labels + 1)


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


def _values(random: Randomness) -> tuple[float, float, float]:
    """Fluid, grey, white: dark to bright as in T1 scans, or any three."""
    if random.chance(0.85):
        return random.between(0.05, 0.35), random.between(0.45, 0.72), random.between(0.78, 1.0)
    values = [random.between(0.05, 0.3), random.between(0.4, 0.6), random.between(0.75, 1.0)]
    return tuple(float(value) for value in random.numbers.permutation(values))


def _deep_structures(random: Randomness, shape: Shape, count: int) -> tuple[tuple[Tensor, float], ...]:
    """Blobs where noise is high, and thin sheets about the zero set of noise, with a value each."""
    structures = []
    for _ in range(count):
        noise = random.smooth(shape, random.between(10, 28))
        blob = random.chance(0.7)
        level = noise - random.between(0.6, 1.4) if blob else random.between(0.08, 0.2) - noise.abs()
        structures.append((level, random.between(0.05, 1.0)))
    return tuple(structures)


def _parcels(random: Randomness, shape: Shape) -> tuple[Tensor, int]:
    """Regions of about `spacing` voxels, numbered from 1."""
    count, spacing = random.count(3, 8), random.between(20, 45)
    return highest(random.smooth(shape, spacing) for _ in range(count)) + 1, count


def _contrast(random: Randomness, labels: int) -> Tensor:
    """What each region's value differs by, (labels, 1): little in most scenes."""
    deviation = random.between(0, 0.03) if random.chance(0.88) else random.between(0.03, 0.15)
    return random.tensor(random.numbers.normal(0, deviation, (labels, 1)))


def _sheets(random: Randomness, white: Tensor, steep: float, grey: Tensor, depth: Tensor, shade: Tensor) -> Sheets:
    shape = tuple(depth.shape)
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
        deep=_deep_structures(random, shape, random.count(0, 4)),
        values=_values(random),
        contrast=_contrast(random, 3 * count + 1),
        stripped=random.chance(0.7),
        fluid_depth=random.between(14, 30),
        softness=random.between(0.9, 1.6),
    )


def _body(random: Randomness, shape: Shape) -> Tensor:
    """Depth in voxels below the surface of a smooth random body that fills the grid or lies within."""
    whole = random.chance(0.25)
    radii = random.vector(*((30, 50) if whole else (50, 85)))
    half = random.tensor([size / 2 for size in shape]).view(3, 1, 1, 1)
    centre = half + (radii - (28 if whole else 10)).clamp(min=4) * random.vector(-1, 1)
    depth = (1 - ((identity(shape, random.device) - centre) / radii).square().sum(0).sqrt()) * radii.mean()
    return depth + 4 * random.smooth(shape, random.between(25, 45)) + random.smooth(shape, random.between(10, 16))


def shapes(random: Randomness, shape: Shape) -> Sheets:
    """A scene of noise: a random body whose core is folded by noise, more so near the surface."""
    depth = _body(random, shape)
    amplitude = random.between(2, 8) * torch.exp(-(depth - 8).clamp(min=0) / random.between(8, 25))
    white = depth - random.between(4, 10) + amplitude * random.smooth(shape, random.between(6, 13))
    white = white + 0.3 * amplitude * random.smooth(shape, random.between(4, 7))
    shade = 0.15 * random.smooth(shape, random.between(10, 25)).clamp(-2, 2)
    grey = torch.full_like(white, -1.0)
    return _sheets(random, 0.12 * white, 0.05, grey, depth, shade)


def regions(random: Randomness, shape: Shape) -> Regions:
    """A scene of regions of all sizes with random values."""
    spacings = [random.between(7, 30) for _ in range(random.count(5, 14))]
    scores = tuple(random.smooth(shape, spacing) for spacing in spacings)
    return Regions(scores, random.tensor(random.numbers.uniform(0.1, 1.0, len(scores))), _body(random, shape))


def brain(random: Randomness, shape: Shape, template: Template) -> Sheets:
    """A random window of the template, its voxels of another size, deformed, its white core folded anew by noise."""
    size = random.tensor(template.shape).view(3, 1, 1, 1)
    window = random.tensor(shape).view(3, 1, 1, 1)
    voxel = random.between(1.6, 2.1) if random.chance(0.15) else random.between(0.85, 1.2)
    centre = size / 2 + (size - 0.75 * voxel * window).clamp(min=0) / 2 * random.vector(-1, 1)
    centred = identity(shape, random.device) - window / 2
    if random.chance(0.5):
        centred = centred * random.tensor([-1, 1, 1]).view(3, 1, 1, 1)
    matrix = linear(random, 0.05) * voxel
    coordinates = torch.einsum("ab,bijk->aijk", matrix, centred + deformation(random, shape)) + centre
    image, grey, white, depth = sample(template.maps, coordinates)
    depth = (DEEPEST * depth - 1) / voxel
    # Deep white matter stays whole; nearer the surface noise decides where the sheet folds.
    folding = random.between(0.05, 0.4) * random.smooth(shape, random.between(5, 12))
    white = white - random.between(0.4, 0.6) + folding
    nuclei = grey - random.between(0.6, 0.9) - 0.15 * (12 - depth).clamp(0, 12) / 12
    shade = random.between(0, 1.2) * ((0.9 - image) / 0.3).clamp(-0.3, 1)
    return _sheets(random, white, 0.06, nuclei, depth, shade)
