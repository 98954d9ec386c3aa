"""The training loop: steps, validations, checkpoints that continue exactly, and what it tells of them."""

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
    """One finished step.

    steps: after which the run ends. seconds: training time so far, resumes included; seconds_left: estimated. score:
    latest; validated: whether it is of this very step. first: whether this step is the first of this call.
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
        """The losses and the latest score in one short line."""
        now = self.losses
        line = f"loss {now.total:.4f}  local NCC {now.local_ncc:.4f}  smoothness {now.smoothness:.4f}"
        further = {"Dice loss": now.dice, "bending": now.bending, "log Jacobian": now.log_jacobian,
                   "inverse": now.inverse_consistency}  # fmt: skip
        line += "".join(f"  {name} {value:.4f}" for name, value in further.items() if value is not None)
        return line if self.score is None else f"{line}  validation {self.score.value:.4f} (best {self.best:.4f})"


@dataclass(frozen=True)
class FitResult:
    """How a run ended.

    seconds: of training, over all resumes. score: of the last validation; best: that of best.pt, best_by: what it is.
    best_path is None where the run ended before its first validation. interrupted: the signal that ended it before its
    end, or None; last.pt continues.
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
    """Train RP-Net; writes last.pt, best.pt, log.csv and what else is asked for into `options.output`.

    The same options give the same weights, and a resumed run those of an uninterrupted one: on a CPU with the same
    number of threads bit for bit, but for `minutes`, which follow the clock.
    `progress` is called after each step. Ctrl-C (or SIGTERM) ends the run after the step it is at, with last.pt up to
    date; a second Ctrl-C ends it at once.

    Called in every process that `torchrun` started, the processes train one network together; the first one alone
    writes and calls `progress`, and a signal to any of them ends all of them after the same step.

    Raises:
        InputError: bad options, lists or volumes, a foreign last.pt, too little memory: before the first step. A loss
            that is not finite, or memory that runs out after all.
        ScarceError: another run holds `options.output`.
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
    """The output folder, held by the first process for all."""
    return folder_lock(output, "output", [PICTURES]) if is_first() else contextlib.nullcontext()


def _check_output(options: FitOptions) -> None:
    last, best = options.output / "last.pt", options.output / "best.pt"
    if not options.resume and last.exists():
        raise InputError(f"output: {last} exists; continue it with resume, or give another folder")
    if not options.resume and best.exists():
        raise InputError(f"output: {best} exists, of a run that cannot be continued; give another folder")
    if options.resume and not last.exists():
        raise InputError(f"resume: {last} does not exist; start without resume, or with resume_from")
    if options.output.exists() and not options.output.is_dir():
        raise InputError(f"output: {options.output} is a file; give a folder")


class _Loop:
    """Steps, validation, log and checkpoints of one call of `fit`, in one of its processes."""

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
        """What goes wrong between two steps, in a validation say, must not cost the steps before it."""
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
            self._tell(Progress(
                run.step, last, run.seconds, left, losses, self.score, run.best, validated=score is not None,
                first=run.step == first + 1,
            ))  # fmt: skip

    def _tell(self, progress: Progress) -> None:
        if self.run.processes.first:
            self.progress(progress)

    def _tick(self) -> None:
        """Bring the clock of the run, the first process's, up to date."""
        now = time.monotonic()
        self.run.seconds, self.clock = self.run.seconds + now - self.clock, now
        self.run.seconds, _ = self._agree()

    def _asked_to_stop(self) -> bool:
        return self._agree()[1]

    def _agree(self) -> tuple[float, bool]:
        return self.run.processes.agree(self.run.seconds, self.stop.asked, self.run.numerics.device)

    def _validate(self) -> Score | None:
        """Every so many steps, and after the last one; a better score than any before becomes best.pt.

        One that a signal breaks off is made up for after the next step, or when a run at its end is resumed.
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
            self._save()  # a best.pt alone could neither be continued nor begun again
        if run.keep_score(self.score) and run.processes.first:
            save_checkpoint(self.best_path, run.checkpoint(resumable=False))
        self._tick()
        return self.score

    def _picture(self, pair: ImagePair, flow: Tensor) -> None:
        every = self.run.options.pictures
        if every and self.validations % every == 0:
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
