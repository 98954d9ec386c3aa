"""Progress lines and the final summary of a run of `prepare`."""

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


class ScanProgress:
    """Progress lines after each scan: how many are done, and the remaining time estimated from those not kept."""

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
    """Result of a run.

    Attributes:
        folder: folder of the results.
        records: records of every scan, in the list's order, as in ``records/``.
        kept: number of scans kept from an earlier run.
        table: prepared.csv, for `train`; None if no scan succeeded.
        seconds: wall-clock time.
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
        """True if every failure was for lack of resources, so that another run may succeed."""
        return all(record["scarce"] for record in self.failures)

    @property
    def successes(self) -> tuple[Record, ...]:
        return tuple(record for record in self.records if "error" not in record)

    def summary(self) -> str:
        """Return a few readable lines, with the number of failures but not the failures themselves."""
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
    """Return the title of the contact sheet."""
    failed = sum("error" in record for record in records)
    ending = f"; {failed} failed" if failed else ""
    return f"{len(records)} scans, aligned with {Path(reference).name}{ending}"


def _figures(records: Sequence[Record]) -> list[str]:
    if not records:
        return []
    similarities = [_similarity(record) for record in records]
    cropped = [record["cropped_share"] for record in records]
    remedy = "; a larger --shape or --spacing crops less" if mean(cropped) > MUCH_CROPPED else ""
    return [
        f"similarity  with the reference: median {median(similarities):.3f}, lowest {min(similarities):.3f}",
        f"cropped     of the foreground: mean {mean(cropped):.2%}, most {max(cropped):.2%}{remedy}",
    ]


def _warnings(records: Sequence[Record]) -> list[str]:
    """Return the number of scans with warnings and advice, then a line for each of the least similar ones."""
    warned = sorted((record for record in records if record["warnings"]), key=_similarity)
    if not warned:
        return []
    if 2 * sum(_similarity(record) < LOW_NCC for record in records) > len(records):
        advice = "most differ strongly from the reference: is it a typical scan? if not, give another --reference"
    else:
        advice = f"they are in {TABLE} too; remove from the list what does not belong and run again"
    lines = [f"            {record['name']}: {'; '.join(record['warnings'])}" for record in warned[:SHOWN]]
    more = len(warned) - SHOWN
    rest = [f"            and {more} more, see records/"] if more > 0 else []
    return [f"warnings    for {len(warned)} of {len(records)} scans; {advice}", *lines, *rest]


def _similarity(record: Record) -> float:
    return record["similarity"]["after"] or 0.0
