"""What a run of `prepare` says while it works and in the end."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

from ...host.progress import Countdown, Progress, duration
from ...registration.result import LOW_NCC
from ...types import Record
from .output.folder import SHEET, TABLE
from .scan.quality import MUCH_CROPPED

SHOWN = 5  # scans with warnings in the summary


class ScansTold:
    """Says after each scan how many are done and, going by those that were not kept, how long the rest will take."""

    def __init__(self, scans: int, progress: Progress) -> None:
        self._scans, self._progress, self._countdown = scans, progress, Countdown(scans)
        self._failed = self._kept = 0

    def step(self, name: str, error: str | None, kept: bool) -> None:
        self._countdown.step(made=not kept)
        self._failed += error is not None
        self._kept += kept
        aside = [f"{n} {what}" for n, what in ((self._kept, "kept"), (self._failed, "failed")) if n]
        counts = f" ({', '.join(aside)})" if aside else ""
        ending = "failed" if error else "kept" if kept else "done"
        done, rest = self._scans - self._countdown.left, self._countdown.rest() or self._countdown.left or "none"
        self._progress(f"scan {done} of {self._scans}{counts}, {rest} left: {name} {ending}")


@dataclass(frozen=True)
class Preparation:
    """What a run did.

    Attributes:
        folder: of the results.
        records: of every scan, in the list's order, as in ``records/``.
        kept: how many of them an earlier run had done.
        table: prepared.csv, for `train`; None if no scan succeeded.
        seconds: wall clock.
    """

    folder: Path
    records: tuple[Record, ...]
    kept: int
    table: Path | None
    seconds: float

    @property
    def failures(self) -> tuple[Record, ...]:
        return tuple(record for record in self.records if "error" in record)

    @property
    def only_scarcity(self) -> bool:
        """Whether all that failed may work another time."""
        return all(record["scarce"] for record in self.failures)

    @property
    def successes(self) -> tuple[Record, ...]:
        return tuple(record for record in self.records if "error" not in record)

    def summary(self) -> str:
        """A few lines for people; failures are not among them, their number is."""
        wrote = f"{self.folder}/: look at {SHEET} first"
        if self.table:
            wrote += f"; train with --data {self.table}"
        lines = [self._counts(), *_figures(self.successes), *_warnings(self.successes), f"wrote       {wrote}"]
        return "\n".join(lines)

    def _counts(self) -> str:
        made = len(self.successes) - self.kept
        kept = f", {self.kept} kept from before" if self.kept else ""
        failed = f", {len(self.failures)} failed" if self.failures else ""
        return f"prepared    {made} of {len(self.records)} scans in {duration(self.seconds)}{kept}{failed}"


def sheet_title(records: Sequence[Record], reference: str) -> str:
    """Of the contact sheet."""
    failed = sum("error" in record for record in records)
    ending = f"; {failed} failed" if failed else ""
    return f"{len(records)} scans, aligned with {Path(reference).name}{ending}"


def _figures(records: Sequence[Record]) -> list[str]:
    if not records:
        return []
    alike = [_likeness(record) for record in records]
    cropped = [record["cropped_share"] for record in records]
    remedy = "; a larger --shape or --spacing holds more" if mean(cropped) > MUCH_CROPPED else ""
    return [
        f"similarity  with the reference: median {median(alike):.3f}, lowest {min(alike):.3f}",
        f"cropped     of the foreground: mean {mean(cropped):.2%}, most {max(cropped):.2%}{remedy}",
    ]


def _warnings(records: Sequence[Record]) -> list[str]:
    """How many scans are doubtful and what to do with them; one line for each of those least like the reference."""
    doubtful = sorted((record for record in records if record["warnings"]), key=_likeness)
    if not doubtful:
        return []
    if 2 * sum(_likeness(record) < LOW_NCC for record in records) > len(records):
        advice = "most are unlike the reference: is it a typical one? if not, give another --reference"
    else:
        advice = f"they are in {TABLE} too; drop from the list what does not belong and run again"
    lines = [f"            {record['name']}: {'; '.join(record['warnings'])}" for record in doubtful[:SHOWN]]
    more = len(doubtful) - SHOWN
    rest = [f"            and {more} more, see records/"] if more > 0 else []
    return [f"warnings    for {len(doubtful)} of {len(records)} scans; {advice}", *lines, *rest]


def _likeness(record: Record) -> float:
    return record["similarity"]["after"] or 0.0
