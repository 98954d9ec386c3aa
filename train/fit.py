"""The training loop: Adam on the loss of `train.losses`, one pair per step, checkpoints that continue exactly."""

import csv
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from runtime.geometry.errors import InputError
from train.checkpoint import save_checkpoint
from train.options import FitOptions
from train.run import Losses, Run
from train.sources import Sources
from train.validation import Score

LOG_COLUMNS = ("step", "seconds", "learning_rate", "loss", "local_ncc", "smoothness", "ncc", "dice", "folded")


@dataclass(frozen=True)
class Progress:
    """One finished step. seconds: training time so far, resumes included; seconds_left: estimated; score: latest."""

    step: int
    steps: int
    seconds: float
    seconds_left: float
    losses: Losses
    score: Score | None
    best: float

    def line(self) -> str:
        """The losses and the latest score in one short line."""
        now = self.losses
        line = f"loss {now.total:.4f}  local NCC {now.local_ncc:.4f}  smoothness {now.smoothness:.4f}"
        return line if self.score is None else f"{line}  validation {self.score.value:.4f} (best {self.best:.4f})"


@dataclass(frozen=True)
class FitResult:
    """How a run ended.

    seconds: of training, over all resumes. score: of the last validation; best: the value of best.pt, whose path is
    None where the run ended before its first validation. interrupted: asked to stop before its end; last.pt continues.
    """

    steps: int
    seconds: float
    score: Score | None
    best: float
    best_path: Path | None
    last_path: Path
    log_path: Path
    device: str
    precision: str
    interrupted: bool


def fit(options: FitOptions, progress: Callable[[Progress], None] = lambda _: None) -> FitResult:
    """Train RP-Net; writes last.pt, best.pt and log.csv into `options.output`.

    The same options give the same weights, and a resumed run those of an uninterrupted one: on a CPU bit for bit, but
    for `minutes`, which follow the clock.
    `progress` is called after each step. Ctrl-C (or SIGTERM) ends the run after the step it is at, with last.pt up to
    date; a second Ctrl-C ends it at once.

    Raises:
        InputError: bad options, lists or volumes, a foreign last.pt: before the first step. A loss that is not finite.
    """
    _check_output(options)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    run = Run(options)
    options.output.mkdir(parents=True, exist_ok=True)
    with _StopRequest() as stop:
        return _Loop(run, progress, stop).train()


def _check_output(options: FitOptions) -> None:
    last = options.output / "last.pt"
    if not options.resume and last.exists():
        raise InputError(f"output: {last} exists; continue it with resume, or give another folder")
    if options.resume and not last.exists():
        raise InputError(f"resume: {last} does not exist; start without resume")
    if options.output.exists() and not options.output.is_dir():
        raise InputError(f"output: {options.output} is a file; give a folder")


class _StopRequest:
    """Turns the first SIGINT or SIGTERM into `asked`; outside the main thread signals stay as they are."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict = {}

    def __enter__(self) -> "_StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._before = {name: signal.signal(name, self._ask) for name in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _ask(self, *_: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *_: object) -> None:
        for name, handler in self._before.items():
            signal.signal(name, handler)


class _Pairs(Dataset):
    def __init__(self, sources: Sources) -> None:
        self.sources = sources

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        return self.sources.pair(step)


def _pairs(run: Run) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of the steps to come, (1, 1, I, J, K) each; their order does not depend on `workers`."""
    steps = range(run.step, run.options.steps)
    loader = DataLoader(_Pairs(run.sources), batch_size=None, sampler=steps, num_workers=run.options.workers)
    for moving, fixed in loader:
        yield moving[None, None], fixed[None, None]


def _kept_rows(path: Path, step: int) -> list[list[str]]:
    """Rows of the log up to `step`; later ones are of steps that no checkpoint knows."""
    if not step or not path.exists():
        return []
    with path.open(newline="") as file:
        return [row for row in list(csv.reader(file))[1:] if row and int(row[0]) <= step]


class _Loop:
    """Steps, validation, log and checkpoints of one call of `fit`."""

    def __init__(self, run: Run, progress: Callable[[Progress], None], stop: _StopRequest) -> None:
        self.run, self.progress, self.stop = run, progress, stop
        folder = run.options.output
        self.best_path, self.last_path, self.log_path = (folder / name for name in ("best.pt", "last.pt", "log.csv"))
        self.score: Score | None = None
        self.saved_at = run.seconds
        self.clock = time.monotonic()

    def train(self) -> FitResult:
        rows = _kept_rows(self.log_path, self.run.step)
        with self.log_path.open("w", newline="", buffering=1) as file:
            log = csv.writer(file)
            log.writerows([LOG_COLUMNS, *rows])
            self._steps(log)
        self._save()
        return self._result()

    def _steps(self, log: "csv.writer") -> None:
        run = self.run
        first, seconds_first = run.step, run.seconds
        self.clock, pairs = time.monotonic(), _pairs(run)
        while not run.finished() and not self.stop.asked:
            rate = run.rate()
            losses = run.train_step(*next(pairs))
            self._tick()
            score = self._validate()
            self._tick()
            scores = score.row() if score else ("", "", "")
            log.writerow([run.step, f"{run.seconds:.1f}", f"{rate:.3g}", *losses.row(), *scores])
            if run.seconds - self.saved_at >= 60 * run.options.save_minutes:
                self._save()
            left = run.seconds_left(run.step - first, run.seconds - seconds_first)
            self.progress(Progress(run.step, run.options.steps, run.seconds, left, losses, self.score, run.best))

    def _tick(self) -> None:
        now = time.monotonic()
        self.run.seconds, self.clock = self.run.seconds + now - self.clock, now

    def _validate(self) -> Score | None:
        """Every so many steps, and after the last one; a better score than any before becomes best.pt."""
        run = self.run
        if run.step % run.options.validate_every and not run.finished():
            return None
        self.score = run.validate()
        if self.score.value > run.best:
            run.best = self.score.value
            save_checkpoint(self.best_path, run.checkpoint(resumable=False))
        return self.score

    def _save(self) -> None:
        save_checkpoint(self.last_path, self.run.checkpoint(resumable=True))
        self.saved_at = self.run.seconds

    def _result(self) -> FitResult:
        run = self.run
        best_path = self.best_path if self.best_path.exists() else None
        return FitResult(
            run.step, run.seconds, self.score, run.best, best_path, self.last_path, self.log_path,
            run.device.type, run.precision, not run.finished(),
        )  # fmt: skip
