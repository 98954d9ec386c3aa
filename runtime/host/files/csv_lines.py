"""CSV files with a header line."""

import csv
from pathlib import Path

from ...errors import InputError, first_line
from .regular_files import require_file

LARGEST = 1 << 30  # bytes of a file
A_CSV = "a CSV with a header such as "
DIVIDERS = (",", ";", "\t")  # cell separators; spreadsheets write semicolons where the comma is the decimal point
Lines = list[tuple[int, list[str]]]


def read_csv(path: Path, argument: str, columns: str) -> tuple[list[str], Lines]:
    """Read a CSV's header and its non-blank lines, each with its line number in the file; cells are not stripped.

    Args:
        path: the file; a byte order mark is dropped.
        argument: what to call it in messages.
        columns: an example of the header, for messages.

    Raises:
        InputError: the file is missing, empty or unreadable.
    """
    require_file(path, argument, LARGEST)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, delimiter=divider_in(file.readline()))
            file.seek(0)
            lines = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = first_line(error)
        raise InputError(f"{argument}: cannot read {path} ({reason}); expected {A_CSV}{columns}") from None
    if not lines:
        raise InputError(f"{argument}: {path} is empty, expected {A_CSV}{columns}")
    return lines[0][1], lines[1:]


def divider_in(header: str) -> str:
    """Return the separator of a header's cells: the first of `DIVIDERS` that occurs in it, else a comma."""
    return next((divider for divider in DIVIDERS if divider in header), DIVIDERS[0])


def by_column(header: list[str], cells: list[str]) -> dict[str, str]:
    """Return stripped cells by lower-case column name; "" for the cells that a short line lacks."""
    cells = [cell.strip() for cell in cells] + [""] * (len(header) - len(cells))
    return dict(zip((name.strip().casefold() for name in header), cells, strict=False))
