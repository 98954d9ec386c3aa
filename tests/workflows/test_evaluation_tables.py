"""Means, spreads, tables and pictures of an artificial evaluation in which every number is known."""

import dataclasses
import math
from pathlib import Path

import pytest

from runtime.registration.options import Options
from runtime.workflows.evaluation.methods import BEFORE, FAMILIES, Method
from runtime.workflows.evaluation.options import EvaluateOptions
from runtime.workflows.evaluation.pair_list import EvaluationPair
from runtime.workflows.evaluation.results.evaluation import Evaluation, Spread
from runtime.workflows.evaluation.results.figures import (
    draw_boxes,
    draw_curves,
    draw_deltas,
    shown_method,
    write_pictures,
)
from runtime.workflows.evaluation.results.tables import markdown, write_tables

LABELS = range(1, 97)
FULL = {"similarity": "ncc", "max_iterations": 10}


def stopping(delta: float, on_stop: str = "keep", engines: str = "") -> Method:
    options = Options(schedule="iterstop", delta=delta, on_stop=on_stop, **FULL)
    return Method(f"iterstop {on_stop} {delta:g}", options, engines=engines)


def counted(schedule: str, *places, engines: str = "") -> Method:
    return Method(schedule, Options(schedule=schedule, similarity="ncc"), places, engines)


def entry(dice: float, counts=(1, 2, 3, 4), **others) -> dict:
    labels = [{"label": label, "dice": dice, "hd95_mm": 2.0, "asd_mm": 1.0} for label in LABELS]
    scores = {"dice": dice, "hd95_mm": 2.0, "asd_mm": 1.0, "labels": labels, "labels_lost": 0, "seconds": 3.0}
    return {**scores, "folded_share": 0.001, "seconds_loop": 2.0, "iterations": [list(counts)], **others}


def without_labels(found: dict) -> dict:
    return {name: value for name, value in found.items() if name not in ("dice", "hd95_mm", "asd_mm", "labels")}


def evaluation(methods, *pairs, folder=Path("nowhere"), sets=({"name": "", "res_blocks": 2},)) -> Evaluation:
    """Return an evaluation of pairs, each a mapping from a method's title to its entry."""
    records = tuple({"name": f"p{n}", "methods": dict(found)} for n, found in enumerate(pairs))
    return Evaluation(folder, tuple(methods), records, sets)


BEFORE_METHOD = Method(BEFORE, Options(schedule="0,0,0,0", similarity="ncc"))
RP, KEEP = counted("1,1,1,1"), stopping(0.005)


class TestMeans:
    def test_mean_and_sample_standard_deviation_over_pairs(self):
        found = evaluation([RP], {RP.title: entry(0.5)}, {RP.title: entry(0.7)})
        assert found.spread(RP, "dice") == Spread(pytest.approx(0.6), pytest.approx(0.2 / math.sqrt(2)), 2)

    def test_one_pair_has_no_spread(self):
        assert evaluation([RP], {RP.title: entry(0.5)}).spread(RP, "dice") == Spread(0.5, 0.0, 1)

    def test_failures_and_what_was_not_scored_are_left_out(self):
        failed = {"error": "no overlap"}
        found = evaluation(
            [RP, KEEP], {RP.title: entry(0.5), KEEP.title: failed}, {RP.title: {**entry(0.7), "dice": None}}
        )
        assert found.spread(RP, "dice").count == 1 and found.spread(KEEP, "dice") is None
        assert found.failures == [("p0, iterstop keep 0.005", "no overlap")]

    def test_iterations_are_means_by_level_and_passes_are_added_up(self):
        cascade = entry(0.7, iterations=[[1, 1, 1, 1], [1, 1, 1, 1]])
        assert evaluation([RP], {RP.title: entry(0.5)}, {RP.title: cascade}).iterations(RP) == [1.5, 2, 2.5, 3]


class TestTables:
    def test_cells(self):
        found = evaluation([RP], {RP.title: entry(0.5)}, {RP.title: entry(0.7)})
        lines = markdown(found).splitlines()
        (line,) = [line for line in lines if line.startswith("| 1,1,1,1")]
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[:4] == ["1,1,1,1", "2", "60.00 ± 14.14", "2.00 ± 0.00"] and cells[-1] == "(1.0, 2.0, 3.0, 4.0)"
        assert "landmarks" not in lines[4]  # nothing has them

    def test_a_score_that_only_some_pairs_have_says_how_many(self):
        """Four pairs are scored, one has labels, two have landmarks."""
        bare = {
            name: value for name, value in entry(0.5).items() if name not in ("dice", "hd95_mm", "asd_mm", "labels")
        }
        pairs = [entry(0.928, landmark_error_mm=1.0), {**bare, "landmark_error_mm": 1.0}, bare, bare]
        lines = markdown(evaluation([RP], *({RP.title: found} for found in pairs))).splitlines()
        (line,) = [line for line in lines if line.startswith("| 1,1,1,1")]
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[1:6] == ["4", "92.80 (1 pair)", "2.00 (1 pair)", "1.000 (1 pair)", "1.00 ± 0.00 (2 pairs)"]
        assert cells[6] == "0.100 ± 0.000"

    def test_the_papers_tables_stand_where_they_were_run(self):
        methods = [BEFORE_METHOD, RP, KEEP, stopping(0.01), stopping(0.01, "revert"), counted("2,1,1,1")]
        found = markdown(evaluation(methods, {method.title: entry(0.5) for method in methods}))
        assert "| RP-Net, 1,1,1,1 " in found and "| IIRP-Net, iterstop keep 0.005 " in found
        thresholds = found[found.index("## Thresholds") :]
        order = [line.split("|")[1].strip() for line in thresholds.splitlines() if line.startswith("| iterstop")]
        assert order == ["iterstop keep 0.01", "iterstop keep 0.005", "iterstop revert 0.01"]
        assert "Residual blocks" not in found

    def test_what_is_smoothed_is_not_in_the_papers_tables(self):
        smoothed = [
            Method(f"{method.name} smooth 1.5", dataclasses.replace(method.options, smooth=1.5))
            for method in (RP, KEEP)
        ]
        methods = [BEFORE_METHOD, RP, KEEP, *smoothed]
        text = markdown(evaluation(methods, {method.title: entry(0.5) for method in methods}))
        assert text.count("smooth 1.5") == len(smoothed) and text.count("RP-Net") > 0

    def test_a_table_that_would_say_the_same_again_is_left_out(self):
        assert "##" not in markdown(evaluation([BEFORE_METHOD, RP], {RP.title: entry(0.5)}))

    def test_residual_blocks(self):
        methods = [counted("1,1,1,1", engines=name) for name in ("none", "four")]
        sets = [{"name": name, "res_blocks": n, "parameters": 1000 * n} for name, n in (("four", 4), ("none", 0))]
        found = markdown(evaluation(methods, {method.title: entry(0.5) for method in methods}, sets=tuple(sets)))
        rows = found[found.index("## Residual blocks") :].splitlines()[4:]
        assert [[cell.strip() for cell in row.split("|")[1:4]] for row in rows] == [
            ["0", "0", "none"],
            ["4", "4,000", "four"],
        ]

    def test_files_hold_what_json_and_csv_can(self, tmp_path):
        found = evaluation([RP], {RP.title: entry(0.5, hd95_mm=math.nan)}, folder=tmp_path)
        (tmp_path / "f.nii.gz").touch()
        pair = EvaluationPair("p0", tmp_path / "f.nii.gz", tmp_path / "f.nii.gz")
        write_tables(found, EvaluateOptions((pair,), tmp_path, engine_dirs=(tmp_path,)))
        assert '"hd95_mm": null' in (tmp_path / "scores.json").read_text()
        assert len((tmp_path / "labels.csv").read_text().splitlines()) == 1 + len(LABELS)


class TestPictures:
    def test_which_method_is_shown_beside_the_start(self):
        methods = [BEFORE_METHOD, RP, KEEP, counted("2,2,2,2")]
        scored = {method.title: entry(0.5) for method in methods}
        assert shown_method(evaluation(methods, scored)) == KEEP
        assert shown_method(evaluation([BEFORE_METHOD, RP], scored)) == RP
        assert shown_method(evaluation([BEFORE_METHOD, KEEP], {})) is None

    @pytest.mark.parametrize("pairs", [1, 5])
    def test_every_label_has_a_row(self, pairs):
        entries = [{BEFORE: entry(0.3 + n / 50), KEEP.title: entry(0.6 + n / 50)} for n in range(pairs)]
        panels = draw_boxes(evaluation([BEFORE_METHOD, KEEP], *entries)).axes
        assert [int(text.get_text()) for axes in panels for text in axes.get_yticklabels()] == list(LABELS)

    def test_the_legend_counts_pairs_with_labels(self):
        scored = {BEFORE: entry(0.3), KEEP.title: entry(0.6)}
        bare = {title: without_labels(found) for title, found in scored.items()}
        (legend,) = draw_boxes(evaluation([BEFORE_METHOD, KEEP], scored, bare)).legends
        assert [text.get_text() for text in legend.get_texts()] == [
            "affine initialisation",
            f"{KEEP.title} (1 pair)",
        ]

    def test_every_family_has_a_line_in_every_panel(self):
        methods = [counted(f"{family} at {t}", (family, t)) for family in FAMILIES for t in (1, 2, 3)]
        figure = draw_curves(evaluation(methods, {method.title: entry(0.5) for method in methods}))
        assert [len(axes.lines) for axes in figure.axes] == [len(FAMILIES)] * 3
        assert list(figure.axes[0].lines[0].get_xdata()) == [1, 2, 3]

    def test_every_way_to_stop_has_a_line_over_thresholds(self):
        methods = [stopping(delta, way) for way in ("keep", "revert") for delta in (0.01, 0.001)]
        figure = draw_deltas(evaluation(methods, {method.title: entry(0.5) for method in methods}))
        assert [line.get_label() for line in figure.axes[0].lines] == ["iterstop keep", "iterstop revert"]
        assert len(figure.axes[2].lines) == 2 * 4

    def test_what_there_is_nothing_for_is_removed(self, tmp_path):
        for name in ("boxes.png", "curves.png", "deltas.png"):
            (tmp_path / name).touch()
        write_pictures(evaluation([RP], {RP.title: entry(0.5)}, folder=tmp_path))
        assert [file.name for file in tmp_path.iterdir()] == ["boxes.png"]
