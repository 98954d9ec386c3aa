"""Registration of cases and of the sound pairs behind them; each outcome is recorded once, so a run can be resumed."""

import csv
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from measurements.quality.cases import Changed, Entry, Subject
from runtime.backends.engines import OpenEngines
from runtime.errors import InputError
from runtime.images.overlap import common_labels, mean_dice
from runtime.images.resampling.resample import resample_through
from runtime.registration.options import Options
from runtime.registration.quality.figures import Figures
from runtime.registration.scans import FixedScan, Registration

Array = np.ndarray
SOUND = "sound"
FACTS = (
    "name",
    "half",
    "fixed",
    "moving",
    "kind",
    "level",
    "side",
    "ratio",
    "dice",
    "sound_dice",
    "refused",
    "seconds",
)
COLUMNS = (*FACTS, *(field.name for field in fields(Figures)))


@dataclass(frozen=True)
class Case:
    """One registration: a pair of subjects by name, and an entry of the list of cases (None: the sound pair)."""

    half: str
    fixed: str
    moving: str
    entry: Entry | None

    @property
    def name(self) -> str:
        what = SOUND if self.entry is None else self.entry.name.replace(" ", "_")
        return f"{self.half}.{self.fixed}-{self.moving}.{what}"


def plan(halves: dict[str, list[str]], entries: list[Entry], each: int) -> Iterator[Case]:
    """Yield the cases of both halves: every ordered pair of one half, sound and with some of the entries.

    Args:
        halves: names of the subjects by half.
        entries: list of cases; they are dealt to the pairs in turn.
        each: number of entries of a pair.
    """
    for half, names in halves.items():
        pairs = [(fixed, moving) for fixed in names for moving in names if fixed != moving]
        # A fixed permutation, so that neighbours in the list, which are alike, go to different fixed scans.
        order = np.random.default_rng(16).permutation(len(entries))
        for number, (fixed, moving) in enumerate(pairs):
            yield Case(half, fixed, moving, None)
            for n in range(number * each, (number + 1) * each):
                yield Case(half, fixed, moving, entries[order[n % len(entries)]])


class Records:
    """A CSV file of records, one line for each case, to which lines are added as cases are done.

    Several processes may add lines to one file. A line that a killed process left unfinished is not counted.

    Args:
        path: the file; created with its header if it does not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(",".join(COLUMNS) + "\n", encoding="utf-8")
        elif not path.read_bytes().endswith(b"\n"):
            with path.open("a", encoding="utf-8") as file:
                file.write("\n")  # after the unfinished line of a killed process
        self._known = {row["name"] for row in self._rows()}

    def has(self, case: Case) -> bool:
        return case.name in self._known

    def write(self, record: dict[str, Any]) -> None:
        """Add a line in one piece."""
        line = io.StringIO()
        csv.DictWriter(line, COLUMNS, restval="", lineterminator="\n").writerow(record)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line.getvalue())
        self._known.add(record["name"])

    def _rows(self) -> list[dict[str, str]]:
        with self._path.open(newline="", encoding="utf-8") as file:
            return [row for row in csv.DictReader(file) if None not in row.values()]


class Pair:
    """A sound pair: its registration, and the Dice that cases made from it are compared with.

    Args:
        fixed, moving: the subjects.
        onto: the fixed subject, prepared.
    """

    def __init__(self, fixed: Subject, moving: Subject, onto: FixedScan) -> None:
        self.fixed, self.moving, self._onto = fixed, moving, onto
        self.scored = common_labels(fixed.labels.data, moving.labels.data)

    @cached_property
    def result(self) -> Registration:
        return self._onto.register(self.moving.image, self.moving.labels)

    def sound_dice(self, seen: Array | None = None, box: tuple[slice, ...] = (slice(None),) * 3) -> float:
        """Return the Dice of the sound registration, inside a view of the fixed scan."""
        assert self.result.warped_labels is not None  # labels were given
        return dice_inside(self.fixed.labels.data[box], self.result.warped_labels[box], self.scored, seen)

    def view_of(self, changed: Changed) -> Array | None:
        """Return which voxels of the fixed scan show what is left of the moving one; None: all."""
        if all(piece == slice(None) for piece in changed.box):
            return None
        shown = np.zeros(self.moving.image.data.shape, np.uint8)
        shown[changed.box] = 1
        grids = self.moving.image.grid, self.result.displacement, self.fixed.image.grid
        return resample_through(shown, *grids, order="nearest") > 0


def dice_inside(fixed: Array, warped: Array, scored: list[int], seen: Array | None) -> float:
    """Return the mean Dice over labels, in the voxels that are seen; labels with nothing there are left out."""
    if seen is not None:
        fixed, warped = np.where(seen, fixed, 0), np.where(seen, warped, 0)
        held = set(common_labels(fixed, fixed))
        scored = [label for label in scored if label in held]
    return mean_dice(fixed, warped, scored)


def run(
    cases: list[Case],
    subjects: dict[str, Subject],
    engines: OpenEngines,
    records: Records,
    tell: Callable[[str], None],
) -> None:
    """Run the cases that have no record yet; cases of one fixed scan have to follow one another."""
    fixed_name: str | None = None
    pair: Pair | None = None
    for number, case in enumerate(cases, start=1):
        if records.has(case):
            continue
        if fixed_name != case.fixed:
            fixed_name, onto = case.fixed, FixedScan(subjects[case.fixed].image, engines)
            pair = None
        if pair is None or (pair.fixed.name, pair.moving.name) != (case.fixed, case.moving):
            pair = Pair(subjects[case.fixed], subjects[case.moving], onto)
        record = _record(pair, case, engines, onto)
        records.write(record)
        text = record.get("refused") or record["ratio"]
        tell(f"{number} of {len(cases)}, {case.name}: {text}")


def _record(pair: Pair, case: Case, engines: OpenEngines, onto: FixedScan) -> dict[str, Any]:
    entry = case.entry
    facts = {"half": case.half, "fixed": case.fixed, "moving": case.moving, "name": case.name}
    if entry is None:
        sound = f"{pair.sound_dice():.4f}"
        return {**facts, "kind": SOUND, "sound_dice": sound, "dice": sound, "ratio": "1", **_outcome(pair.result)}
    facts |= {"kind": entry.kind, "level": entry.level, "side": entry.side}
    on_fixed, on_moving = entry.side in ("fixed", "both"), entry.side in ("moving", "both")
    names = f"{case.fixed} {case.moving}"
    fixed = entry.applied(pair.fixed, names) if on_fixed else Changed(pair.fixed.image, pair.fixed.labels)
    moving = entry.applied(pair.moving, names) if on_moving else Changed(pair.moving.image, pair.moving.labels)
    options = Options(**dict(entry.options))
    try:
        if on_fixed or entry.options:
            onto = FixedScan(fixed.image, engines, options, mask=fixed.mask)
        result = onto.register(moving.image, moving.labels, mask=moving.mask)
    except InputError as error:
        return {**facts, "refused": str(error), "ratio": "0"}
    seen = pair.view_of(moving)
    seen = seen if seen is None else seen[fixed.box]
    sound = pair.sound_dice(seen, fixed.box)
    assert result.warped_labels is not None  # labels were given
    dice = 0.0
    if not (fixed.hopeless or moving.hopeless):
        dice = dice_inside(fixed.labels.data, result.warped_labels, pair.scored, seen)
    scores = {"sound_dice": f"{sound:.4f}", "dice": f"{dice:.4f}", "ratio": f"{dice / sound:.4f}"}
    return {**facts, **scores, **_outcome(result)}


def _outcome(result: Registration) -> dict[str, Any]:
    figures = {name: f"{value:.5g}" for name, value in result.quality.as_dict().items()}
    return {**figures, "seconds": f"{sum(result.seconds.values()):.1f}"}
