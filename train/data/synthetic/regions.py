"""Anatomies of uniform regions, and the random body that contains anatomies of noise."""

from dataclasses import dataclass

from torch import Tensor

from train.data.randomness import Randomness, Shape, identity, shape_of
from train.data.synthetic.levels import Painting, blur, highest
from train.data.synthetic.population import Side


@dataclass(frozen=True)
class Regions:
    """An anatomy of uniform regions, each where its score is the highest; black outside the body.

    Attributes:
        scores: one smooth field (I, J, K) per region.
        values: intensity of each region.
        depth: depth below the body's surface, voxels, negative outside, (I, J, K).
    """

    scores: tuple[Tensor, ...]
    values: Tensor
    depth: Tensor

    def paint(self, random: Randomness, side: Side) -> Painting:
        """Paint one image with small random differences of its own; nothing of `side` is used."""
        shape = shape_of(self.depth)
        own = [random.smooth(shape, random.between(5, 10)) for _ in range(3)]
        mixing = random.numbers.normal(0, 0.15, (len(self.scores), 3))
        changes = (sum(float(w) * field for w, field in zip(row, own, strict=True)) for row in mixing)
        labels = highest(score + change for score, change in zip(self.scores, changes, strict=True))
        image = self.values[labels] + 0.03 * own[0]
        depth = self.depth + 0.5 * own[1]
        return Painting(blur(image, 0.25), depth, labels + 1)


def regions(random: Randomness, shape: Shape) -> Regions:
    """Return a random scene of regions of all sizes with random values."""
    spacings = [random.between(7, 30) for _ in range(random.count(5, 14))]
    scores = tuple(random.smooth(shape, spacing) for spacing in spacings)
    return Regions(scores, random.tensor(random.numbers.uniform(0.1, 1.0, len(scores))), body(random, shape))


def body(random: Randomness, shape: Shape) -> Tensor:
    """Return the depth in voxels below the surface of a smooth random body that fills the grid or lies within it."""
    whole = random.chance(0.25)
    radii = random.vector(*((30, 50) if whole else (50, 85)))
    half = random.tensor([size / 2 for size in shape]).view(3, 1, 1, 1)
    centre = half + (radii - (28 if whole else 10)).clamp(min=4) * random.vector(-1, 1)
    depth = (1 - ((identity(shape, random.device) - centre) / radii).square().sum(0).sqrt()) * radii.mean()
    return depth + 4 * random.smooth(shape, random.between(25, 45)) + random.smooth(shape, random.between(10, 16))
