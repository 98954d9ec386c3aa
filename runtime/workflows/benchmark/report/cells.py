"""Markdown tables and the numbers in them."""

from collections.abc import Iterable, Sequence
from typing import Any

PERCENTILES = ("min", "p10", "median", "mean", "p90", "p95", "p99")
GIB = 2**30


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table, columns padded: text to the left, what follows the first column's to the right."""
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
    """Cells of a summary in seconds, in ms."""
    return [ms(found[name]) for name in PERCENTILES]


def ms(seconds: float | None) -> str:
    """Seconds in ms, of three digits or so; microseconds at most."""
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
    """A summary's range."""
    return f"{found['min']:.2f} to {found['max']:.2f}"


def gigabytes(count: int | None) -> str:
    return number(None if count is None else count / 1e9, 2)


def gibibytes(count: int | None) -> str:
    return "not told" if count is None else f"{count / GIB:.1f} GiB"


def counts(passes: Iterable[Iterable[int]]) -> str:
    """Iterations by pass and level."""
    return " + ".join(f"({', '.join(map(str, passed))})" for passed in passes)


def by(shape: Iterable[int]) -> str:
    """A shape such as 160x192x160."""
    return "x".join(map(str, shape))
