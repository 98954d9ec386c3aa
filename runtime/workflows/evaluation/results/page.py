"""The page of an evaluation, index.html: its tables, figures, and the pairs behind each number."""

from dataclasses import dataclass
from typing import Any

from ....host.files.whole_files import write_text
from ....pages.page import render
from ....pages.plots import as_svg
from .evaluation import Evaluation, so_many_pairs
from .figures import draw_boxes, draw_curves, draw_deltas, shown_method
from .folder import PAGE
from .tables import COLUMNS, Cells, paper_tables, rows_of

FIGURES = (
    ("Dice of each label", draw_boxes, "Dice of each label over the pairs, before and after"),
    (
        "Against the number of iterations",
        draw_curves,
        "Dice, folds and time of each family of schedules against t",
    ),
    ("Against the threshold", draw_deltas, "Dice, folded voxels and iterations against the threshold of the stop rule"),
)


@dataclass(frozen=True)
class PairRow:
    """The scores of one pair by one method: formatted cells beside the values to sort by."""

    pair: str
    method: str
    cells: list[tuple[str, float | None]]


def write_evaluation_page(evaluation: Evaluation) -> None:
    """Write the page of an evaluation, complete or not at all."""
    used = [column for column in COLUMNS if any(evaluation.values(method, column[1]) for method in evaluation.methods)]
    shown = shown_method(evaluation)
    text = render(
        "evaluation.html",
        title=f"Evaluation of {so_many_pairs(len(evaluation.records))}",
        folder=evaluation.folder.absolute().name,
        table=_table(list(rows_of(evaluation, evaluation.methods))),
        paper=[(title, _table(rows)) for title, rows in paper_tables(evaluation)],
        figures=[
            (title, as_svg(figure, words)) for title, draw, words in FIGURES if (figure := draw(evaluation)) is not None
        ],
        heads=[head for head, *_ in used],
        rows=_pair_rows(evaluation, used),
        methods=[method.title for method in evaluation.methods],
        shown=shown.title if shown else evaluation.methods[0].title,
        sets=evaluation.sets,
        failures=evaluation.failures,
        warnings=evaluation.warnings,
    )
    write_text(evaluation.folder / PAGE, text)


def _table(rows: list[Cells]) -> dict[str, Any]:
    return {"head": rows[0], "rows": rows[1:], "numeric": [False] + [True] * (len(rows[0]) - 1)}


def _pair_rows(evaluation: Evaluation, used: list[Any]) -> list[PairRow]:
    found = []
    for method in evaluation.methods:
        for name, entry in evaluation.entries(method):
            cells = []
            for _, figure, factor, digits in used:
                value = entry.get(figure)
                cells.append(("" if value is None else f"{factor * value:.{digits}f}", value))
            found.append(PairRow(name, method.title, cells))
    return found
