"""The page of one or several benchmark records: machines side by side, stages, and every table."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....errors import InputError, explained
from ....pages.page import check_ours, write_page
from ....pages.plots import INK, SERIES, as_svg, new_figure, style_axes
from ....types import Record
from .cells import Section, Table, ms, number
from .plot import draw_stages, draw_volumes, place_of
from .text import head_facts, sections

FORMAT = "rpnet-benchmark"
BAR, WIDTH = 0.34, 9.0  # inches
PERCENTILES = ("p10", "median", "p95", "p99")


@dataclass(frozen=True)
class Machine:
    """A record as the page shows it: name of the machine, facts, warnings, pictures as SVG, and sections."""

    name: str
    facts: dict[str, str]
    warnings: Sequence[str]
    pictures: Sequence[str]
    sections: Sequence[Section]


def write_benchmark_page(path: Path, records: Sequence[Record]) -> None:
    """Write the page of benchmark records, complete or not at all.

    Args:
        path: of the file.
        records: from `run_benchmark`, or their JSON files.
    """
    names = _names(records)
    machines = [
        Machine(name, head_facts(record), record.get("doubts", ()), _pictures(record), sections(record))
        for name, record in zip(names, records, strict=True)
    ]
    pictures = [("Time of the loop", svg)] if (svg := _loops(names, records)) else []
    title = names[0] if len(names) == 1 else f"{len(names)} benchmarks"
    comparison = _comparison(names, records)
    write_page(path, "benchmark.html", title=title, machines=machines, pictures=pictures, comparison=comparison)


def read_record_of_benchmark(path: Path) -> Record:
    """Read a record that `benchmark --json` wrote.

    Raises:
        InputError: no such file, or not a record.
    """
    with explained("--compare"):
        text = path.read_text(encoding="utf-8")
    try:
        record = json.loads(text)
    except ValueError:
        record = None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise InputError(
            f"--compare: {path} is no record of a benchmark, expected a file that `benchmark --json` wrote"
        )
    return record


def check_page(path: Path) -> None:
    """Refuse, before any work, a page that cannot be written or would replace another file."""
    if path.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--html: got {path}, expected a name that ends in .html")
    check_ours(path)


def _names(records: Sequence[Record]) -> list[str]:
    """Return the names of the machines, told apart by their dates where they are equal."""
    names = [place_of(record) for record in records]
    return [
        f"{name}, {record.get('created', '')[:16].replace('T', ' ')}" if names.count(name) > 1 else name
        for name, record in zip(names, records, strict=True)
    ]


def _timed(record: Record) -> list[Record]:
    return [row for row in record["contenders"] if "loop" in row]


def _comparison(names: Sequence[str], records: Sequence[Record]) -> Table:
    """Return one line for each contender on each machine."""
    rows = []
    for name, record in zip(names, records, strict=True):
        megavoxels = _megavoxels(record)
        for row in _timed(record):
            account = row.get("account") or {}
            floor = (account.get("floor") or {}).get("total")
            median = row["loop"]["median"]
            rows.append(
                [
                    row["name"],
                    name,
                    *(ms(row["loop"][part]) for part in PERCENTILES),
                    ms(row["finish"]["median"]),
                    ms(median / megavoxels) if megavoxels else "-",
                    ms(floor),
                    number(100 * floor / account["loop"], 1) if floor and account.get("loop") else "-",
                ]
            )
    head = ("contender", "machine", *PERCENTILES, "finish", "per megavoxel", "floor", "floor, % of the loop")
    return Table(head, rows)


def _megavoxels(record: Record) -> float | None:
    shape = (record.get("pair") or {}).get("shape")
    return shape[0] * shape[1] * shape[2] / 1e6 if shape else None


def _loops(names: Sequence[str], records: Sequence[Record]) -> str | None:
    """Draw the median loop of every contender on every machine, with its 10th and 95th percentile."""
    found = [(name, row) for name, record in zip(names, records, strict=True) for row in _timed(record)]
    if not found:
        return None
    figure = new_figure(WIDTH, 0.9 + BAR * len(found))
    axes = figure.subplots()
    colours = {name: SERIES[n % len(SERIES)] for n, name in enumerate(names)}
    for place, (name, row) in enumerate(found):
        low, median, high = (row["loop"][part] for part in ("p10", "median", "p95"))
        axes.barh(place, median, height=0.6, color=colours[name])
        axes.plot([low, high], [place, place], color=INK, linewidth=1)
    axes.set_yticks(range(len(found)), [row["name"] for _, row in found])
    axes.set(xlabel="s per loop: median, line from the 10th to the 95th percentile")
    axes.invert_yaxis()
    _finish(axes)
    if len(names) > 1:
        _legend(figure, [(name, colour) for name, colour in colours.items()])
    return as_svg(figure, "Median time of the loop by contender and machine; the table above has the numbers")


def _pictures(record: Record) -> list[str]:
    """Draw the stages of a record's runs, and its time against volume, as far as they were measured."""
    found = []
    staged = sum("stages" in row for row in record["contenders"])
    if staged:
        figure = new_figure(WIDTH, 1.3 + BAR * staged)
        axes = figure.subplots()
        draw_stages(record, axes)
        _finish(axes)
        found.append(as_svg(figure, "Mean time of a run by stage, for each contender; numbers in the tables below"))
    if "shapes" in record:
        figure = new_figure(WIDTH, 4)
        axes = figure.subplots()
        draw_volumes(record, axes)
        _finish(axes)
        found.append(as_svg(figure, "Time of the loop against the number of voxels; the tables below have the numbers"))
    return found


def _finish(axes: Any) -> None:
    style_axes(axes)
    axes.yaxis.grid(False)
    for legend in filter(None, [axes.get_legend(), *axes.figure.legends]):
        legend.get_frame().set_visible(False)
        for text in legend.get_texts():
            text.set_color(INK)


def _legend(figure: Any, entries: Sequence[tuple[str, str]]) -> None:
    from matplotlib.patches import Patch

    legend = figure.legend(
        [Patch(color=colour) for _, colour in entries],
        [name for name, _ in entries],
        loc="outside lower center",
        ncols=1,
    )
    legend.get_frame().set_visible(False)
    for text in legend.get_texts():
        text.set_color(INK)
