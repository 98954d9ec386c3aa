"""Tables of a record, and the numbers in them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

PERCENTILES = ("min", "p10", "median", "mean", "p90", "p95", "p99")
GIB = 2**30


@dataclass(frozen=True)
class Table:
    """A table of formatted cells."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    @property
    def numeric(self) -> list[bool]:
        """Which columns hold numbers: all but the first whose cells begin with a digit or are empty."""
        return [
            n > 0 and all(row[n].lstrip("-(")[:1].isdigit() or row[n] in ("", "-") for row in self.rows)
            for n in range(len(self.head))
        ]

    def lines(self) -> list[str]:
        """Return the lines of a Markdown table, padded: text to the left, columns of numbers to the right."""
        widths = [max(3, *(len(row[n]) for row in (self.head, *self.rows))) for n in range(len(self.head))]
        numeric = self.numeric

        def line(cells: Sequence[str]) -> str:
            padded = [c.rjust(w) if right else c.ljust(w) for c, w, right in zip(cells, widths, numeric, strict=True)]
            return f"| {' | '.join(padded)} |"

        rule = [f"{'-' * (w - 1)}{':' if right else '-'}" for w, right in zip(widths, numeric, strict=True)]
        return [line(self.head), line(rule), *map(line, self.rows)]


@dataclass(frozen=True)
class Section:
    """One part of a record as it is shown: a title, what is to be known before its tables, the tables, and notes."""

    title: str
    words: Sequence[str] = ()
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()

    def markdown(self) -> str:
        return "\n\n".join(
            [f"## {self.title}", *self.words, *("\n".join(table.lines()) for table in self.tables), *self.notes]
        )


def percentiles(found: dict[str, Any]) -> list[str]:
    """Return the cells of a summary in seconds, converted to ms."""
    return [ms(found[name]) for name in PERCENTILES]


def ms(seconds: float | None) -> str:
    """Format seconds in ms with about three digits, at most three of them decimals."""
    if seconds is None:
        return "-"
    value = 1000 * seconds
    digits = sum(abs(value) < limit for limit in (100, 10, 1))
    return f"{value:.{digits}f}"


def in_seconds(value: float | None) -> str:
    return number(value, 2)


def number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def extent(found: dict[str, Any]) -> str:
    """Return the range of a summary."""
    return f"{found['min']:.2f} to {found['max']:.2f}"


def gigabytes(count: int | None) -> str:
    return number(None if count is None else count / 1e9, 2)


def gibibytes(count: int | None) -> str:
    return "unknown" if count is None else f"{count / GIB:.1f} GiB"


def counts(passes: Iterable[Iterable[int]]) -> str:
    """Format iterations by pass and level."""
    return " + ".join(f"({', '.join(map(str, passed))})" for passed in passes)


def by(shape: Iterable[int]) -> str:
    """Format a shape, such as 160x192x160."""
    return "x".join(map(str, shape))
