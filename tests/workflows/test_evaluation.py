"""`evaluate` from files to files: scores with a known truth; runs that continue, fail in part, or compare sets."""

import csv
import json
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import runtime
from runtime.commands.evaluate import evaluate as command
from runtime.commands.terminal import CloneTools
from runtime.errors import InputError, ScarceError
from runtime.images.formats.nifti_writer import write_volume
from runtime.images.overlap import mean_dice
from runtime.images.volume import read_labels, read_volume
from runtime.registration.options import Options
from runtime.workflows.evaluation import run as running
from runtime.workflows.evaluation.scoring import pair_scorer as scoring
from runtime.workflows.evaluation.scoring.pair_scorer import PairScorer
from tests.workflows.evaluated_pair import (
    LABELS,
    POINTS,
    QUICK,
    SCANS,
    SHIFT,
    of_pair,
    runner,
    scores,
    write_list,
    write_pair,
)


@pytest.fixture
def pair(tmp_path) -> SimpleNamespace:
    return write_pair(tmp_path)


@pytest.fixture
def run(engine_dir):
    return runner(engine_dir)


def test_a_masked_lesion_changes_no_score(pair, run):
    """The column `moving_mask`: two scans that differ in a hole score the same by every method."""
    grid = read_volume(pair.moving, "moving").grid
    keep = np.ones(grid.shape, np.uint8)
    keep[18:26, 20:28, 18:26] = 0
    write_volume(pair.moving.parent / "mask.nii.gz", keep, grid)
    found = []
    for value in (0, 800):
        data = np.where(keep, read_volume(pair.moving, "moving").data, np.float32(value))
        write_volume(pair.moving, data, grid)
        listed = write_list(pair, "one,f.nii.gz,m.nii.gz,fl.nii.gz,ml.nii.gz,mask.nii.gz", columns="moving_mask")
        run("--pairs", listed, "--output", pair.output / str(value), *QUICK)
        found.append(scores(pair.output / str(value)))
    names = ("dice", "mse", "ncc", "folded_share", "iterations")
    assert found[0].keys() == found[1].keys()
    for method in found[0]:
        assert [found[0][method].get(name) for name in names] == [found[1][method].get(name) for name in names]


class TestKnownTruth:
    """The true shift, given as another tool's transform, scores perfectly; other scores are known as well."""

    @pytest.fixture
    def found(self, pair, run):
        run(*of_pair(pair, *SCANS, *LABELS, *POINTS), "-t", pair.shift, *QUICK)
        return scores(pair.output)

    def test_labels(self, pair, found):
        assert (found["transform"]["dice"], found["transform"]["hd95_mm"], found["transform"]["asd_mm"]) == (1, 0, 0)
        maps = [read_labels(path, "labels").data for path in (pair.fixed_labels, pair.moving_labels)]
        assert found["before"]["dice"] == pytest.approx(mean_dice(*maps, (10, 250, 1035)))
        assert [score["label"] for score in found["before"]["labels"]] == [10, 250, 1035]

    def test_landmarks(self, found):
        assert found["transform"]["landmark_error_mm"] == pytest.approx(0, abs=1e-6)
        length = float(np.linalg.norm(SHIFT))
        assert found["before"]["landmarks_mm"] == pytest.approx([length] * 3)
        assert found["1,1,1,1"]["landmark_error_mm"] == pytest.approx(length, abs=1.5)

    def test_images(self, found):
        assert found["transform"]["mse"] == pytest.approx(0, abs=1e-5)
        assert found["transform"]["ncc"] == pytest.approx(1, abs=1e-3) and found["before"]["ncc"] < 0.9

    @pytest.mark.parametrize("method", ["before", "transform"])
    def test_a_shift_changes_no_volume(self, found, method):
        names = ("folded_share", "folded_inside", "sd_log_jacobian")
        assert [found[method][name] for name in names] == pytest.approx([0, 0, 0], abs=1e-5)

    def test_seconds_are_given_by_stage(self, found):
        entry = found["1,1,1,1"]
        assert entry["seconds"] == pytest.approx(sum(entry["seconds_by_stage"].values()))
        assert 0 < entry["seconds_loop"] < entry["seconds"]
        assert found["before"]["seconds_loop"] == 0 and "seconds" not in found["transform"]


def test_scores_are_those_of_what_register_gives(pair, run, engines):
    """IterStop through the shared memory, after another schedule, against a registration of its own."""
    run(*of_pair(pair, *SCANS, *LABELS), "--schedule", "1,1,1,1", "--schedule", "iterstop", "--on-stop", "revert")
    found = scores(pair.output)["iterstop revert 0.005"]
    result = runtime.register(pair.fixed, pair.moving, engines, Options(on_stop="revert"), pair.moving_labels)
    truth = read_labels(pair.fixed_labels, "labels").data
    assert found["dice"] == pytest.approx(mean_dice(truth, result.warped_labels, (10, 250, 1035)), abs=1e-12)
    assert found["iterations"] == [list(counts) for counts in result.iterations.counts]
    assert found["similarity"]["after"] == result.iterations.similarity
    assert found["folded_share"] == pytest.approx(result.folded_share, abs=1e-4)


class TestWhatIsWritten:
    def test_files_and_table(self, pair, run):
        done = run(*of_pair(pair, *SCANS, *LABELS), "--affine", "none", "--schedule", "t,1,1,1", "--times", "1,2")
        rows = list(csv.DictReader((pair.output / "scores.csv").open()))
        assert [row["method"] for row in rows] == ["before", "1,1,1,1", "2,1,1,1"]
        assert float(rows[0]["dice"]) == pytest.approx(scores(pair.output)["before"]["dice"], rel=1e-5)
        assert rows[2]["iterations_level4"] == "2"
        assert len(list(csv.DictReader((pair.output / "labels.csv").open()))) == 3 * 3
        table = (pair.output / "table.md").read_text()
        assert "| 2,1,1,1 " in table and "| 2,1,1,1 " in done.stdout
        for name in ("boxes.png", "curves.png"):
            assert Image.open(pair.output / name).size[0] > 400
        assert not (pair.output / "deltas.png").exists()
        assert done.stdout.endswith("/: index.html, table.md, boxes.png, curves.png first\n")

    def test_thresholds_have_a_picture_and_a_table(self, pair, run):
        deltas = ("--schedule", "iterstop", "--delta", "0.1,0.001", "--on-stop", "keep", "--on-stop", "revert")
        run(*of_pair(pair, *SCANS, *LABELS), "--affine", "none", "--schedule", "1,1,1,1", *deltas)
        assert (pair.output / "deltas.png").exists() and not (pair.output / "curves.png").exists()
        assert "## Thresholds" in (pair.output / "table.md").read_text()

    def test_without_labels_there_is_still_something_to_say(self, pair, run):
        done = run(*of_pair(pair, *SCANS), *QUICK)
        assert done.stdout.endswith("/: index.html, table.md first\n")
        assert "dice" not in scores(pair.output)["1,1,1,1"] and "Dice" not in (pair.output / "table.md").read_text()
        assert not (pair.output / "boxes.png").exists()

    def test_spread_over_pairs(self, pair, run):
        line = f"{pair.fixed},{pair.moving},{pair.fixed_labels},{pair.moving_labels},"
        swapped = f"{pair.moving},{pair.fixed},{pair.moving_labels},{pair.fixed_labels},"
        run("--pairs", write_list(pair, f"one,{line}", f"two,{swapped}"), "--output", pair.output, *QUICK)
        everything = json.loads((pair.output / "scores.json").read_text())
        values = [record["methods"]["1,1,1,1"]["dice"] for record in everything["pairs"]]
        (summary,) = [method for method in everything["methods"] if method["name"] == "1,1,1,1"]
        expected = {"mean": np.mean(values), "sd": np.std(values, ddof=1), "count": 2}
        assert summary["scores"]["dice"] == pytest.approx(expected)

    def test_quiet_says_nothing(self, pair, run):
        assert run(*of_pair(pair, *SCANS), *QUICK, "--quiet").output == ""


class TestContinuing:
    @pytest.fixture
    def runs(self, monkeypatch):
        """The methods that were run."""
        names, original = [], PairScorer.run

        def counted(scorer, method):
            names.append(method.title)
            return original(scorer, method)

        monkeypatch.setattr(PairScorer, "run", counted)
        return names

    def test_what_is_done_is_kept_and_what_is_new_is_added(self, pair, run, runs):
        files = of_pair(pair, *SCANS, *LABELS)
        run(*files, *QUICK)
        first = scores(pair.output)
        assert runs == ["before", "1,1,1,1"]
        run(*files, *QUICK)
        assert runs == ["before", "1,1,1,1"] and scores(pair.output) == first
        run(*files, *QUICK, "--schedule", "2,1,1,1")
        assert runs == ["before", "1,1,1,1", "2,1,1,1"]

    @pytest.mark.parametrize("change", ["labels", "label ids", "affine"])
    def test_what_has_changed_is_done_again(self, pair, run, runs, change):
        files = of_pair(pair, *SCANS, *LABELS)
        run(*files, *QUICK)
        if change == "labels":
            shutil.copy(pair.moving_labels, pair.fixed_labels)
        others = {"label ids": ("--label-ids", "10,250"), "affine": ("--affine", pair.shift)}
        run(*files, *QUICK, *others.get(change, ()))
        assert runs == 2 * ["before", "1,1,1,1"]

    def test_an_interrupted_run_goes_on(self, pair, run, runs, monkeypatch):
        files = of_pair(pair, *SCANS, *LABELS)
        monkeypatch.setattr(running._ResultProgress, "step", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        run(*files, *QUICK, code=1)
        monkeypatch.undo()
        assert (pair.output / "pairs" / "f-m.json").exists() and not (pair.output / "scores.json").exists()
        run(*files, *QUICK)
        assert set(scores(pair.output)) == {"before", "1,1,1,1"} and runs == ["before"]


class TestFailures:
    def test_a_pair_that_fails_leaves_the_others(self, pair, run):
        broken = pair.fixed.parent / "broken.nii.gz"
        broken.write_bytes(b"no image")
        files = f"{pair.fixed_labels},{pair.moving_labels}"
        listed = write_list(pair, f"bad,{pair.fixed},{broken},{files},", f"good,{pair.fixed},{pair.moving},{files},")
        done = run("--pairs", listed, "--output", pair.output, *QUICK, code=1)
        assert done.stderr.splitlines()[-1].startswith("Error: bad: --moving:")
        records = [json.loads((pair.output / "pairs" / f"{name}.json").read_text()) for name in ("bad", "good")]
        (trouble,) = records[0]["errors"]
        assert "cannot be read" in trouble["error"] and records[0]["methods"] == {}
        assert set(records[1]["methods"]) == {"before", "1,1,1,1"} and "errors" not in records[1]
        shutil.copy(pair.moving, broken)
        run("--pairs", listed, "--output", pair.output, *QUICK)
        assert "errors" not in json.loads((pair.output / "pairs" / "bad.json").read_text())

    def test_a_method_that_fails_leaves_the_others(self, pair, run):
        (pair.fixed.parent / "no_transform.txt").write_text("1 2 3\n")
        chain = ("-t", pair.fixed.parent / "no_transform.txt")
        done = run(*of_pair(pair, *SCANS, *LABELS), *chain, *QUICK, code=1)
        assert "Error: f-m, transform: -t:" in done.stderr
        assert scores(pair.output)["1,1,1,1"]["dice"] > 0

    @pytest.mark.parametrize("error, code", [(ScarceError("memory"), 75), (MemoryError(), 75), (ValueError("bad"), 1)])
    def test_where_nothing_but_scarcity_stood_in_the_way_it_is_75(self, pair, run, monkeypatch, error, code):
        """A pair that cannot be read for lack of memory, and a method that may fail for other reasons too."""
        bad = pair.fixed.parent / "bad.nii.gz"
        shutil.copy(pair.moving, bad)
        read, score = scoring.read_volume, PairScorer.run

        def read_unless_bad(path, argument):
            if path == bad:
                raise ScarceError(f"{argument}: memory")
            return read(path, argument)

        def fail(self, method):
            if method.name != "before":
                raise error
            return score(self, method)

        monkeypatch.setattr(scoring, "read_volume", read_unless_bad)
        monkeypatch.setattr(PairScorer, "run", fail)
        files = f"{pair.fixed_labels},{pair.moving_labels}"
        listed = write_list(pair, f"bad,{pair.fixed},{bad},{files},", f"good,{pair.fixed},{pair.moving},{files},")
        run("--pairs", listed, "--output", pair.output, *QUICK, code=code)

    def test_landmarks_must_correspond(self, pair, run):
        lines = pair.moving_landmarks.read_text().splitlines()
        pair.moving_landmarks.write_text("\n".join(lines[:-1]) + "\n")
        done = run(*of_pair(pair, *SCANS, *POINTS), *QUICK, code=1)
        assert "has 2 points, the fixed file 3; expected the same points in the same order" in done.stderr

    def test_an_input_among_the_results_is_refused(self, pair, run):
        (pair.output / "pairs").mkdir(parents=True)
        inside = shutil.copy(pair.fixed, pair.output / "pairs" / "f.nii.gz")
        done = run("--fixed", inside, "--moving", pair.moving, "--output", pair.output, code=1)
        assert "lies in the folder of the results" in done.stderr

    def test_what_draws_is_asked_for_before_any_work(self, pair, run, monkeypatch):
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        done = run(*of_pair(pair, *SCANS), *QUICK, code=1)
        assert done.stderr == (
            "Error: needs the package matplotlib, which is not installed; pip install -r requirements.txt\n"
        )
        assert not pair.output.exists()

    def test_a_threshold_that_is_no_number(self, pair, run):
        done = run(*of_pair(pair, *SCANS), "--delta", "x", code=2)
        assert "got 'x', expected one or more comma-separated float value(s)" in done.stderr

    @pytest.mark.parametrize(
        "arguments", [(), ("--fixed", "f.nii.gz"), ("--pairs", "p.csv", "--fixed", "f.nii.gz", "--moving", "m.nii.gz")]
    )
    def test_either_a_list_or_a_pair(self, run, tmp_path, arguments):
        done = run(*arguments, "--output", tmp_path / "scores", code=2)
        assert "give either --pairs, or --fixed and --moving" in done.stderr


class TestSeveralEngineSets:
    def test_each_has_its_name_and_the_affine_start_is_scored_once(self, pair, run, engine_dir, engine_copy):
        other = engine_copy.rename(engine_copy.parent / "other")
        run(*of_pair(pair, *SCANS, *LABELS), *QUICK, sets=(engine_dir, other))
        found = scores(pair.output)
        assert list(found) == ["before", "set: 1,1,1,1", "other: 1,1,1,1"]
        assert found["set: 1,1,1,1"]["dice"] == found["other: 1,1,1,1"]["dice"]

    @pytest.fixture
    def sets(self, engine_dir, engine_copy):
        return engine_dir, engine_copy.rename(engine_copy.parent / "other")

    @pytest.fixture
    def broken(self, monkeypatch):
        """Folders of engine sets on which no pair can be prepared."""
        folders, original = set(), PairScorer.__init__

        def ready(scorer, pair, engines, *others):
            if engines.engine_set.folder in folders:
                raise InputError("no room")
            original(scorer, pair, engines, *others)

        monkeypatch.setattr(PairScorer, "__init__", ready)
        return folders

    @pytest.mark.parametrize("bad", [0, 1])
    def test_a_pair_that_fails_on_one_set_is_scored_on_the_other(self, pair, run, sets, broken, bad):
        """Failures are reported; the affine initialisation and the given transform come from the working set."""
        broken.add(sets[bad])
        arguments = [*of_pair(pair, *SCANS, *LABELS), "-t", pair.shift, *QUICK]
        done = run(*arguments, sets=sets, code=1)
        assert done.stderr.splitlines()[-1] == f"Error: f-m, {('set', 'other')[bad]}: no room"
        found = scores(pair.output)
        assert set(found) == {"before", "transform", f"{('other', 'set')[bad]}: 1,1,1,1"}
        assert found["transform"]["dice"] == 1 and "0 results left" in done.stderr
        broken.clear()
        run(*arguments, sets=sets)
        assert set(scores(pair.output)) == {"before", "transform", "set: 1,1,1,1", "other: 1,1,1,1"}

    def test_what_fails_on_every_set_is_said_once(self, pair, run, sets, broken):
        broken.update(sets)
        done = run(*of_pair(pair, *SCANS, *LABELS), *QUICK, sets=sets, code=1)
        assert [line for line in done.stderr.splitlines() if "Error" in line] == ["Error: f-m, set, other: no room"]
        assert scores(pair.output) == {}

    def test_what_the_working_set_scored_is_kept_while_the_other_fails(self, pair, run, sets, broken):
        broken.add(sets[0])
        arguments = [*of_pair(pair, *SCANS, *LABELS), *QUICK]
        run(*arguments, sets=sets, code=1)
        first = scores(pair.output)
        done = run(*arguments, sets=sets, code=1)
        assert scores(pair.output) == first and "0 results left" in done.stderr

    def test_checkpoints_are_exported_once(self, pair, engine_dir, checkpoint):
        exported = []

        def export(path, folder):
            exported.append(path)
            shutil.copytree(engine_dir, folder)

        arguments = [*of_pair(pair, *SCANS), *QUICK, "--checkpoint", str(checkpoint)]
        for _ in range(2):
            assert CliRunner().invoke(command, arguments, obj=CloneTools(export, None, ())).exit_code == 0
        assert exported == [checkpoint] and set(scores(pair.output)) == {"before", "1,1,1,1"}

    def test_checkpoints_need_who_exports_them(self, pair, checkpoint):
        done = CliRunner().invoke(command, [*of_pair(pair, *SCANS), *QUICK, "--checkpoint", str(checkpoint)])
        assert done.exit_code == 1 and "cannot be exported from here" in done.stderr
