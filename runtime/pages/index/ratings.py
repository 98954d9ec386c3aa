"""Ratings of registrations by people: the table that the page of many registrations saves, read back."""

import csv
from dataclasses import dataclass
from pathlib import Path

from ...errors import InputError, explained

DECISIONS = ("keep", "redo", "exclude")
COLUMNS = ("name", "decision", "options", "note")


@dataclass(frozen=True)
class Rating:
    """What somebody decided on a registration.

    Attributes:
        name: of the registration in its list.
        decision: "keep", "redo" or "exclude"; "" if there is only a note.
        options: options for doing it again, as on the command line.
        note: free text.
    """

    name: str
    decision: str
    options: str = ""
    note: str = ""


@explained("--ratings")
def read_ratings(path: Path) -> dict[str, Rating]:
    """Read ratings.tsv, tab-separated columns name, decision, options and note, by name.

    Raises:
        InputError: no such file, other columns, or a decision that is none.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = csv.DictReader(file, delimiter="\t")
        if tuple(lines.fieldnames or ())[: len(COLUMNS)] != COLUMNS:
            raise InputError(
                f"--ratings: {path} has the columns {', '.join(lines.fieldnames or ())}, expected "
                f"{', '.join(COLUMNS)}, separated by tabs, as the page of the registrations saves them"
            )
        found = {}
        for line in lines:
            rating = Rating(*((line[name] or "").strip() for name in COLUMNS))
            if rating.decision not in (*DECISIONS, ""):
                raise InputError(
                    f"--ratings: {path}, line {lines.line_num}: got the decision {rating.decision!r}, expected "
                    f"{', '.join(DECISIONS)} or nothing"
                )
            found[rating.name] = rating
    return found
