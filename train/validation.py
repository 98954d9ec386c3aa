"""How good a network is on pairs that it was not trained on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from runtime.geometry.overlap import mean_dice
from runtime.geometry.similarity import ncc
from train.fields import folded_share, warp
from train.network import RPNet


@dataclass(frozen=True)
class ValidationPair:
    """Two images (I, J, K) in [0, 1] on one grid and, where known, their integer label maps, 0 = nothing."""

    moving: Tensor
    fixed: Tensor
    moving_labels: Tensor | None = None
    fixed_labels: Tensor | None = None


@dataclass(frozen=True)
class Score:
    """Means over the validation pairs. ncc: of fixed and warped; dice: None without labels; folded: share of voxels."""

    ncc: float
    dice: float | None
    folded: float

    @property
    def value(self) -> float:
        """What the best checkpoint is chosen by: Dice where there are labels, else NCC."""
        return self.ncc if self.dice is None else self.dice

    def row(self) -> tuple[str, str, str]:
        return f"{self.ncc:.5f}", "" if self.dice is None else f"{self.dice:.5f}", f"{self.folded:.6f}"


def _register(network: RPNet, moving: Tensor, fixed: Tensor, device: torch.device, precision: str) -> Tensor:
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        return network(moving[None, None].to(device), fixed[None, None].to(device)).cpu()


@torch.no_grad()
def validate(network: RPNet, pairs: Sequence[ValidationPair], device: torch.device, precision: str) -> Score:
    """RP-Net (one iteration per level) on every pair."""
    scores, dices, folds = [], [], []
    for pair in pairs:
        flow = _register(network, pair.moving, pair.fixed, device, precision)
        scores.append(ncc(pair.fixed.numpy(), warp(pair.moving[None, None], flow)[0, 0].numpy()))
        folds.append(folded_share(flow))
        if pair.moving_labels is not None and pair.fixed_labels is not None:
            warped = warp(pair.moving_labels[None, None].float(), flow, mode="nearest")[0, 0].round().long()
            dices.append(mean_dice(pair.fixed_labels.numpy(), warped.numpy()))
    return Score(float(np.mean(scores)), float(np.mean(dices)) if dices else None, float(np.mean(folds)))
