"""Scores as files: JSON with everything, CSVs for other programs, Markdown tables like the paper's."""

import csv
import datetime
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from ....host.files.plain_json import as_json
from ....host.files.whole_files import write_text
from ....loop.schedules import LEVELS
from ....loop.stop_rules import DEFAULT_DELTA
from ....registration.output.report import versions
from ..methods import ITERSTOP, RP_NET, Method
from ..options import EvaluateOptions
from .evaluation import FIGURES, Evaluation, so_many_pairs
from .folder import LABELS, MARKDOWN, SCORES, TABLE

FORMAT, VERSION = "rpnet-evaluation", 1
PAPER_NAMES = {RP_NET: "RP-Net", ITERSTOP: "IIRP-Net"}
Cells = Sequence[str]
Column = tuple[str, str, int, int]
# Heading, score, factor, digits.
COLUMNS = (
    ("Dice %", "dice", 100, 2),
    ("HD95 mm", "hd95_mm", 1, 2),
    ("ASD mm", "asd_mm", 1, 3),
    ("landmarks mm", "landmark_error_mm", 1, 2),
    ("folded %", "folded_share", 100, 3),
    ("SDlogJ", "sd_log_jacobian", 1, 3),
    ("MSE 1e-3", "mse", 1000, 3),
    ("NCC", "ncc", 1, 4),
    ("loop s", "seconds_loop", 1, 2),
    ("all s", "seconds", 1, 2),
)


def write_tables(evaluation: Evaluation, options: EvaluateOptions) -> None:
    """Write scores.json, scores.csv, labels.csv and table.md, each complete or not at all."""
    folder = evaluation.folder
    write_text(folder / SCORES, as_json(_everything(evaluation, options)))
    write_text(folder / TABLE, _csv(["pair", "method", "engines", *FIGURES, *_LEVEL_NAMES], _score_rows(evaluation)))
    head = ["pair", "method", "engines", "label", "dice", "hd95_mm", "asd_mm"]
    write_text(folder / LABELS, _csv(head, _label_rows(evaluation)))
    write_text(folder / MARKDOWN, markdown(evaluation))


def markdown(evaluation: Evaluation) -> str:
    """Return table.md: every method, then the paper's tables as far as their methods were run."""
    count = len({name for method in evaluation.methods for name, _ in evaluation.entries(method)})
    parts = [
        f"# Scores of {so_many_pairs(count)}",
        "Mean ± standard deviation over pairs. docs/guide/evaluate.md defines every column.",
        table(evaluation),
    ]
    for title, rows in paper_tables(evaluation):
        parts += [f"## {title}", _aligned(rows)]
    return "\n\n".join(parts) + "\n"


def paper_tables(evaluation: Evaluation) -> list[tuple[str, list[Cells]]]:
    """Return title and rows, the head first, of the paper's tables as far as their methods were run."""
    tables = (
        ("RP-Net and IIRP-Net (the paper's Table 1)", list(_main_rows(evaluation))),
        ("Thresholds (the paper's Table 3)", list(_threshold_rows(evaluation))),
        ("Residual blocks (the paper's Table 2)", list(_ablation_rows(evaluation))),
    )
    return [(title, rows) for title, rows in tables if rows]


def table(evaluation: Evaluation) -> str:
    """Return a table with one line per method, without empty columns."""
    return _aligned(list(rows_of(evaluation, evaluation.methods)))


def rows_of(
    evaluation: Evaluation, chosen: Iterable[Method], known_as: Mapping[str, str] | None = None
) -> Iterator[Cells]:
    """Yield head and lines of some methods; `known_as` maps schedules to their names in the paper."""
    chosen = list(chosen)
    used = [column for column in COLUMNS if any(evaluation.values(method, column[1]) for method in chosen)]
    yield ["method", "pairs", *(head for head, *_ in used), "iterations"]
    for method in chosen:
        cells = [_cell(evaluation, method, column) for column in used]
        title = ", ".join(filter(None, ((known_as or {}).get(method.schedule), method.title)))
        yield [title, str(len(evaluation.entries(method))), *cells, _counts(evaluation.iterations(method))]


def _main_rows(evaluation: Evaluation) -> Iterator[Cells]:
    """Yield RP-Net, and IIRP-Net with the paper's threshold, unless the table above shows no others."""
    chosen = [
        method
        for method in evaluation.methods
        if method.schedule == RP_NET or (method.schedule == ITERSTOP and _is_default(method))
        if not method.settings.smooth
    ]
    shown = [*evaluation.methods[:1], *chosen]
    if {method.schedule for method in chosen} == {RP_NET, ITERSTOP} and len(shown) < len(evaluation.methods):
        yield from rows_of(evaluation, shown, PAPER_NAMES)


def _is_default(method: Method) -> bool:
    options = method.settings
    assert options.similarity is not None
    return options.delta == DEFAULT_DELTA[options.similarity]


def _threshold_rows(evaluation: Evaluation) -> Iterator[Cells]:
    """Yield the thresholds of IterStop, if there are several."""
    swept = [method for method in evaluation.methods if method.schedule == ITERSTOP]
    if len({method.settings.delta for method in swept}) > 1:
        yield from rows_of(evaluation, sorted(swept, key=_by_threshold))


def _by_threshold(method: Method) -> tuple:
    """Return the sort key: engine set, smoothing and `on_stop`, then the largest threshold first."""
    options = method.settings
    assert options.delta is not None
    return method.engines, options.smooth, options.on_stop, -float(np.mean(options.delta))


def _ablation_rows(evaluation: Evaluation) -> Iterator[Cells]:
    """Yield the methods of every engine set, if the sets differ in the number of residual blocks."""
    if len({facts["res_blocks"] for facts in evaluation.sets}) < 2:
        return
    used = [column for column in COLUMNS if column[1] in ("dice", "hd95_mm", "folded_share", "mse", "seconds_loop")]
    yield ["residual blocks", "parameters", "engines", "method", *(head for head, *_ in used)]
    for facts in sorted(evaluation.sets, key=lambda facts: facts["res_blocks"]):
        for method in (method for method in evaluation.methods if method.engines == facts["name"]):
            cells = [_cell(evaluation, method, column) for column in used]
            yield [str(facts["res_blocks"]), f"{facts['parameters']:,}", facts["name"], method.name, *cells]


def _cell(evaluation: Evaluation, method: Method, column: Column) -> str:
    """Format mean and standard deviation, with the number of pairs if not all scored pairs have this score."""
    _, figure, factor, digits = column
    found = evaluation.spread(method, figure)
    if found is None:
        return ""
    spread_text = f" ± {factor * found.sd:.{digits}f}" if found.count > 1 else ""
    fewer = found.count < len(evaluation.entries(method))
    return f"{factor * found.mean:.{digits}f}{spread_text}{f' ({so_many_pairs(found.count)})' if fewer else ''}"


def _counts(levels: Sequence[float]) -> str:
    return f"({', '.join(f'{level:.1f}' for level in levels)})" if levels else ""


def _aligned(rows: Sequence[Cells]) -> str:
    """Return a Markdown table with aligned columns; numbers to the right."""
    widths = [max(3, *(len(row[n]) for row in rows)) for n in range(len(rows[0]))]
    rule = ["-" * width if n == 0 else "-" * (width - 1) + ":" for n, width in enumerate(widths)]

    def line(cells: Cells) -> str:
        first, *others = zip(cells, widths, strict=True)
        return f"| {' | '.join((first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)))} |"

    return "\n".join(map(line, (rows[0], rule, *rows[1:])))


_LEVEL_NAMES = tuple(f"iterations_level{level}" for level in LEVELS)


def _score_rows(evaluation: Evaluation) -> Iterator[list[Any]]:
    for method in evaluation.methods:
        for name, entry in evaluation.entries(method):
            counts = [sum(levels) for levels in zip(*entry.get("iterations", ()), strict=True)] or [None] * len(LEVELS)
            yield [name, method.name, method.engines, *(entry.get(figure) for figure in FIGURES), *counts]


def _label_rows(evaluation: Evaluation) -> Iterator[list[Any]]:
    for method in evaluation.methods:
        for name, entry in evaluation.entries(method):
            for score in entry.get("labels", ()):
                numbers = (score[figure] for figure in ("label", "dice", "hd95_mm", "asd_mm"))
                yield [name, method.name, method.engines, *numbers]


def _csv(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([f"{cell:.6g}" if isinstance(cell, float) else cell for cell in row] for row in rows)
    return text.getvalue()


def _everything(evaluation: Evaluation, options: EvaluateOptions) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "choices": {**asdict(options.choices), **options.of_a_pair(options.label_ids)},
        "engine_sets": evaluation.sets,
        "methods": [_summary(evaluation, method) for method in evaluation.methods],
        "pairs": evaluation.records,
        "versions": versions(),
    }


def _summary(evaluation: Evaluation, method: Method) -> dict[str, Any]:
    found = {figure: evaluation.spread(method, figure) for figure in FIGURES}
    return {
        "name": method.name,
        "engines": method.engines,
        "options": method.options and vars(method.options),
        "places": method.families,
        "scores": {figure: vars(value) for figure, value in found.items() if value is not None},
        "iterations": evaluation.iterations(method),
    }
