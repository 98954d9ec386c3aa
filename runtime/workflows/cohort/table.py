"""Tables of pairs, and their parts for several processes (shards)."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ...errors import InputError, explained
from ...host.files.csv_lines import by_column, read_csv
from ...host.files.whole_files import write_text
from ...images.volume import scan_name

FILES = ("fixed", "moving", "moving_labels", "fixed_mask", "moving_mask")
COLUMNS = ("id", *FILES, "affine", "subject", "session", "group")
REQUIRED = ("fixed", "moving")
STEPS = ("auto", "affine", "rigid", "none")  # values of the affine that name no file


@dataclass(frozen=True)
class CohortRow:
    """One pair of a table.

    Attributes:
        id: name of the pair, of its folder and of its record.
        fixed, moving: scans. Whether they exist is found out when their turn comes.
        moving_labels, fixed_mask, moving_mask: as for `register`, or None.
        affine: as for `register`; None: that of the command line.
        subject, session, group: carried over into the summary.
    """

    id: str
    fixed: Path
    moving: Path
    moving_labels: Path | None = None
    fixed_mask: Path | None = None
    moving_mask: Path | None = None
    affine: str | None = None
    subject: str = ""
    session: str = ""
    group: str = ""

    def files(self) -> dict[str, Path]:
        """Return the files of the pair by column."""
        return {name: path for name in FILES if (path := getattr(self, name)) is not None}


def read_table(path: Path) -> tuple[CohortRow, ...]:
    """Read the pairs of a table: TSV or CSV with a header, columns of `COLUMNS` in any order.

    Cells may be empty, but for fixed and moving; paths may be relative to the table's folder. Without an id a pair is
    named after its scans.

    Raises:
        InputError: the table cannot be read, has an unknown column or lacks a required one, lists no pair, leaves a
            required cell empty, or has an id twice.
    """
    with explained("--pairs"):
        header, lines = read_csv(path, "--pairs", "id,fixed,moving")
    columns = list(by_column(header, []))
    unknown = [column for column in columns if column not in COLUMNS]
    if unknown or not set(REQUIRED) <= set(columns):
        raise InputError(
            f"--pairs: {path} has the columns {', '.join(columns) or 'none'}; expected fixed, moving and any of "
            f"{', '.join(name for name in COLUMNS if name not in REQUIRED)}"
        )
    rows = tuple(_row(path, number, by_column(header, cells)) for number, cells in lines)
    if not rows:
        raise InputError(f"--pairs: {path} lists no pair; expected one line per pair below the header")
    seen: dict[str, str] = {}
    for row in rows:
        if row.id.casefold() in seen:
            raise InputError(f"--pairs: {path} has two pairs called {row.id}; give different names in column id")
        seen[row.id.casefold()] = row.id
    return rows


def _row(table: Path, line: int, cells: dict[str, str]) -> CohortRow:
    for column in REQUIRED:
        if not cells[column]:
            raise InputError(f"--pairs: {table} line {line} names no {column} scan; name one or remove the line")
    files: dict[str, Any] = {name: table.parent / cells[name] for name in FILES if cells.get(name)}
    named = cells.get("id") or f"{scan_name(files['fixed'])}-{scan_name(files['moving'])}"
    affine = cells.get("affine") or None
    if affine is not None and affine not in STEPS:
        affine = str(table.parent / affine)
    carried: dict[str, Any] = {name: cells.get(name, "") for name in ("subject", "session", "group")}
    return CohortRow(safe_id(named), affine=affine, **files, **carried)


def safe_id(name: str) -> str:
    """Return a name with only characters that names of folders may have."""
    return re.sub(r"[^\w.+=-]+", "_", name).strip("._") or "pair"


def write_table(path: Path, rows: Iterable[CohortRow]) -> None:
    """Write rows as a TSV with the columns that any of them uses."""
    rows = list(rows)
    used = [field.name for field in fields(CohortRow) if any(getattr(row, field.name) for row in rows)]
    lines = ["\t".join(used)]
    lines += ["\t".join(str(getattr(row, name) or "") for name in used) for row in rows]
    write_text(path, "\n".join(lines) + "\n")


def in_order(rows: Sequence[CohortRow]) -> list[CohortRow]:
    """Return rows sorted so that those with one fixed scan, mask and affine follow one another."""
    return sorted(rows, key=lambda row: (str(row.fixed), str(row.fixed_mask or ""), row.affine or "", row.id))


def shard(rows: Sequence[CohortRow], index: int, count: int) -> list[CohortRow]:
    """Return one of `count` parts of ordered rows: contiguous, and equal but for one row.

    Args:
        rows: from `in_order`, the same in every process.
        index: from 0.
        count: number of parts.
    """
    first, last = (len(rows) * end // count for end in (index, index + 1))
    return list(rows[first:last])


def parse_shard(text: str) -> tuple[int, int]:
    """Parse "i/n", i from 0 to n - 1.

    Raises:
        InputError: anything else.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    index, count = map(int, found.groups()) if found else (0, 0)
    if not index < count:
        raise InputError(f"--shard: got {text!r}, expected i/n with i from 0 to n - 1, such as 0/8")
    return index, count


def all_pairs(scans: Sequence[Path]) -> list[CohortRow]:
    """Return every ordered pair of different scans."""
    names = _names(scans)
    pairs = [(f, m) for f in range(len(scans)) for m in range(len(scans)) if f != m]
    return [CohortRow(safe_id(f"{names[f]}-{names[m]}"), scans[f], scans[m]) for f, m in pairs]


def all_to(fixed: Path, scans: Sequence[Path]) -> list[CohortRow]:
    """Return each scan paired with one fixed scan."""
    named = zip(_names(scans), scans, strict=True)
    return [CohortRow(safe_id(name), fixed, scan, subject=name) for name, scan in named if scan != fixed]


def _names(scans: Sequence[Path]) -> list[str]:
    from ...images.scan_list import distinct_names

    return list(distinct_names(scans, "SCAN"))


def without(rows: Sequence[CohortRow], excluded: Iterable[str]) -> list[CohortRow]:
    """Return rows but those with the given ids."""
    gone = set(excluded)
    return [row for row in rows if row.id not in gone]


def relative_to(rows: Sequence[CohortRow], folder: Path) -> list[CohortRow]:
    """Return rows whose files are named relative to a folder where they lie below it, else absolutely."""

    def named(path: Path) -> Path:
        whole = path.absolute()
        return whole.relative_to(folder.absolute()) if whole.is_relative_to(folder.absolute()) else whole

    changed: list[dict[str, Any]] = [{name: named(path) for name, path in row.files().items()} for row in rows]
    return [replace(row, **files) for row, files in zip(rows, changed, strict=True)]
