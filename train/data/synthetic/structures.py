"""Deep structures of a scene: thalamus, basal ganglia, hippocampus and ventricles, or blobs that represent them."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from train.data.image_pair import FIRST_DEEP_LABEL
from train.data.randomness import Randomness, shape_of
from train.data.synthetic.deep_structures import DEEP_STRUCTURES, REACH
from train.data.synthetic.levels import edge
from train.data.synthetic.population import Side

CAPSULE = 2.0  # thickness of the white matter around an enclosed structure, voxels


@dataclass(frozen=True)
class Structures:
    """The deep structures of one scene; the first one is the ventricles.

    Attributes:
        levels: depth inside each structure's border, voxels, negative outside, (N, I, J, K).
        mixes: value of each structure between grey (0) and white matter (1); the first is not used.
        enclosed: whether each structure is surrounded by white matter; around the others the anatomy is unchanged.
    """

    levels: Tensor
    mixes: tuple[float, ...]
    enclosed: tuple[bool, ...]

    @property
    def ventricle(self) -> Tensor:
        return self.levels[0]

    @cached_property
    def capsule(self) -> Tensor:
        """The level function of the white matter around the enclosed structures."""
        inside = [level for level, enclosed in zip(self.levels, self.enclosed, strict=True) if enclosed]
        return torch.stack(inside).amax(0) + CAPSULE

    def painted(
        self,
        random: Randomness,
        image: Tensor,
        labels: Tensor,
        values: tuple[float, float, float],
        softness: float,
        side: Side,
    ) -> tuple[Tensor, Tensor]:
        """Return image and labels with the structures painted into them, the ventricles last.

        Args:
            random: source of randomness.
            image, labels: maps (I, J, K) to paint into.
            values: values of fluid, grey and white matter.
            softness: width of the borders, voxels.
            side: appearance of the image. Unless it is an average, borders are shifted by about 0.4 voxels; if it is
                `apart`, values differ more, jointly and one by one.
        """
        fluid, grey, white = values
        uneven = 0.0 if side.average else 0.3 * random.smooth(shape_of(image), random.between(6, 12))
        shift = random.normal(0.12) if side.apart else 0.0
        for number in (*range(1, len(self.levels)), 0):
            level = self.levels[number] + uneven + (0.0 if side.average else random.normal(0.4))
            mix = self.mixes[number] + shift + random.normal(0.1 if side.apart else 0.03)
            value = grey + mix * (white - grey) if number else fluid
            image = image + (value - image) * edge(level / softness)
            labels = labels.masked_fill(level > 0, FIRST_DEEP_LABEL + number)
        return image, labels


def structures_of(random: Randomness, levels: Tensor) -> Structures:
    """Return a template's structures with random values; `levels`, (N, I, J, K) voxels, are of `DEEP_STRUCTURES`."""
    mixes = tuple(random.between(*place.mix) for place in DEEP_STRUCTURES)
    return Structures(levels, mixes, tuple(place.enclosed for place in DEEP_STRUCTURES))


def blobs(random: Randomness, depth: Tensor) -> Structures:
    """Return two to five blobs of noise deep inside, the first of them fluid, with values from grey to nearly white.

    Args:
        random: source of randomness.
        depth: depth below the surface, voxels, (I, J, K).
    """
    shape = shape_of(depth)
    levels, count = [], random.count(2, 5)
    for _ in range(count):
        spacing = random.between(10, 22)
        noise = random.smooth(shape, spacing) - random.between(1.0, 1.8)
        levels.append(torch.minimum(noise * spacing / 2, depth - 12).clamp(-REACH, REACH))
    mixes = tuple(random.between(0, 0.95) for _ in range(count))
    return Structures(torch.stack(levels), mixes, (False, *(True for _ in range(count - 1))))
