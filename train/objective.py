"""What a training step makes smaller: the loss of one pair under the flows the network finds for it."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from train.fields import warp
from train.image_pair import ImagePair
from train.losses import dice_loss, local_ncc, smoothness

COARSE_WINDOW = 5


@dataclass(frozen=True)
class Losses:
    """Means over a step's pairs, at level 1 but for `total`. dice: 1 - mean soft Dice, None where it is not asked for.

    total: smooth * smoothness - local_ncc + dice's share + the coarse levels' share.
    """

    total: float
    local_ncc: float
    smoothness: float
    dice: float | None = None

    @property
    def finite(self) -> bool:
        return math.isfinite(self.total)


@dataclass(frozen=True)
class Objective:
    """Weights and form of the loss; see `FitOptions`."""

    form: str
    smooth: float
    dice: float

    def __call__(self, pair: ImagePair, flows: dict[int, Tensor], coarse: float) -> tuple[Tensor, Tensor]:
        """The loss to descend, and its parts for the log (total, local NCC, smoothness, Dice loss), detached.

        Args:
            pair: images and labels (I, J, K).
            flows: of `RPNet.flows`, (1, 3, I, J, K) at level 1.
            coarse: weight of the coarse levels' loss.
        """
        moving, fixed = pair.moving[None, None], pair.fixed[None, None]
        similarity, rough = local_ncc(fixed, warp(moving, flows[1]), self.form), smoothness(flows[1])
        loss, overlap = self.smooth * rough - similarity, torch.zeros_like(rough)
        if coarse:
            loss = loss + coarse * self._coarse(moving, fixed, flows)
        if self.dice:
            overlap = dice_loss(pair.fixed_labels[None], pair.moving_labels[None], flows[1])
            loss = loss + self.dice * overlap
        return loss, torch.stack([part.detach().float() for part in (loss, similarity, rough, overlap)])

    def losses(self, parts: Tensor) -> Losses:
        """The parts as numbers."""
        total, similarity, rough, overlap = parts.tolist()
        return Losses(total, similarity, rough, overlap if self.dice else None)

    def _coarse(self, moving: Tensor, fixed: Tensor, flows: dict[int, Tensor]) -> Tensor:
        """Similarity and smoothness summed over levels 2, 3 and 4, on images averaged down to each level's size."""
        total = 0.0
        for level in (2, 3, 4):
            moving, fixed = F.avg_pool3d(moving, 2), F.avg_pool3d(fixed, 2)
            similarity = local_ncc(fixed, warp(moving, flows[level]), self.form, COARSE_WINDOW)
            total = total + self.smooth * smoothness(flows[level]) - similarity
        return total


def halved(pair: ImagePair) -> ImagePair:
    """A pair at half its size: images averaged, every second voxel of label maps."""

    def shrink(volume: Tensor) -> Tensor:
        return F.avg_pool3d(volume[None, None], 2)[0, 0] if volume.is_floating_point() else volume[::2, ::2, ::2]

    return pair.map(shrink)
