"""The state of a training run: everything that a step changes and that a checkpoint needs to continue exactly."""

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from runtime.errors import InputError, first_line
from train.data.image_pair import ImagePair
from train.data.sources import open_sources
from train.loss.objective import Losses, Objective, halved
from train.model.checkpoint import Checkpoint, load_checkpoint
from train.model.network import NetworkConfig, RPNet
from train.options import FitOptions
from train.steps.distributed import Processes
from train.steps.loader import Batch
from train.steps.numerics import choose_device, choose_numerics
from train.steps.timetable import StepPlan, Timetable
from train.steps.validation import Score, validate

_RECIPE = (
    "generator", "loss", "smooth", "dice", "dice_labels", "coarse", "bending", "log_jacobian", "both_directions",
    "inverse_consistency", "iterations", "half_size", "augment", "steps", "minutes", "finish", "learning_rate",
    "schedule", "warmup", "clip", "average", "accumulate",
)  # fmt: skip

# Mean squared gradient of a flow above which nothing of an image remains: neighbours are 30 voxels apart.
EXPLODED = 1000.0


@contextlib.contextmanager
def finite_state(path: Path | None) -> Iterator[None]:
    """Turn the errors raised by an invalid training state of a checkpoint into a one-line InputError."""
    try:
        yield
    except InputError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise InputError(
            f"resume: the training state of {path} cannot be used ({type(error).__name__}: {first_line(error)[:120]}); "
            "start a new run from its weights with `start`"
        ) from error


class Run:
    """Network, optimiser, counters and sources of a run: new, started from other weights, or restored.

    Args:
        options: options of the run.
        processes: the processes that train together; None: this one alone.

    Raises:
        InputError: files named by `options` cannot be used, or last.pt belongs to another run.
    """

    def __init__(self, options: FitOptions, processes: Processes | None = None) -> None:
        self.options, self.processes = options, processes or Processes()
        self.batch, self.timetable = Batch(options.accumulate, self.processes), Timetable(options)
        self.objective = Objective(
            options.loss, options.smooth, options.dice, options.dice_labels, options.bending, options.log_jacobian,
            options.inverse_consistency,
        )  # fmt: skip
        self.step, self.seconds, self.best = 0, 0.0, -math.inf
        self.best_by: str | None = None
        self.validated = 0  # step of the last validation
        self.started_from: dict = {}
        device = choose_device(options, self.processes.local_rank)
        with finite_state(options.continues):
            saved = self._saved(options.continues) if options.continues else None
        self.sources = open_sources(options, device)
        smallest = min(self.sources.shape) // (2 if options.half_size else 1)
        self.numerics = choose_numerics(options, device, smallest)
        torch.manual_seed(options.seed)
        self.network = RPNet(NetworkConfig(res_blocks=options.res_blocks))
        if options.start is not None and saved is None:
            self._start_from(load_checkpoint(options.start))
        self.numerics.place(self.network)
        self.average = copy.deepcopy(self.network) if options.average else self.network
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=options.learning_rate)
        self.scaler = self.numerics.scaler()
        if saved is not None:
            with finite_state(options.continues):
                self._require_same_numerics(saved)
                self._require_same_content(saved)
                self._restore(saved)
        self.numerics.compile(self.network)

    def _start_from(self, start: Checkpoint) -> None:
        config = self.network.config
        if start.config.first_channels != config.first_channels or start.config.res_blocks > config.res_blocks:
            raise InputError(f"start: {self.options.start} has {start.config}, expected {config} or fewer blocks")
        self.network.load_state_dict(start.deepened(config.res_blocks).state)
        self.started_from = dict(start.provenance)

    def _saved(self, path: Path) -> Checkpoint:
        saved = load_checkpoint(path)
        if saved.training is None:
            raise InputError(f"resume: {path} holds no training state; start a new run from it with `start`")
        different = self.options.differences(saved.training["options"])
        if different:
            raise InputError(f"resume: {path} was written with other options ({', '.join(different)}); give the same")
        batch = saved.training.get("batch", 1)
        if batch != self.batch.size:
            raise InputError(
                f"resume: {path} was written with {batch} pairs per step, got accumulate {self.options.accumulate} x "
                f"{self.processes.count} processes; make the product the same"
            )
        return saved

    def _require_same_numerics(self, saved: Checkpoint) -> None:
        """Check that `auto` chose as before; on another machine it may not, and the run would not continue exactly."""
        assert saved.training is not None  # `_saved` refuses others
        for option, chosen in self.numerics.chosen().items():
            before = saved.training.get("chosen", saved.training["options"]).get(option, "auto")
            # Checkpoints of earlier versions contain only the requested option, not the choice.
            if str(before) not in ("auto", str(chosen)):
                raise InputError(
                    f"resume: {self.options.continues} was written with {option} {before}, this run would "
                    f"use {chosen}; give {option} {before}, or start a new run from it with `start`"
                )

    def _require_same_content(self, saved: Checkpoint) -> None:
        """Check that the scans or the template are those of the checkpoint, in the same order."""
        assert saved.training is not None  # `_saved` refuses others
        before = saved.training.get("content")
        if before is None:  # a checkpoint of an earlier version, which contains only their names
            names = saved.training["options"].get("data"), saved.training["options"].get("template")
            given = self.options.data, self.options.template
            if names != given:
                found, expected = (" and ".join(str(name) for name in one if name) or "none" for one in (given, names))
                raise InputError(
                    f"data: got {found}, but {self.options.continues} was trained on {expected}; give the same, or "
                    "`start` a new run from it"
                )
            return
        now = self.sources.content
        others = [n for n, (one, other) in enumerate(zip(now, before, strict=False)) if one[1] != other[1]]
        if others or len(now) != len(before):
            first = others[0] if others else min(len(now), len(before))
            found, expected = (kept[first][0] if first < len(kept) else "none" for kept in (now, before))
            raise InputError(
                f"data: {self.options.continues} was trained on {len(before)} volumes, got {len(now)}; number "
                f"{first + 1} is {found}, expected {expected} unchanged; give the same, or `start` a new run from it"
            )

    def _restore(self, saved: Checkpoint) -> None:
        training = saved.training
        assert training is not None  # `_saved` refuses others
        self.average.load_state_dict(saved.state)
        self.network.load_state_dict(training["weights"])
        self.optimizer.load_state_dict(training["optimizer"])
        self._require_moments()
        self.scaler.load_state_dict(training.get("scaler", {}))
        self.step, self.seconds = int(training["step"]), float(training["seconds"])
        self.validated = int(training.get("validated", self.step))
        same = training.get("validated_on") == self.sources.validation_digest
        if self.options.resume and same:  # in another folder or on other pairs, the best score starts anew
            self.best, self.best_by = float(training["best"]), saved.provenance.get("validated_by")
        self.timetable = Timetable(self.options, training.get("finish_from", self.step))
        self.started_from = saved.provenance.get("started_from", {})
        torch.set_rng_state(training["torch_rng"])

    def _require_moments(self) -> None:
        """Check that Adam's settings and moments belong to this network and these options.

        Raises:
            ValueError: they do not.
        """
        usual = self.optimizer.defaults
        for group in self.optimizer.param_groups:
            if any(group.get(name) != value for name, value in usual.items() if name != "lr"):
                raise ValueError("Adam's settings differ")
        for weight in self.network.parameters():
            moments = self.optimizer.state[weight]
            if not isinstance(moments, dict) or (moments and not float(moments["step"]) >= 1):
                raise ValueError(f"Adam's state is {first_line(moments)[:60]}")
            for name in ("exp_avg", "exp_avg_sq"):
                if moments and getattr(moments[name], "shape", None) != weight.shape:
                    raise ValueError(f"{name} is not of the shape {tuple(weight.shape)}")

    def checkpoint(self, resumable: bool) -> Checkpoint:
        """Return the weights to use (the running mean, if there is one) with their provenance.

        If `resumable`, the checkpoint also contains everything needed to continue the run.
        """
        config, state = self.network.config, self.average.state_dict()
        return Checkpoint(config, state, self.provenance(), self._training() if resumable else None)

    def _training(self) -> dict:
        return {
            "step": self.step,
            "seconds": self.seconds,
            "best": self.best,
            "validated": self.validated,
            "options": self.options.as_dict(),
            "chosen": self.numerics.chosen(),
            "batch": self.batch.size,
            "content": [list(volume) for volume in self.sources.content],
            "validated_on": self.sources.validation_digest,
            "weights": {name: tensor.detach().cpu().contiguous() for name, tensor in self.network.state_dict().items()},
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "torch_rng": torch.get_rng_state(),
        } | ({"finish_from": self.timetable.finish_from} if self.options.finish else {})

    def provenance(self) -> dict:
        """Return the origin of the weights in plain types, without any path of this machine."""
        options = self.options.as_dict()
        recipe = {name: options[name] for name in _RECIPE}
        recipe |= {"shape": list(self.sources.shape), "optimizer": "Adam", "batch": self.batch.size}
        return {
            "data": self.sources.description,
            "recipe": recipe,
            "steps": self.step,
            "seconds": round(self.seconds, 1),
            "seed": self.options.seed,
            "device": self.numerics.device.type,
            "processes": self.processes.count,
            "precision": self.numerics.precision,
            "memory_format": "channels_last_3d" if self.numerics.channels_last else "contiguous",
            "compiled": self.numerics.compiled,
            "versions": {"torch": str(torch.__version__), "numpy": np.__version__},
            "validation": self.best if math.isfinite(self.best) else None,
            "validated_by": self.best_by,
            "licence": self.options.licence,
            "started_from": self.started_from,
        }

    def plan(self) -> StepPlan:
        """Return the plan of the next step."""
        return self.timetable.plan(self.step, self.seconds)

    def finished(self) -> bool:
        return self.timetable.finished(self.step, self.seconds)

    def train_step(self, pairs: Sequence[ImagePair]) -> Losses:
        """Take one Adam step on the mean gradient over `pairs` and those of the other processes.

        Raises:
            InputError: the loss exploded; in that case nothing is changed.
        """
        plan = self.plan()
        self.optimizer.zero_grad(set_to_none=True)
        each = [self._backward(pair, plan) for pair in pairs]
        parts = {name: cast(Tensor, sum(one[name] for one in each)) for name in each[0]}
        gradients = cast(list[Tensor], [weight.grad for weight in self.network.parameters()])
        self.processes.add_up([*parts.values(), *gradients])
        losses = Losses(**dict(zip(parts, torch.stack([*parts.values()]).tolist(), strict=True)))
        if not losses.finite or losses.smoothness > EXPLODED:
            raise InputError(
                f"learning_rate: the loss exploded at step {self.step + 1} ({losses.total:.3g}, smoothness "
                f"{losses.smoothness:.3g}); start again with a lower learning rate, from a checkpoint before that"
            )
        self._descend(plan.rate)
        return losses

    def _backward(self, pair: ImagePair, plan: StepPlan) -> dict[str, Tensor]:
        """Add one pair's share of the gradient; return its share of the terms of `Losses`."""
        pair = pair.map(lambda tensor: tensor.to(self.numerics.device, non_blocking=True))
        if plan.half_size:
            pair = halved(pair)
        with self.numerics.autocast():
            find = self.network.flows_both_ways if self.options.both_directions else self.network.flows
            flows = find(pair.moving[None, None], pair.fixed[None, None], plan.counts)
        ways = (pair, pair.swapped()) if self.options.both_directions else (pair,)
        loss, parts = self.objective(ways, flows, plan.coarse)
        self.scaler.scale(loss / self.batch.size).backward()
        return {name: part / self.batch.size for name, part in parts.items()}

    def _descend(self, rate: float) -> None:
        if self.options.clip:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.options.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1
        if self.options.average:
            self._update_average()

    @torch.no_grad()
    def _update_average(self) -> None:
        # Early in a run the decay is smaller, so that the mean forgets the random initial weights.
        decay = min(self.options.average, self.step / (self.step + 10))
        for mean, new in zip(self.average.parameters(), self.network.parameters(), strict=True):
            mean.lerp_(new, 1 - decay)

    @property
    def validation_due(self) -> bool:
        """True if a multiple of `validate_every`, or the end of the run, was reached since the last validation."""
        every = self.options.validate_every
        return self.step > self.validated and (self.step // every > self.validated // every or self.finished())

    def validate(self, show: Callable[[ImagePair, Tensor], None]) -> Score:
        """Score the current network (the running mean, if there is one) on the validation pairs; change nothing."""
        with torch.compiler.set_stance("force_eager" if self.numerics.compiled else "default"):
            pairs, groups = self.sources.validation, self.sources.groups
            return validate(self.average, pairs, self.numerics, self.processes, show, groups)

    def keep_score(self, score: Score) -> bool:
        """Record a score of this step; return whether it is better than all before."""
        self.validated, better = self.step, score.value > self.best
        if better:
            self.best, self.best_by = score.value, score.name
        return better
