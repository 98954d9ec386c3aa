"""The training loop: steps, validations, checkpoints that continue exactly, and progress reports."""

import contextlib
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from runtime.errors import InputError
from runtime.host.files.folder_lock import folder_lock
from runtime.host.memory import keep_freed_memory
from train.data.image_pair import ImagePair
from train.log.logs import LOG, Row, RunLog, tensorboard_writer
from train.log.pictures import FOLDER as PICTURES
from train.log.pictures import write_picture
from train.loss.objective import Losses
from train.model.checkpoint import save_checkpoint
from train.options import FitOptions
from train.steps.distributed import is_first, joined
from train.steps.interrupt import StopRequest, WaitEndedError
from train.steps.loader import feed
from train.steps.memory import check_memory, out_of_memory
from train.steps.numerics import choose_device
from train.steps.run import Run
from train.steps.validation import Score


@dataclass(frozen=True)
class Progress:
    """The report of one finished step.

    Attributes:
        step: number of finished steps.
        steps: number of steps after which the run ends.
        seconds: training time so far, including resumed runs.
        seconds_left: estimated remaining time.
        losses: losses of this step.
        score: the latest validation score, None before the first.
        best: the best score so far.
        validated: whether `score` was measured after this step.
        first: whether this step is the first of this call.
    """

    step: int
    steps: int
    seconds: float
    seconds_left: float
    losses: Losses
    score: Score | None
    best: float
    validated: bool = False
    first: bool = False

    def line(self) -> str:
        """Return the losses and the latest score as one short line."""
        now = self.losses
        line = f"loss {now.total:.4f}  local NCC {now.local_ncc:.4f}  smoothness {now.smoothness:.4f}"
        further = {"Dice loss": now.dice, "bending": now.bending, "log Jacobian": now.log_jacobian,
                   "inverse": now.inverse_consistency}  # fmt: skip
        line += "".join(f"  {name} {value:.4f}" for name, value in further.items() if value is not None)
        return line if self.score is None else f"{line}  validation {self.score.value:.4f} (best {self.best:.4f})"


@dataclass(frozen=True)
class FitResult:
    """The result of a run.

    Attributes:
        steps: number of finished steps.
        seconds: training time, including resumed runs.
        score: the last validation score.
        best: the score of best.pt.
        best_by: name of the measure that `best` is.
        best_path: best.pt, or None if the run ended before its first validation.
        last_path: last.pt, which continues the run.
        log_path: log.csv.
        device: type of the device.
        precision: "fp32", "bf16" or "fp16".
        interrupted: the signal that ended the run early, or None.
    """

    steps: int
    seconds: float
    score: Score | None
    best: float
    best_by: str | None
    best_path: Path | None
    last_path: Path
    log_path: Path
    device: str
    precision: str
    interrupted: int | None


def fit(options: FitOptions, progress: Callable[[Progress], None] = lambda _: None) -> FitResult:
    """Train RP-Net; write last.pt, best.pt, log.csv and other requested files into `options.output`.

    The same options give the same weights, and a resumed run gives those of an uninterrupted one: bit for bit on a CPU
    with the same number of threads, except with `minutes`, which depends on the clock.
    Ctrl-C (or SIGTERM) ends the run after the current step, with last.pt up to date; a second Ctrl-C ends it at once.

    If it is called in every process started by `torchrun`, the processes train one network together. Only the first one
    writes files and calls `progress`, and a signal to any of them ends all of them after the same step.

    Args:
        options: the options of the run.
        progress: called after each step.

    Raises:
        InputError: before the first step: options, lists, volumes or last.pt cannot be used, or the machine has too
            little memory. Later: the loss is not finite.
        ScarceError: another run has locked `options.output`, too little memory is free, memory runs out during
            training, or a worker cannot be started or is killed.
    """
    _check_output(options)
    if options.tensorboard:
        tensorboard_writer()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    keep_freed_memory()
    with _held(options.output), joined(choose_device(options).type) as processes:
        run = Run(options, processes)
        check_memory(run)
        with StopRequest(processes.alone) as stop, out_of_memory(run):
            return _Loop(run, progress, stop).train()


def _held(output: Path) -> contextlib.AbstractContextManager[None]:
    """Lock the output folder; the first process does so for all."""
    return folder_lock(output, "output", [PICTURES]) if is_first() else contextlib.nullcontext()


def _check_output(options: FitOptions) -> None:
    last, best = options.output / "last.pt", options.output / "best.pt"
    if not options.resume and last.exists():
        raise InputError(f"output: {last} exists; continue it with resume, or give another folder")
    if not options.resume and best.exists():
        raise InputError(f"output: {best} exists, but its run cannot be continued; give another folder")
    if options.resume and not last.exists():
        raise InputError(f"resume: {last} does not exist; start without resume, or with resume_from")
    if options.output.exists() and not options.output.is_dir():
        raise InputError(f"output: {options.output} is a file; give a folder")


class _Loop:
    """Steps, validations, log and checkpoints of one call of `fit` in one of its processes."""

    def __init__(self, run: Run, progress: Callable[[Progress], None], stop: StopRequest) -> None:
        self.run, self.progress, self.stop = run, progress, stop
        folder = run.options.output
        self.best_path, self.last_path, self.log_path = (folder / name for name in ("best.pt", "last.pt", LOG))
        self.score: Score | None = None
        self.validations = run.step // run.options.validate_every
        self.saved_at = run.seconds
        self.clock = time.monotonic()
        self.log: RunLog | None = None

    def train(self) -> FitResult:
        run, options = self.run, self.run.options
        writes = run.processes.first
        with RunLog(options.output, run.step, options.tensorboard) if writes else contextlib.nullcontext() as self.log:
            self._steps_or_save(run.step)
        self._save()
        return self._result()

    def _steps_or_save(self, first: int) -> None:
        """Train; if an error occurs, for instance in a validation, save the finished steps before it is raised."""
        try:
            self._steps()
        except Exception:
            if self.run.step > first:
                self._save()
            raise

    def _steps(self) -> None:
        run, first, seconds_first = self.run, self.run.step, self.run.seconds
        last = run.timetable.last_step
        pairs = feed(run.sources, range(first, last), run.batch, run.options.workers)
        self.clock = time.monotonic()
        if run.finished():
            self._validate()
        while not run.finished() and not self._asked_to_stop():
            try:
                with self.stop.waiting():
                    given = next(pairs)
            except WaitEndedError:
                return
            plan, losses = run.plan(), run.train_step(given)
            self._tick()
            score = self._validate()
            if self.log:
                self.log.write(Row(run.step, run.seconds, plan, losses, score))
            if run.seconds - self.saved_at >= 60 * run.options.save_minutes:
                self._save()
            left = run.timetable.seconds_left(run.step, run.seconds, run.step - first, run.seconds - seconds_first)
            self._report(Progress(
                run.step, last, run.seconds, left, losses, self.score, run.best, validated=score is not None,
                first=run.step == first + 1,
            ))  # fmt: skip

    def _report(self, progress: Progress) -> None:
        if self.run.processes.first:
            self.progress(progress)

    def _tick(self) -> None:
        """Update the run's training time; all processes use the clock of the first."""
        now = time.monotonic()
        self.run.seconds, self.clock = self.run.seconds + now - self.clock, now
        self.run.seconds, _ = self._agree()

    def _asked_to_stop(self) -> bool:
        return self._agree()[1]

    def _agree(self) -> tuple[float, bool]:
        return self.run.processes.agree(self.run.seconds, self.stop.asked, self.run.numerics.device)

    def _validate(self) -> Score | None:
        """Validate if it is due; if the score is the best so far, write best.pt.

        A validation that a signal interrupts is repeated after the next step, or when a run at its end is resumed.

        Returns:
            The score, or None if no validation was due or it was interrupted.
        """
        run = self.run
        if not run.validation_due:
            return None
        self.validations += 1
        try:
            with self.stop.waiting():
                self.score = run.validate(self._picture)
        except WaitEndedError:
            return None
        if not self.last_path.exists():
            self._save()  # a folder with best.pt alone could be neither resumed nor used for a new run
        if run.keep_score(self.score) and run.processes.first:
            save_checkpoint(self.best_path, run.checkpoint(resumable=False))
        self._tick()
        return self.score

    def _picture(self, pair: ImagePair, flow: Tensor) -> None:
        every = self.run.options.pictures
        if every and self.validations % every == 0:
            assert self.log is not None  # the first process, which has a log, draws the pictures
            self.log.show(self.run.step, write_picture(self.run.options.output, self.run.step, pair, flow))

    def _save(self) -> None:
        self.saved_at = self.run.seconds
        if self.run.processes.first:
            save_checkpoint(self.last_path, self.run.checkpoint(resumable=True))

    def _result(self) -> FitResult:
        run = self.run
        best_path = self.best_path if self.best_path.exists() else None
        return FitResult(
            run.step, run.seconds, self.score, run.best, run.best_by, best_path, self.last_path, self.log_path,
            run.numerics.device.type, run.numerics.precision,
            self.stop.signal or signal.SIGINT if run.validation_due or not run.finished() else None,
        )  # fmt: skip
