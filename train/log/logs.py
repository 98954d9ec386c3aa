"""The log of every step of a run: log.csv, and curves for TensorBoard."""

import contextlib
import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime.errors import InputError
from runtime.host.files.whole_files import atomic_path
from train.loss.objective import Losses
from train.steps.timetable import StepPlan
from train.steps.validation import SCHEDULES, Quality, Score

# Columns of the losses by their name in `Losses`.
LOSS_COLUMNS = {"total": "loss", "dice": "dice_loss"} | {
    name: name for name in ("local_ncc", "smoothness", "bending", "log_jacobian", "inverse_consistency")
}
STEP_COLUMNS = ("step", "seconds", "learning_rate", "iterations", *LOSS_COLUMNS.values())
SCORE_COLUMNS = ("ncc", "dice", "folded", "sdlogj", "iterations")
LOG_COLUMNS = (*STEP_COLUMNS, *(f"{name}_{column}" for name in SCHEDULES for column in SCORE_COLUMNS), "groups")
_QUALITIES = ("ncc", "dice", "folded", "sd_log_jacobian")
LOG, TENSORBOARD = "log.csv", "tensorboard"


@dataclass(frozen=True)
class Row:
    """The log of one step.

    Attributes:
        step: number of finished steps.
        seconds: training time so far.
        plan: learning rate, iterations and the like of the step.
        losses: losses of the step.
        score: score of a validation after the step, if there was one.
    """

    step: int
    seconds: float
    plan: StepPlan
    losses: Losses
    score: Score | None

    def cells(self) -> dict[str, str]:
        """Return the row of log.csv: text by column."""
        losses, plan = self.losses, self.plan
        cells = {
            "step": str(self.step),
            "seconds": f"{self.seconds:.1f}",
            "learning_rate": f"{plan.rate:.3g}",
            "iterations": _counts(plan.counts),
        }
        cells |= {column: _decimals(getattr(losses, name)) for name, column in LOSS_COLUMNS.items()}
        for name in SCHEDULES if self.score else ():
            found = _quality_cells(getattr(self.score, name))
            cells |= {f"{name}_{column}": cell for column, cell in found.items()}
        groups = self.score.groups.items() if self.score else ()
        return cells | {"groups": "; ".join(f"{group} {value:.5f}" for group, value in groups)}

    def curves(self) -> dict[str, float]:
        """Return the points of TensorBoard's curves: numbers by name."""
        curves = {"learning_rate": self.plan.rate}
        curves |= {f"train/{name}": value for name, value in vars(self.losses).items()}
        if self.score:
            curves |= {f"validation/groups/{group}": value for group, value in self.score.groups.items()}
            for name in SCHEDULES:
                quality = getattr(self.score, name)
                curves |= {f"validation/{key}/{name}": getattr(quality, key) for key in _QUALITIES}
                curves[f"validation/iterations/{name}"] = sum(quality.iterations)
        return {name: value for name, value in curves.items() if value is not None}


def _counts(counts: tuple) -> str:
    return " ".join(f"{count:g}" for count in counts)


def _decimals(value: float | None) -> str:
    return "" if value is None else f"{value:.5f}"


def _quality_cells(quality: Quality) -> dict[str, str]:
    return {
        "ncc": _decimals(quality.ncc),
        "dice": _decimals(quality.dice),
        "folded": f"{quality.folded:.6f}",
        "sdlogj": _decimals(quality.sd_log_jacobian),
        "iterations": " ".join(f"{count:.1f}" for count in quality.iterations),
    }


class RunLog(contextlib.AbstractContextManager):
    """The log of a run; rows that an interrupted run wrote after its last checkpoint are dropped.

    Args:
        folder: folder of the run.
        step: number of finished steps; rows up to it are kept.
        tensorboard: whether to write curves too.
    """

    def __init__(self, folder: Path, step: int, tensorboard: bool) -> None:
        self.path = folder / LOG
        _rewrite(self.path, step)
        self._file = self.path.open("a", newline="", buffering=1)
        self._table = csv.DictWriter(self._file, LOG_COLUMNS, restval="")
        self._tensorboard = None
        if tensorboard:
            self._tensorboard = tensorboard_writer()(str(folder / TENSORBOARD), purge_step=step + 1)

    def write(self, row: Row) -> None:
        self._table.writerow(row.cells())
        if self._tensorboard:
            for name, value in row.curves().items():
                self._tensorboard.add_scalar(name, value, row.step)

    def show(self, step: int, picture: Any) -> None:
        """Add a picture to the TensorBoard log, if there is one."""
        if self._tensorboard:
            self._tensorboard.add_image("validation", np.asarray(picture), step, dataformats="HWC")

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if self._tensorboard:
            self._tensorboard.close()


def _rewrite(path: Path, step: int) -> None:
    """Rewrite the log with only the rows up to `step`; no checkpoint contains the later steps."""
    kept: list[dict] = []
    if step and path.exists():
        with path.open(newline="") as file:
            kept = [row for row in csv.DictReader(file) if row["step"] and int(row["step"]) <= step]
    with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
        table = csv.DictWriter(file, LOG_COLUMNS, restval="", extrasaction="ignore")
        table.writeheader()
        table.writerows(kept)


def tensorboard_writer() -> type:
    """Import and return the class that writes TensorBoard logs.

    Raises:
        InputError: the package tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError(
            "tensorboard: the package tensorboard is not installed; pip install tensorboard, or leave it out"
        ) from None
    return SummaryWriter
