"""Options of an evaluation: pairs, methods, engine sets and the output folder."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...host.files.regular_files import require_file
from ...registration.options import Options
from .methods import Choices
from .pair_list import EvaluationPair

Export = Callable[[Path, Path], None]  # writes the engine set of a checkpoint into a folder


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of `evaluate`.

    Attributes:
        pairs: from `read_pairs`, or one.
        output: folder for the results.
        choices: schedules and other settings to compare.
        engine_dirs: engine sets to compare.
        checkpoints: checkpoints to compare, exported first; in addition to engine sets or instead of them.
        backend, precision, threads: as for `runtime.open_engines`.
        affine: as for `register`; the same for every pair.
        window: as for `register`; the same for every pair.
        label_ids: labels to score for pairs without their own; None: all that both maps hold with 50 voxels or more.
        points_in: coordinate frame of landmark files with columns x,y,z; other columns state theirs.

    Raises:
        InputError: no pair, no engine set, or an option that no pair can use.
    """

    pairs: tuple[EvaluationPair, ...]
    output: Path
    choices: Choices = field(default_factory=Choices)
    engine_dirs: tuple[Path, ...] = ()
    checkpoints: tuple[Path, ...] = ()
    backend: str = "auto"
    precision: str = "auto"
    threads: int | None = None
    affine: str = "auto"
    window: tuple[float, float] | None = None
    label_ids: tuple[int, ...] | None = None
    points_in: str | None = None

    def __post_init__(self) -> None:
        if not self.pairs:
            raise InputError("--pairs: lists no pair; give a CSV of pairs, or --fixed and --moving")
        if not (self.engine_dirs or self.checkpoints):
            raise InputError("--engine-dir: got none, expected an engine set, or --checkpoint")
        if self.label_ids and not any(pair.fixed_labels for pair in self.pairs):
            raise InputError("--label-ids: no pair has label maps; leave it out or give label maps of both scans")
        if self.points_in and not any(pair.fixed_landmarks for pair in self.pairs):
            raise InputError("--points-in: no pair has landmarks; leave it out or give landmarks of both scans")
        for path in self.checkpoints:
            require_file(path, "--checkpoint")

    @property
    def start(self) -> Options:
        """The options that all methods share."""
        return Options(affine=self.affine, window=self.window)

    def of_a_pair(self, label_ids: tuple[int, ...] | None) -> dict[str, Any]:
        """Return the options that every score of a pair depends on, besides the files themselves; plain types."""
        return {
            "affine": self.affine,
            "window": self.window and list(self.window),
            "label_ids": label_ids and list(label_ids),
            "points_in": self.points_in,
        }
