"""The objective of a training step: the loss of the flows found for a pair, in one direction or both."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from train.data.image_pair import ImagePair, is_deep
from train.loss.terms import bending, dice_loss, inverse_consistency, local_ncc, log_jacobian, smoothness
from train.model.fields import warp

COARSE_WINDOW = 5


@dataclass(frozen=True)
class Losses:
    """Means over the pairs of a step; all but `total` are at level 1. None: the term has no weight.

    Attributes:
        total: weighted sum of the terms, with weight -1 of `local_ncc`, plus the loss of the coarse levels.
        local_ncc: local correlation.
        smoothness: smoothness of the flow.
        dice: 1 - mean soft Dice.
        bending, log_jacobian, inverse_consistency: see `train.loss.terms`.
    """

    total: float
    local_ncc: float
    smoothness: float
    dice: float | None = None
    bending: float | None = None
    log_jacobian: float | None = None
    inverse_consistency: float | None = None

    @property
    def finite(self) -> bool:
        return math.isfinite(self.total)


@dataclass(frozen=True)
class Objective:
    """The form and weights of the loss; see `FitOptions`."""

    form: str
    smooth: float
    dice: float = 0.0
    dice_labels: str = "all"
    bending: float = 0.0
    log_jacobian: float = 0.0
    inverse_consistency: float = 0.0

    def __call__(
        self, ways: Sequence[ImagePair], flows: dict[int, Tensor], coarse: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of a pair, as a mean over `ways`.

        Args:
            ways: a pair, or a pair and the same with its images exchanged; images and labels are (I, J, K).
            flows: flows of the network by level, (ways, 3, I, J, K) at level 1.
            coarse: weight of the coarse levels' loss.

        Returns:
            The loss to minimise, and its detached terms by the names of `Losses`, without terms that have no weight.
        """
        moving, fixed = (torch.stack([getattr(way, side) for way in ways]) for side in ("moving", "fixed"))
        moving, fixed, flow = moving[:, None], fixed[:, None], flows[1]
        parts = {"local_ncc": local_ncc(fixed, warp(moving, flow), self.form), "smoothness": smoothness(flow)}
        loss = self.smooth * parts["smoothness"] - parts["local_ncc"]
        if coarse:
            loss = loss + coarse * self._coarse(moving, fixed, flows)
        for name, term in self._further_terms(ways).items():
            if weight := getattr(self, name):
                parts[name] = term(flow)
                loss = loss + weight * parts[name]
        return loss, {name: part.detach().float() for name, part in ({"total": loss} | parts).items()}

    def _further_terms(self, ways: Sequence[ImagePair]) -> dict[str, Callable[[Tensor], Tensor]]:
        """Return the terms that are not in the paper, as functions of level 1's flow, by the name of their weight."""

        def overlap(flow: Tensor) -> Tensor:
            maps = [(self._compared(way.fixed_labels), self._compared(way.moving_labels)) for way in ways]
            terms = (dice_loss(f[None], m[None], found) for (f, m), found in zip(maps, flow.split(1), strict=True))
            return cast(Tensor, sum(terms)) / len(maps)

        return {
            "dice": overlap,
            "bending": bending,
            "log_jacobian": log_jacobian,
            "inverse_consistency": inverse_consistency,
        }

    def _compared(self, labels: Tensor | None) -> Tensor:
        """Return a label map (I, J, K) with 0 instead of labels that the Dice loss ignores."""
        assert labels is not None  # a run with a Dice loss has only pairs with label maps
        return labels if self.dice_labels == "all" else labels.where(is_deep(labels), 0)

    def _coarse(self, moving: Tensor, fixed: Tensor, flows: dict[int, Tensor]) -> Tensor:
        """Compute the loss of levels 2 to 4: smoothness and similarity of images averaged down to each level's size."""
        total: Tensor | float = 0.0
        for level in (2, 3, 4):
            moving, fixed = F.avg_pool3d(moving, 2), F.avg_pool3d(fixed, 2)
            similarity = local_ncc(fixed, warp(moving, flows[level]), self.form, COARSE_WINDOW)
            total = total + self.smooth * smoothness(flows[level]) - similarity
        return cast(Tensor, total)


def halved(pair: ImagePair) -> ImagePair:
    """Return a pair at half its size: images averaged, every second voxel of label maps."""

    def shrink(volume: Tensor) -> Tensor:
        return F.avg_pool3d(volume[None, None], 2)[0, 0] if volume.is_floating_point() else volume[::2, ::2, ::2]

    return pair.map(shrink)
