"""The page of many registrations, index.html."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...backends.verdict_limits import MEANINGS
from ...host.files.hashes import sha256
from ..page import write_page
from ..plots import RULE, SERIES, as_svg, new_figure
from .entries import CLEAR, COMPARED, Entry, compared, robust_spread
from .ratings import DECISIONS, Rating

BINS = 40
FARTHEST = 8  # robust standard deviations from the median; pairs farther out are counted at the ends
DIGITS = 5  # significant digits of the figures on the page


@dataclasses.dataclass(frozen=True)
class Distribution:
    """Distribution of one figure over all pairs: title, what it means to lie outside, its ends, and its histogram."""

    figure: str
    title: str
    meaning: str
    low: float
    high: float
    svg: str


def write_index_page(
    path: Path, title: str, entries: Sequence[Entry], ratings: Mapping[str, Rating] | None = None
) -> None:
    """Write the page of a list of registrations.

    Args:
        path: of the file.
        title: of the page.
        entries: in any order; the page has the worst first.
        ratings: ratings that the page starts with.
    """
    ordered = compared(entries)
    counts = {verdict: sum(entry.verdict == verdict for entry in ordered) for verdict in ("failed", "look", "ok")}
    counts["error"] = sum(entry.verdict == "error" for entry in ordered)
    write_page(
        path,
        "index.html",
        title=title,
        entries=ordered,
        counts=counts,
        data=[_plain(entry) for entry in ordered],
        distributions=[found for figure in COMPARED if (found := _distribution(figure, ordered))],
        figures=COMPARED,
        clear=CLEAR,
        decisions=DECISIONS,
        identity=sha256("\n".join(sorted(entry.name for entry in entries)).encode())[:16],
        ratings={name: dataclasses.asdict(rating) for name, rating in (ratings or {}).items()},
    )


def _plain(entry: Entry) -> dict[str, Any]:
    """Return an entry for the page's script, with short numbers."""
    facts = dataclasses.asdict(entry)
    facts["figures"] = {name: _short(value) for name, value in entry.figures.items() if value is not None}
    facts["z"] = {name: round(value, 2) for name, value in entry.z.items()}
    facts["worst"] = round(entry.worst, 2)
    return facts


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _distribution(figure: str, entries: Sequence[Entry]) -> Distribution | None:
    """Draw the histogram of a figure; None with fewer than two values."""
    values = [value for entry in entries if (value := entry.figures.get(figure)) is not None]
    if len(values) < 2:
        return None
    low, high = _ends(values)
    picture = new_figure(3, 0.9)
    picture.set_layout_engine("none")
    axes = picture.add_axes((0, 0.02, 1, 0.96))  # the full width, so that the page's script can place its marks
    axes.hist(np.clip(values, low, high), bins=min(BINS, max(len(values), 4)), range=(low, high), color=SERIES[0])
    axes.set_xlim(low, high)
    axes.set_axis_off()
    axes.axhline(0, color=RULE, linewidth=1)
    title = COMPARED[figure]
    svg = as_svg(picture, f"Histogram of {title} over {len(values)} pairs, from {low:.3g} to {high:.3g}")
    return Distribution(figure, title, MEANINGS[figure][1], low, high, svg)


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """Return the ends of a histogram: the extremes, or less if single pairs would squeeze all others together."""
    middle, spread = robust_spread(values)
    low, high = min(values), max(values)
    if spread > 0:
        low, high = max(low, middle - FARTHEST * spread), min(high, middle + FARTHEST * spread)
    if low == high:
        low, high = low - abs(low) / 100 - 1e-6, high + abs(high) / 100 + 1e-6
    return low, high
