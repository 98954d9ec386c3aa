"""The state of a training run: what one step changes, and what a checkpoint must hold to continue exactly."""

import copy
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from runtime.geometry.errors import InputError
from train.checkpoint import Checkpoint, load_checkpoint
from train.fields import warp
from train.losses import local_ncc, smoothness
from train.network import NetworkConfig, RPNet
from train.options import FitOptions
from train.sources import open_sources
from train.validation import Score, validate

LAST_RATE = 0.03
COARSE_WINDOW = 5
# oneDNN reads memory that it never wrote for bf16 weight gradients of maps with two slices along I (torch 2.13).
SMALLEST_BF16 = 24
_RECIPE = ("loss", "smooth", "steps", "minutes", "learning_rate", "schedule", "warmup", "clip", "average", "coarse")


@dataclass(frozen=True)
class Losses:
    """Of one step, at level 1 but for `total`: smooth * smoothness - local_ncc plus the coarse levels' share."""

    total: float
    local_ncc: float
    smoothness: float

    def row(self) -> tuple[str, str, str]:
        return f"{self.total:.5f}", f"{self.local_ncc:.5f}", f"{self.smoothness:.5f}"


class Run:
    """Network, optimiser, counters and sources of a run, new, started from other weights, or restored.

    Raises:
        InputError: what `FitOptions` names cannot be used, or last.pt is of another run.
    """

    def __init__(self, options: FitOptions) -> None:
        self.options = options
        self.device = options.chosen_device()
        self.step, self.seconds, self.best = 0, 0.0, -math.inf
        self.started_from: dict = {}
        saved = self._saved() if options.resume else None
        self.sources = open_sources(options)
        self.precision = self._precision()
        torch.manual_seed(options.seed)
        self.network = RPNet(NetworkConfig(res_blocks=options.res_blocks))
        if options.start is not None:
            self._start_from(load_checkpoint(options.start))
        self.network.to(self.device)
        if self.precision == "bf16":
            self.network.to(memory_format=torch.channels_last_3d)
        self.average = copy.deepcopy(self.network) if options.average else self.network
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=options.learning_rate)
        if saved is not None:
            self._restore(saved)

    def _precision(self) -> str:
        chosen = self.options.chosen_precision(self.device)
        if chosen == "fp32" or min(self.sources.shape) >= SMALLEST_BF16:
            return chosen
        if self.options.precision == "bf16":
            raise InputError(f"precision: bf16 needs sizes >= {SMALLEST_BF16}, got {self.sources.shape}; use fp32")
        return "fp32"

    def _start_from(self, start: Checkpoint) -> None:
        if start.config != self.network.config:
            raise InputError(f"start: {self.options.start} has {start.config}, expected {self.network.config}")
        self.network.load_state_dict(start.state)
        self.started_from = dict(start.provenance)

    def _saved(self) -> Checkpoint:
        path = self.options.output / "last.pt"
        saved = load_checkpoint(path)
        if saved.training is None:
            raise InputError(f"resume: {path} holds no training state; start a new run from it with `start`")
        different = self.options.differences(saved.training["options"])
        if different:
            raise InputError(f"resume: {path} was written with other options ({', '.join(different)}); give the same")
        return saved

    def _restore(self, saved: Checkpoint) -> None:
        training = saved.training
        self.average.load_state_dict(saved.state)
        self.network.load_state_dict(training["weights"])
        self.optimizer.load_state_dict(training["optimizer"])
        self.step, self.seconds, self.best = (training[name] for name in ("step", "seconds", "best"))
        self.started_from = saved.provenance.get("started_from", {})
        torch.set_rng_state(training["torch_rng"])

    def checkpoint(self, resumable: bool) -> Checkpoint:
        """Weights to use (the running mean, if there is one) and provenance; resumable: all that continuing needs."""
        config, state = self.network.config, self.average.state_dict()
        return Checkpoint(config, state, self.provenance(), self._training() if resumable else None)

    def _training(self) -> dict:
        return {
            "step": self.step,
            "seconds": self.seconds,
            "best": self.best,
            "options": self.options.as_dict(),
            "weights": {name: tensor.detach().cpu().contiguous() for name, tensor in self.network.state_dict().items()},
            "optimizer": self.optimizer.state_dict(),
            "torch_rng": torch.get_rng_state(),
        }

    def provenance(self) -> dict:
        """How the weights came to be, in plain types and without anything about the machine's folders."""
        options = self.options.as_dict()
        recipe = {name: options[name] for name in _RECIPE}
        return {
            "data": self.sources.description,
            "recipe": recipe | {"shape": list(self.sources.shape), "optimizer": "Adam", "batch": 1},
            "steps": self.step,
            "seconds": round(self.seconds, 1),
            "seed": self.options.seed,
            "device": self.device.type,
            "precision": self.precision,
            "versions": {"torch": str(torch.__version__), "numpy": np.__version__},
            "validation": self.best if math.isfinite(self.best) else None,
            "licence": self.options.licence,
            "started_from": self.started_from,
        }

    def rate(self) -> float:
        """Learning rate of the next step."""
        options = self.options
        rate = options.learning_rate * min(1.0, (self.step + 1) / (options.warmup + 1))
        if options.schedule == "constant":
            return rate
        return rate * (LAST_RATE + (1 - LAST_RATE) * (1 + math.cos(math.pi * self._done())) / 2)

    def _done(self) -> float:
        """Share of the run that is over, by steps or by the clock, whichever is further."""
        minutes = self.options.minutes
        by_clock = 0.0 if minutes is None else self.seconds / (60 * minutes)
        return min(max(self.step / self.options.steps, by_clock), 1.0)

    def finished(self) -> bool:
        return self._done() >= 1

    def seconds_left(self, steps: int, seconds: float) -> float:
        """Estimated from `steps` that took `seconds`."""
        left = (self.options.steps - self.step) * seconds / max(steps, 1)
        return left if self.options.minutes is None else min(left, max(60 * self.options.minutes - self.seconds, 0.0))

    def train_step(self, moving: Tensor, fixed: Tensor) -> Losses:
        """One Adam step on a pair, (1, 1, I, J, K) each. A loss that is not finite changes nothing and raises."""
        moving, fixed = moving.to(self.device), fixed.to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            flows = self.network.flows(moving, fixed)
        similarity, rough = local_ncc(fixed, warp(moving, flows[1]), self.options.loss), smoothness(flows[1])
        loss = self.options.smooth * rough - similarity
        coarse = self.options.coarse * (1 - self._done())
        if coarse:
            loss = loss + coarse * self._coarse_loss(moving, fixed, flows)
        if not math.isfinite(loss.item()):
            raise InputError(f"learning_rate: the loss became {loss.item()} at step {self.step + 1}; start anew, lower")
        self._descend(loss)
        return Losses(loss.item(), similarity.item(), rough.item())

    def _coarse_loss(self, moving: Tensor, fixed: Tensor, flows: dict[int, Tensor]) -> Tensor:
        """The same loss summed over levels 2, 3 and 4, on images averaged down to each level's size."""
        total = 0.0
        for level in (2, 3, 4):
            moving, fixed = F.avg_pool3d(moving, 2), F.avg_pool3d(fixed, 2)
            similarity = local_ncc(fixed, warp(moving, flows[level]), self.options.loss, COARSE_WINDOW)
            total = total + self.options.smooth * smoothness(flows[level]) - similarity
        return total

    def _descend(self, loss: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.options.clip:
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.options.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        self.optimizer.step()
        self.step += 1
        if self.options.average:
            self._update_average()

    @torch.no_grad()
    def _update_average(self) -> None:
        # A young run would otherwise carry its random start along.
        decay = min(self.options.average, self.step / (self.step + 10))
        for mean, new in zip(self.average.parameters(), self.network.parameters(), strict=True):
            mean.lerp_(new, 1 - decay)

    def validate(self) -> Score:
        return validate(self.average, self.sources.validation, self.device, self.precision)
