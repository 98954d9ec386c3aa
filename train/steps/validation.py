"""Scores of a network on pairs that it was not trained on: as RP-Net alone, and in the IterStop loop of the engines."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from runtime.geometry.jacobian import folded_share, sd_log_jacobian
from runtime.images.overlap import mean_dice
from runtime.loop import iterstop
from runtime.loop.schedules import fixed_schedule
from runtime.loop.stop_rules import iterstop_schedule
from runtime.loop.trace import Iterations
from train.data.image_pair import ImagePair
from train.model import fields
from train.model.fields import warp
from train.model.loop import TorchPair
from train.model.network import RPNet
from train.steps.distributed import Processes
from train.steps.numerics import Numerics

SIMILARITY = "ncc"
# IterStop with the settings of published engine sets: delta 0.005, keep, at most 10 iterations per level.
SCHEDULES = {"rpnet": fixed_schedule((1, 1, 1, 1)), "iterstop": iterstop_schedule(SIMILARITY)}


@dataclass(frozen=True)
class Quality:
    """The quality of one pair's registration, or means over several.

    Attributes:
        ncc: NCC of fixed and warped image.
        dice: mean Dice over the labels in both maps, or None without maps.
        folded: share of folded voxels.
        sd_log_jacobian: roughness of the flow: standard deviation of the logarithm of the Jacobian determinant where
            the fixed image is above 0.
        iterations: iterations kept at levels 4, 3, 2, 1.
    """

    ncc: float
    dice: float | None
    folded: float
    sd_log_jacobian: float
    iterations: tuple[float, ...]

    @property
    def value(self) -> float:
        """The Dice, or the NCC without label maps."""
        return self.ncc if self.dice is None else self.dice


@dataclass(frozen=True)
class Score:
    """The mean quality over the validation pairs.

    Attributes:
        rpnet: of RP-Net, one iteration per level.
        iterstop: of IterStop with the default schedule.
        groups: IterStop's Dice (NCC without label maps) by group of pairs, if there are groups.
    """

    rpnet: Quality
    iterstop: Quality
    groups: Mapping[str, float] = field(default_factory=dict)

    @property
    def value(self) -> float:
        """The value that the best checkpoint is chosen by: IterStop's Dice if there are labels, else its NCC."""
        return self.iterstop.value

    @property
    def name(self) -> str:
        """The name of the measure that `value` is."""
        return "NCC of IterStop" if self.iterstop.dice is None else "Dice of IterStop"


@torch.no_grad()
def validate(
    network: RPNet,
    pairs: Sequence[ImagePair],
    numerics: Numerics,
    processes: Processes | None = None,
    show: Callable[[ImagePair, Tensor], None] = lambda pair, flow: None,
    groups: Sequence[str] = (),
) -> Score:
    """Register every pair by both `SCHEDULES` and return the score.

    Several processes share the pairs, and each of them gets the same score.

    Args:
        network: the network, on the device of `numerics`.
        pairs: pairs on the CPU, sizes multiples of 8.
        numerics: numerics of the run.
        processes: the processes that share the pairs; None: this one alone.
        show: called in the first process with the first pair and its flow (3, I, J, K) of IterStop.
        groups: group of each pair, or empty.
    """
    processes, rows = processes or Processes(), []
    for number in range(processes.rank, len(pairs), processes.count):
        found = _register(network, pairs[number].map(lambda tensor: tensor.to(numerics.device)), numerics)
        if number == 0:
            show(pairs[0], found["iterstop"][1][0].cpu())
        rows.append((number, {name: quality for name, (quality, _) in found.items()}))
    qualities = [row for _, row in sorted(processes.gather(rows), key=lambda numbered: numbered[0])]
    by_group: dict[str, list[Quality]] = {}
    for group, row in zip(groups, qualities, strict=False):
        by_group.setdefault(group, []).append(row["iterstop"])
    means = {group: _mean(members).value for group, members in by_group.items() if group}
    return Score(**{name: _mean([row[name] for row in qualities]) for name in SCHEDULES}, groups=means)


def _register(network: RPNet, pair: ImagePair, numerics: Numerics) -> dict[str, tuple[Quality, Tensor]]:
    """Return quality and flow (1, 3, I, J, K) by schedule; each image is encoded only once."""
    found = {}
    with numerics.autocast():
        ready = TorchPair(network, pair.moving[None, None], pair.fixed[None, None], SIMILARITY, fields=fields)
        for name, schedule in SCHEDULES.items():
            result = iterstop.run(ready, schedule)
            found[name] = _quality(pair, result), result.flow
    return found


def _quality(pair: ImagePair, result: Iterations) -> Quality:
    volume, brain = fields.determinant(result.flow).cpu().numpy(), (pair.fixed > 0).cpu().numpy()
    return Quality(
        result.similarity,
        _dice(pair, result.flow),
        folded_share(volume),
        sd_log_jacobian(volume, brain),
        result.counts[0],
    )


def _dice(pair: ImagePair, flow: Tensor) -> float | None:
    if pair.moving_labels is None or pair.fixed_labels is None:
        return None
    warped = warp(pair.moving_labels[None, None].float(), flow, mode="nearest")[0, 0].round().int().cpu().numpy()
    fixed, moving = pair.fixed_labels.cpu().numpy(), pair.moving_labels.cpu().numpy()
    return mean_dice(fixed, warped, np.setdiff1d(np.intersect1d(fixed, moving), [0]))


def _mean(qualities: Sequence[Quality]) -> Quality:
    dices = [quality.dice for quality in qualities if quality.dice is not None]
    return Quality(
        ncc=float(np.mean([quality.ncc for quality in qualities])),
        dice=float(np.mean(dices)) if dices else None,
        folded=float(np.mean([quality.folded for quality in qualities])),
        sd_log_jacobian=float(np.mean([quality.sd_log_jacobian for quality in qualities])),
        iterations=tuple(np.mean([quality.iterations for quality in qualities], axis=0).tolist()),
    )
