"""Markdown tables and the numbers in them."""

from collections.abc import Iterable, Sequence
from typing import Any

PERCENTILES = ("min", "p10", "median", "mean", "p90", "p95", "p99")
GIB = 2**30


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table with padded columns: text to the left, columns of numbers to the right."""
    rows = [list(map(str, row)) for row in rows]
    widths = [max(3, *(len(row[n]) for row in (head, *rows))) for n in range(len(head))]
    numeric = [
        n > 0 and all(row[n].lstrip("-(")[:1].isdigit() or row[n] in ("", "-") for row in rows)
        for n in range(len(head))
    ]

    def line(cells: Sequence[str]) -> str:
        padded = [c.rjust(w) if right else c.ljust(w) for c, w, right in zip(cells, widths, numeric, strict=True)]
        return f"| {' | '.join(padded)} |"

    rule = [f"{'-' * (w - 1)}{':' if right else '-'}" for w, right in zip(widths, numeric, strict=True)]
    return [line(head), line(rule), *map(line, rows)]


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
