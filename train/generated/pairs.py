"""Generated pairs: one scene, painted twice, each time seen through its own smooth deformation."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from runtime.geometry.errors import InputError
from runtime.geometry.grid import is_network_shape
from runtime.geometry.intensity import PercentileRule
from train.generated.deformation import deformation
from train.generated.scene import Painting, Regions, Sheets, blur, brain, regions, sample, shapes
from train.generated.template import Template
from train.image_pair import ImagePair
from train.randomness import Randomness, Shape, identity

MARGIN = 12
TEMPLATE_SHARE = 0.75
REGIONS_SHARE = 0.25
THICK_SLICES_SHARE = 0.15
SMALLEST_FOREGROUND = 0.2
_ATTEMPTS = 20


@dataclass(frozen=True)
class GeneratedPairs:
    """Endless generated pairs. shape: the window (I, J, K), multiples of 8; template: see `load_template`.

    Pair `index` depends on the seed, `index` and the kind of `device`, where it is made, alone.
    """

    shape: Shape
    seed: int
    template: Template | None = None
    device: torch.device | str = "cpu"
    _latest: dict = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not is_network_shape(self.shape):
            raise InputError(f"shape: got {self.shape}, expected three multiples of 8")

    def scene(self, random: Randomness) -> Sheets | Regions:
        shape = tuple(size + 2 * MARGIN for size in self.shape)
        if self.template is not None and random.chance(TEMPLATE_SHARE):
            return brain(random, shape, self.template)
        return regions(random, shape) if random.chance(REGIONS_SHARE) else shapes(random, shape)

    def pair(self, index: int) -> ImagePair:
        """An odd index is the pair before it the other way round: half the work, and neither side is special."""
        if index // 2 not in self._latest:
            self._latest.clear()
            self._latest[index // 2] = self._make(index // 2)
        pair = self._latest[index // 2]
        return pair.swapped() if index % 2 else pair

    def _make(self, index: int) -> ImagePair:
        """Two images of one scene; scenes that leave most of the window empty are drawn again."""
        for attempt in range(_ATTEMPTS):
            random = Randomness(np.random.default_rng([self.seed, index, attempt]), torch.device(self.device))
            scene = self.scene(random)
            (first, first_labels), (second, second_labels) = (
                acquire(random, scene.paint(random), self.shape) for _ in range(2)
            )
            if min((image > 0).float().mean() for image in (first, second)) > SMALLEST_FOREGROUND:
                break
        return ImagePair(first, second, first_labels, second_labels)


def acquire(random: Randomness, painting: Painting, shape: Shape) -> tuple[Tensor, Tensor]:
    """Image in [0, 1] and labels of a painted scene as a scanner sees its middle `shape` voxels, (I, J, K) each."""
    coordinates = identity(shape, random.device) + deformation(random, shape) + MARGIN
    image, shown = sample(torch.stack((painting.image, painting.shown)), coordinates)
    labels = sample(painting.labels[None].float(), coordinates, "nearest")[0].int()
    image = _scan(random, image.clamp(min=0))
    image = image.clamp(min=1e-3).masked_fill(shown <= 0, 0)
    return _normalised(image), labels.masked_fill(shown <= 0, 0)


def _scan(random: Randomness, image: Tensor) -> Tensor:
    """Blur, thick slices, contrast, shading and noise."""
    shape = tuple(image.shape)
    image = blur(image, random.between(0, 0.25))
    if random.chance(THICK_SLICES_SHARE):
        image = blur(image, random.between(0.3, 2 / 3), (random.count(0, 2),))
    image = image ** random.between(0.85, 1.18)
    image = image * (1 + random.between(0, 0.1) * random.smooth(shape, random.between(35, 70)))
    return image + random.between(0, 0.04) * random.grain(shape)


def _normalised(image: Tensor) -> Tensor:
    """By the intensity rule for MRI; an empty image stays empty."""
    if not image.any():
        return image
    return torch.from_numpy(PercentileRule().normalise(image.cpu().numpy())).to(image.device)
