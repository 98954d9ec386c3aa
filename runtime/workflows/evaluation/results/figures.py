"""Pictures of an evaluation: Dice of every label before and after, and scores against counts and thresholds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ....host.files.whole_files import atomic_path
from ....loop.schedules import LEVELS
from ....pages.plots import new_figure
from ..methods import BEFORE, Method
from .evaluation import Evaluation, Spread, so_many_pairs
from .folder import BOXES, CURVES, DELTAS

INK, FAINT, BEFORE_COLOUR, AFTER_COLOUR = "#222222", "#8a8a8a", "#b9b9b9", "#0072b2"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6a4c93", "#7f7f7f")
MARKERS = "osD^vPX*"
ROW, LABELS_A_COLUMN, COLUMN_WIDTH = 0.2, 50, 5.2  # inches, number, inches
FEWEST = 4  # pairs from which on a box is drawn
PANELS = (("Dice, %", "dice", 100), ("folded voxels, %", "folded_share", 100), ("loop, s", "seconds_loop", 1))


def write_pictures(evaluation: Evaluation) -> None:
    """Write boxes.png, curves.png and deltas.png, each complete or not at all; remove those without data.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    for name, draw in ((BOXES, draw_boxes), (CURVES, draw_curves), (DELTAS, draw_deltas)):
        path, figure = evaluation.folder / name, draw(evaluation)
        if figure is None:
            path.unlink(missing_ok=True)
        else:
            _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)


def draw_boxes(evaluation: Evaluation) -> Any:
    """Draw the Dice of each label over pairs, before and after the method of `shown_method`; None without labels."""
    method = shown_method(evaluation)
    sides = [side for side in (_by_label(evaluation, BEFORE), method and _by_label(evaluation, method.title)) if side]
    if not sides:
        return None
    labels = sorted(set().union(*sides))
    columns = -(-len(labels) // LABELS_A_COLUMN)
    rows = -(-len(labels) // columns)
    figure = new_figure(COLUMN_WIDTH * columns + 0.6, ROW * rows + 1.4)
    for axes, start in zip(np.ravel(figure.subplots(1, columns)), range(0, len(labels), rows), strict=True):
        _draw_labels(axes, labels[start : start + rows], rows, sides)
    figure.legend(*_legend(evaluation, method), loc="outside upper center", ncols=2, frameon=False)
    return figure


def shown_method(evaluation: Evaluation) -> Method | None:
    """Return the first method with a stop rule and scores, else the last with scores."""
    scored = [method for method in evaluation.methods if method.name != BEFORE and evaluation.entries(method)]
    return next((method for method in scored if method.stops), scored[-1] if scored else None)


def _by_label(evaluation: Evaluation, title: str) -> dict[int, list[float]]:
    """Return the Dice of every pair, by label."""
    found: dict[int, list[float]] = {}
    for record in evaluation.records:
        for score in record["methods"].get(title, {}).get("labels", ()):
            found.setdefault(score["label"], []).append(score["dice"])
    return found


def _draw_labels(axes: Any, labels: Sequence[int], rows: int, sides: Sequence[dict[int, list[float]]]) -> None:
    for number, (side, colour) in enumerate(zip(sides, (BEFORE_COLOUR, AFTER_COLOUR), strict=False)):
        shift = 0.19 if len(sides) == 1 else (-0.19, 0.19)[number]
        places = [row + shift for row, label in enumerate(labels) if label in side]
        values = [side[label] for label in labels if label in side]
        if not values:
            continue
        if max(map(len, values)) < FEWEST:
            points = [(dice, place) for place, found in zip(places, values, strict=True) for dice in found]
            axes.scatter(*zip(*points, strict=True), s=14, color=colour)
            continue
        axes.boxplot(
            values,
            positions=places,
            orientation="horizontal",
            widths=0.32,
            patch_artist=True,
            manage_ticks=False,
            whis=(0, 100),
            showcaps=False,
            medianprops={"color": INK, "linewidth": 1.1},
            whiskerprops={"color": colour, "linewidth": 0.9},
            boxprops={"facecolor": colour, "edgecolor": "none"},
        )
    axes.set(yticks=range(len(labels)), yticklabels=labels, ylim=(rows - 0.5, -0.5), xlim=(0, 1), xlabel="Dice")
    axes.tick_params(axis="y", labelsize=7.5, length=0)
    axes.xaxis.grid(True, color="#e4e4e4", linewidth=0.7)
    for row in range(1, len(labels), 2):
        axes.axhspan(row - 0.5, row + 0.5, color="#f6f6f6", zorder=0)
    _bare(axes)


def _legend(evaluation: Evaluation, method: Method | None) -> tuple[list[Any], list[str]]:
    from matplotlib.patches import Patch

    found = [("affine initialisation", BEFORE, BEFORE_COLOUR)] if _by_label(evaluation, BEFORE) else []
    if method:
        found.append((method.title, method.title, AFTER_COLOUR))
    *others, (last, title, _) = found
    count = sum("labels" in record["methods"].get(title, ()) for record in evaluation.records)
    names = [*(name for name, *_ in others), f"{last} ({_pairs(count)})"]
    return [Patch(color=colour) for *_, colour in found], names


def _pairs(count: int) -> str:
    """Return the number of pairs and, with boxes, how to read them."""
    many = so_many_pairs(count)
    return many if count < FEWEST else f"{many}: box to the quartiles, lines to the extremes"


def draw_curves(evaluation: Evaluation) -> Any:
    """Draw Dice, folds and time against t: a line per family, a row of panels per engine set; None without families."""
    families = list(dict.fromkeys(family for method in evaluation.methods for family, _ in method.families))
    sets = list(dict.fromkeys(method.engines for method in evaluation.methods if method.families))
    if not families:
        return None
    figure = new_figure(13, 4.2 * len(sets) + 0.5)
    rows = figure.subplots(len(sets), len(PANELS), squeeze=False)
    for engines, row in zip(sets, rows, strict=True):
        for (title, figure_name, factor), axes in zip(PANELS, row, strict=True):
            for number, family in enumerate(families):
                line = [
                    (t, found)
                    for method in evaluation.methods
                    for place, t in method.families
                    if place == family and method.engines == engines
                    if (found := evaluation.spread(method, figure_name)) is not None
                ]
                _draw_line(axes, sorted(line, key=lambda point: point[0]), factor, number, family)
            _draw_reference(axes, evaluation, engines, figure_name, factor)
            axes.set(xlabel="t", ylabel=title, title=engines if figure_name == "dice" else "")
            axes.xaxis.get_major_locator().set_params(integer=True)
            _bare(axes, grid=True)
    _shared_legend(figure, rows[0][0])
    return figure


def _draw_reference(axes: Any, evaluation: Evaluation, engines: str, figure: str, factor: float) -> None:
    """Draw the engine set's first method with a stop rule as a horizontal line."""
    method = next((m for m in evaluation.methods if m.stops and m.engines == engines and evaluation.entries(m)), None)
    found = method and evaluation.spread(method, figure)
    if method and found:
        axes.axhline(factor * found.mean, color=INK, linestyle=(0, (5, 3)), linewidth=1, label=method.name)


def draw_deltas(evaluation: Evaluation) -> Any:
    """Draw Dice, folds and iterations against a stop rule's threshold; None with fewer than two thresholds."""
    series: dict[str, list[tuple[float, Method]]] = {}
    for method in evaluation.methods:
        if method.stops and isinstance(method.settings.delta, float) and evaluation.entries(method):
            series.setdefault(_series_name(method), []).append((method.settings.delta, method))
    series = {name: sorted(points, key=lambda point: point[0]) for name, points in series.items() if len(points) > 1}
    if not series:
        return None
    figure = new_figure(13, 4.6)
    panels = figure.subplots(1, 3)
    for number, (name, points) in enumerate(series.items()):
        for (_, figure_name, factor), axes in zip(PANELS[:2], panels, strict=False):
            found = ((delta, evaluation.spread(method, figure_name)) for delta, method in points)
            _draw_line(axes, [(delta, spread) for delta, spread in found if spread], factor, number, name)
        _draw_iterations(panels[2], evaluation, points, number)
    for (title, *_), axes in zip(PANELS[:2], panels, strict=False):
        axes.set(ylabel=title)
    panels[2].set(ylabel="iterations, mean")
    deltas = sorted({delta for points in series.values() for delta, _ in points})
    for axes in panels:
        axes.set(xscale="log", xlabel="delta")
        axes.set_xticks(deltas, [f"{delta:g}" for delta in deltas])
        axes.minorticks_off()
        axes.invert_xaxis()
        _bare(axes, grid=True)
    _shared_legend(figure, panels[0])
    return figure


def _series_name(method: Method) -> str:
    """Return the method's title without its threshold."""
    words = [word for word in method.title.split() if word != f"{method.settings.delta:g}"]
    return " ".join(words)


def _draw_iterations(axes: Any, evaluation: Evaluation, points: Sequence[tuple[float, Method]], number: int) -> None:
    """Draw one line per level, labelled for the first series only."""
    deltas = [delta for delta, _ in points]
    counts = np.array([evaluation.iterations(method) for _, method in points])
    for level, line, style in zip(LEVELS, counts.T, ("-", "--", "-.", ":"), strict=True):
        axes.plot(deltas, line, style, color=COLOURS[number % len(COLOURS)], linewidth=1.5)
        if not number:
            place = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
            axes.annotate(f"level {level}", (deltas[0], line[0]), fontsize=8, color=INK, annotation_clip=False, **place)


def _draw_line(axes: Any, points: Sequence[tuple[float, Spread]], factor: float, number: int, name: str) -> None:
    """Draw means, and a band of one standard deviation over pairs on either side."""
    if not points:
        return
    places = [place for place, _ in points]
    mean, sd = (factor * np.array([getattr(found, part) for _, found in points]) for part in ("mean", "sd"))
    colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
    axes.plot(places, mean, color=colour, marker=marker, markersize=4, linewidth=1.5, label=name)
    axes.fill_between(places, mean - sd, mean + sd, color=colour, alpha=0.06, linewidth=0)


def _shared_legend(figure: Any, axes: Any) -> None:
    handles, names = axes.get_legend_handles_labels()
    note = "band: one standard deviation over pairs"
    figure.legend(handles, names, loc="outside upper center", ncols=min(len(names), 8), frameon=False)
    figure.supxlabel(note, fontsize=8, color=FAINT)


def _bare(axes: Any, grid: bool = False) -> None:
    """Remove the frame except for a faint line at the bottom."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.tick_params(color=FAINT, labelcolor=INK)
    axes.set_axisbelow(True)
    if grid:
        axes.grid(True, color="#ececec", linewidth=0.8)
