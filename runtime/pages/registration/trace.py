"""The trace of the loop as a plot: similarity by iteration, what each test asked for, and what ended each level."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..plots import BAND, FAINT, INK, SERIES, as_svg, new_figure, style_axes

LEVELS = (4, 3, 2, 1)


@dataclass(frozen=True)
class Step:
    """One decision of the loop, flattened.

    Attributes:
        order: position among all decisions, from 0.
        level_index: position of its level among all levels run.
        level, iteration: of the loop.
        before, after, delta, margin: similarities, threshold and margin of its test; None where there was none.
        kept: whether the candidate became the level's flow.
    """

    order: int
    level_index: int
    level: int
    iteration: int
    before: float | None
    after: float | None
    delta: float | None
    margin: float | None
    kept: bool


def steps_of(iterations: Mapping[str, Any]) -> list[Step]:
    """Return all decisions in order.

    Args:
        iterations: ``iterations`` of a registration's report.
    """
    found: list[Step] = []
    index = 0
    for traces in iterations.get("passes", ()):
        for trace in traces:
            for one in trace["decisions"]:
                before, after, delta, margin = (one.get(name) for name in ("before", "after", "delta", "margin"))
                place = len(found), index, trace["level"], one["iteration"]
                found.append(Step(*place, before, after, delta, margin, one["kept"]))
            index += 1
    return found


def reasons_of(iterations: Mapping[str, Any]) -> list[tuple[int, str]]:
    """Return level and reason for its end, of every level run."""
    return [(trace["level"], trace["reason"]) for traces in iterations.get("passes", ()) for trace in traces]


def draw_trace(iterations: Mapping[str, Any]) -> str | None:
    """Draw the trace as SVG; None if no similarity was taken, as with fixed iterations."""
    steps, reasons = steps_of(iterations), reasons_of(iterations)
    known = [step for step in steps if step.after is not None]
    if not known:
        return None
    start = iterations.get("similarity_after_affine")
    figure = new_figure(9, 3.1)
    axes = figure.subplots()
    for index, (level, reason) in enumerate(reasons):
        orders = [step.order for step in steps if step.level_index == index]
        if not orders:
            continue
        first, last = orders[0] - 0.5, orders[-1] + 0.5
        if index % 2 == 0:
            axes.axvspan(first, last, color=BAND, linewidth=0)
        top = axes.get_xaxis_transform()
        middle = (first + last) / 2
        axes.text(middle, 1.09, f"level {level}", color=INK, ha="center", va="bottom", transform=top)
        axes.text(middle, 1.02, _wrapped(reason, last - first), color=FAINT, ha="center", transform=top, fontsize=7.5)
    if start is not None:
        axes.plot([-1], [start], "s", color=SERIES[2])
    line = [(step.order, step.after) for step in known if step.kept]
    if start is not None:
        line.insert(0, (-1, start))
    axes.plot(*zip(*line, strict=True), "-", color=SERIES[0], linewidth=1.5)
    for step in known:
        face = SERIES[0] if step.kept else "none"
        axes.plot([step.order], [step.after], "o", color=SERIES[0], markerfacecolor=face, markersize=6)
        if step.before is not None and step.delta is not None:
            wanted = step.before + step.delta
            axes.plot([step.order - 0.32, step.order + 0.32], [wanted, wanted], color=SERIES[1], linewidth=2)
    axes.set(ylabel=iterations.get("similarity", "similarity"), xlabel="iteration", xlim=(-1.5, len(steps) - 0.5))
    axes.set_xticks([-1, *(step.order for step in steps)], ["affine", *(str(step.iteration) for step in steps)])
    style_axes(axes)
    counts = "; ".join(f"level {level}: {reason}" for level, reason in reasons)
    return as_svg(figure, f"Similarity by iteration. {counts}. The table below has the same numbers.")


def _wrapped(reason: str, width: float) -> str:
    """Return a reason, shortened to what fits over so many iterations."""
    room = max(int(width * 9), 4)
    return reason if len(reason) <= room else reason[: room - 1].rstrip() + "…"
