"""How good a network is on pairs that it was not trained on: by itself (RP-Net), and in the loop that will drive it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from runtime.geometry.jacobian import folded_share, sd_log_jacobian
from runtime.images.overlap import mean_dice
from runtime.loop import iterstop
from runtime.loop.schedules import fixed_schedule, iterstop_schedule
from train.data.image_pair import ImagePair
from train.model import fields
from train.model.fields import warp
from train.model.loop import TorchPair
from train.model.network import RPNet
from train.steps.distributed import Processes
from train.steps.numerics import Numerics

SIMILARITY = "ncc"
# As engine sets are published: delta 0.005, keep, at most 10 iterations per level.
SCHEDULES = {"rpnet": fixed_schedule((1, 1, 1, 1)), "iterstop": iterstop_schedule(SIMILARITY)}


@dataclass(frozen=True)
class Quality:
    """Of one pair's registration, or means over several.

    ncc: of fixed and warped. dice: mean over the labels that both maps hold, None without maps. folded: share of
    voxels. sd_log_jacobian: standard deviation of the logarithm of the Jacobian determinant where the fixed image is
    above 0, how rough the flow is. iterations: kept at levels 4, 3, 2, 1.
    """

    ncc: float
    dice: float | None
    folded: float
    sd_log_jacobian: float
    iterations: tuple[float, float, float, float]

    @property
    def value(self) -> float:
        """Dice, or NCC without maps."""
        return self.ncc if self.dice is None else self.dice


@dataclass(frozen=True)
class Score:
    """Means over the validation pairs of RP-Net, one iteration per level, and of IterStop with the default schedule.

    groups: IterStop's Dice (NCC without label maps) by group of pairs, where they have any.
    """

    rpnet: Quality
    iterstop: Quality
    groups: Mapping[str, float] = field(default_factory=dict)

    @property
    def value(self) -> float:
        """What the best checkpoint is chosen by: IterStop's Dice where there are labels, else its NCC."""
        return self.iterstop.value

    @property
    def name(self) -> str:
        """What `value` is."""
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
    """Register every pair both ways; several processes share the pairs, and all of them get the score.

    Args:
        network: on the device of `numerics`.
        pairs: on the CPU, sizes multiples of 8.
        groups: that of each pair, or nothing.
        show: called in the first process with the first pair and its flow (3, I, J, K) of IterStop.
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
    """Quality and flow (1, 3, I, J, K) by schedule; both images are encoded once."""
    found = {}
    with numerics.autocast():
        ready = TorchPair(network, pair.moving[None, None], pair.fixed[None, None], SIMILARITY, fields=fields)
        for name, schedule in SCHEDULES.items():
            result = iterstop.run(ready, schedule)
            found[name] = _quality(pair, result), result.flow
    return found


def _quality(pair: ImagePair, result: iterstop.Iterations) -> Quality:
    volume, brain = fields.determinant(result.flow).cpu().numpy(), (pair.fixed > 0).cpu().numpy()
    return Quality(
        result.similarity,
        _dice(pair, result.flow),
        folded_share(volume),
        sd_log_jacobian(volume, brain),
        result.counts[0],
    )


def _dice(pair: ImagePair, flow: Tensor) -> float | None:
    if not pair.labelled:
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
