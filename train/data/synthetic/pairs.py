"""Generated pairs: one scene painted twice, each time under its own smooth deformation."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from runtime.errors import InputError
from runtime.geometry.grid import is_network_shape
from runtime.images.intensity import PercentileRule
from train.data.image_pair import ImagePair
from train.data.randomness import Randomness, Shape, identity
from train.data.synthetic.deformation import deformation
from train.data.synthetic.levels import Painting, sample
from train.data.synthetic.population import ALIKE, Population, Side
from train.data.synthetic.regions import Regions, regions
from train.data.synthetic.scanner import scan
from train.data.synthetic.scenes import brain, shapes
from train.data.synthetic.sheets import Sheets
from train.data.synthetic.template import Template

MARGIN = 12
TEMPLATE_SHARE = 0.75
REGIONS_SHARE = 0.25
SMALLEST_FOREGROUND = 0.2
_ATTEMPTS = 20


@dataclass(frozen=True)
class GeneratedPairs:
    """An endless sequence of generated pairs. A pair depends only on the seed, its index and the type of the device.

    Attributes:
        shape: shape of the images (I, J, K), multiples of 8.
        seed: seed of the run.
        template: see `load_template`; None: scenes of noise alone.
        device: the device on which pairs are made.
        population: the differences between the images of a pair: `ALIKE`, `VARIED` or another.
    """

    shape: Shape
    seed: int
    template: Template | None = None
    device: torch.device | str = "cpu"
    population: Population = ALIKE
    _latest: dict = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not is_network_shape(self.shape):
            raise InputError(f"shape: got {self.shape}, expected three multiples of 8")

    def scene(self, random: Randomness) -> Sheets | Regions:
        i, j, k = self.shape
        shape = (i + 2 * MARGIN, j + 2 * MARGIN, k + 2 * MARGIN)
        if self.template is not None and random.chance(TEMPLATE_SHARE):
            return brain(random, shape, self.template, self.population)
        return regions(random, shape) if random.chance(REGIONS_SHARE) else shapes(random, shape, self.population)

    def pair(self, index: int) -> ImagePair:
        """Return the pair of an index; an odd one is the pair before with its images exchanged.

        This halves the work and makes the two sides equivalent.
        """
        if index // 2 not in self._latest:
            self._latest.clear()
            self._latest[index // 2] = self._make(index // 2)
        pair = self._latest[index // 2]
        return pair.swapped() if index % 2 else pair

    def _make(self, index: int) -> ImagePair:
        """Make two images of one scene; draw another scene if most of the window is empty."""
        for attempt in range(_ATTEMPTS):
            random = Randomness(np.random.default_rng([self.seed, index, attempt]), torch.device(self.device))
            scene, sides = self.scene(random), self.population.sides(random)
            (first, first_labels), (second, second_labels) = (
                acquire(random, scene.paint(random, side), self.shape, side) for side in sides
            )
            if min((image > 0).float().mean() for image in (first, second)) > SMALLEST_FOREGROUND:
                break
        return ImagePair(first, second, first_labels, second_labels)


def acquire(random: Randomness, painting: Painting, shape: Shape, side: Side) -> tuple[Tensor, Tensor]:
    """Return image in [0, 1] and labels, (I, J, K) each, of the middle `shape` voxels of a painted scene.

    The scene is deformed, scanned and normalised; labels are deformed with it.
    """
    coordinates = identity(shape, random.device) + side.bending * deformation(random, shape) + MARGIN
    if painting.motion is not None:
        coordinates = coordinates - sample(painting.motion, coordinates)
    image, shown = sample(torch.stack((painting.image, painting.shown)), coordinates)
    labels = sample(painting.labels[None].float(), coordinates, "nearest")[0].int()
    image = scan(random, image.clamp(min=0), side.apart)
    image = image.clamp(min=1e-3).masked_fill(shown <= 0, 0)
    return _normalised(image), labels.masked_fill(shown <= 0, 0)


def _normalised(image: Tensor) -> Tensor:
    """Normalise an image by the intensity rule for MRI; an empty image stays empty."""
    if not image.any():
        return image
    return torch.from_numpy(PercentileRule().normalise(image.cpu().numpy())).to(image.device)
