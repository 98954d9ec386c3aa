"""Tables of the records: means by group of pairs and method, and every couple."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from measurements.validation.methods import Method
from measurements.validation.run import DIRECTIONS, Folder, key_of, read_record
from measurements.validation.scans import Couple
from measurements.validation.structures import GROUPS, mean_by_group
from measurements.validation.template import overlaps

FIGURES = ("all", *GROUPS, "folded", "sd_log_jacobian", "inconsistency", "ncc")
HEADINGS = ("Dice", *GROUPS, "folded %", "SDlogJ", "there and back, mm", "NCC")
ONE_WAY = ("chain", "pair")  # groups averaged over the first direction only, as in other tables


@dataclass(frozen=True)
class Row:
    """Figures of one couple and direction, by name (`FIGURES`; those that do not apply are left out)."""

    couple: Couple
    direction: str
    figures: dict[str, float]


def rows(couples: list[Couple], method: Method, hashes: dict[str, str], affine: str, folder: Folder) -> list[Row]:
    """Return the recorded rows of a method."""
    key = key_of(method, hashes if method.options else {}, affine if method.options else "")
    files = {couple: folder.record(couple, key) for couple in couples}
    records = {couple: read_record(path) for couple, path in files.items() if path.exists()}
    votes = {couple.other.name: folder.warped_labels(couple, key) for couple in records if couple.one.labels is None}
    template_dice = overlaps(votes) if len(votes) > 1 else {}
    found = []
    for couple, record in records.items():
        for direction in DIRECTIONS:
            entry = record[direction]
            if couple.one.labels is None and template_dice:
                entry["dice"] = template_dice[couple.other.name][direction]
            found.append(Row(couple, direction, _figures(entry)))
    return found


def _figures(entry: dict[str, Any]) -> dict[str, float]:
    figures = {name: entry[name] for name in ("folded", "sd_log_jacobian", "ncc")}
    figures["folded"] *= 100
    figures["inconsistency"] = entry["inconsistency"]["mean_mm"]
    return figures | (mean_by_group(entry["dice"]) if "dice" in entry else {})


def sections(found: list[Row]) -> dict[str, list[Row]]:
    """Group rows by the heading they are averaged under; those of the template by direction."""
    parts: dict[str, list[Row]] = {}
    for row in found:
        group = row.couple.group
        if group == "template":
            group = {"forward": "onto the template", "backward": "template onto a subject"}[row.direction]
        elif group in ONE_WAY and row.direction == "backward":
            continue
        parts.setdefault(group, []).append(row)
    return parts


def table(by_method: dict[str, list[Row]], couples: Iterable[str] | None = None) -> str:
    """Return a Markdown table, one line per group and method.

    Args:
        by_method: rows by title.
        couples: names of the couples to average over; None: all that the method has.
    """
    lines = [_line(["pairs", "n", "method", *HEADINGS]), _line(["---"] * (len(HEADINGS) + 3))]
    parts = {title: sections(found) for title, found in by_method.items()}
    for group in dict.fromkeys(group for part in parts.values() for group in part):
        for title, part in parts.items():
            chosen = [row for row in part.get(group, []) if couples is None or row.couple.name in couples]
            if chosen:
                lines.append(_line([group, str(len(chosen)), title, *_means(chosen)]))
    return "\n".join(lines)


def _means(chosen: list[Row]) -> list[str]:
    cells = []
    for name in FIGURES:
        values = [row.figures[name] for row in chosen if name in row.figures]
        cells.append(f"{np.mean(values):.3f}" if values else "")
    return cells


def details(by_method: dict[str, list[Row]]) -> str:
    """Return a Markdown table of every couple and direction: Dice and SDlogJ of each method."""
    titles = list(by_method)
    lines = [_line(["pair", *titles]), _line(["---"] * (len(titles) + 1))]
    cells: dict[str, dict[str, str]] = {}
    for title, found in by_method.items():
        for row in found:
            name = f"{row.couple.name} {row.direction}"
            dice = f"{row.figures['all']:.3f}" if "all" in row.figures else "-"
            cells.setdefault(name, {})[title] = f"{dice} ({row.figures['sd_log_jacobian']:.2f})"
    lines += [_line([name, *(found.get(title, "") for title in titles)]) for name, found in cells.items()]
    return "\n".join(lines)


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
