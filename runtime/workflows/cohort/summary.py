"""The table of all pairs of a cohort, summary.tsv, and its page, index.html."""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from ...host.files.output_path import writing
from ...host.files.whole_files import write_text
from ...pages.index.ratings import Rating
from ...registration.output.index import write_index
from ...registration.quality.figures import Figures
from .records import DONE, FAILED, RUNNING, CohortFolder
from .table import CohortRow

SUMMARY = "summary.tsv"
OPEN = "open"  # not begun, or interrupted
FACTS = ("id", "state", "verdict", "reasons", "error", "decision", "attempt", "seconds", "host", "similarity")
FIGURES = tuple(field.name for field in fields(Figures))
CARRIED = ("subject", "session", "group")
COLUMNS = (*FACTS, *FIGURES, *CARRIED)


def write_summary(
    folder: CohortFolder, rows: Sequence[CohortRow], ratings: Mapping[str, Rating] | None = None, page: bool = True
) -> Counter[str]:
    """Write summary.tsv, and the page once every pair is finished; return the number of pairs by state.

    Args:
        folder: of the cohort.
        rows: all of its pairs, excluded ones too.
        ratings: decisions of people, by id.
        page: False to leave out index.html.
    """
    ratings = ratings or {}
    records = {row.id: folder.record(row) for row in rows}
    lines = [_line(row, records[row.id], ratings.get(row.id)) for row in rows]
    counts = Counter(line["state"] for line in lines)
    with writing(f"to {folder.path}"):
        write_text(folder.path / SUMMARY, _tsv(lines))
    if page and not counts[OPEN] and not counts[RUNNING]:
        done = [folder.result(row) for row in rows if records[row.id].get("state") == DONE]
        errors = {row.id: records[row.id]["error"] for row in rows if records[row.id].get("state") == FAILED}
        write_index(folder.path, done, errors, ratings)
    return counts


def _line(row: CohortRow, record: Mapping[str, Any], rating: Rating | None) -> dict[str, Any]:
    figures = record.get("figures") or {}
    facts = {
        **{name: record.get(name) for name in FACTS},
        "id": row.id,
        "state": record.get("state", OPEN),
        "reasons": "; ".join(record.get("reasons") or ()),
        "decision": rating.decision if rating else "",
        **{name: figures.get(name) for name in FIGURES},
    }
    return {**facts, **{name: getattr(row, name) for name in CARRIED}}


def _tsv(lines: Iterable[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, delimiter="\t", lineterminator="\n", restval="")
    writer.writeheader()
    for line in lines:
        writer.writerow({name: _cell(line[name]) for name in COLUMNS})
    return text.getvalue()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else " ".join(str(value).split())
