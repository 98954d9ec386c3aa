"""A run of constant learning rate can be finished at any time and still be continued, bit for bit, from any folder."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from runtime.errors import InputError
from tests.train.training import generated_run, listed_run, refused, rows, same_weights, stop_after, write_subjects
from train.fit import fit
from train.model.checkpoint import load_checkpoint
from train.options import FitOptions

pytestmark = pytest.mark.usefixtures("own_threads")


@pytest.fixture
def options(tmp_path):
    """Six steps."""
    return generated_run(tmp_path / "long", schedule="constant", validation_pairs=1)


@pytest.fixture
def kept(options, tmp_path):
    """A copy of last.pt after three of the steps, its run gone."""
    last = fit(options, stop_after(3)).last_path
    copy = shutil.copy(last, tmp_path / "kept.pt")
    shutil.rmtree(options.output)
    return copy


@pytest.fixture
def ending(options, kept, tmp_path):
    """The end of that run, in four steps, in another folder."""
    return replace(options, output=tmp_path / "end", resume_from=kept, finish=4)


def test_a_run_goes_on_from_a_copy_of_its_last_checkpoint_bit_for_bit(options, kept, tmp_path):
    straight = fit(replace(options, output=tmp_path / "straight"))
    continued = fit(replace(options, resume_from=kept))
    assert same_weights(straight.last_path, continued.last_path) and continued.steps == 6
    assert [row["step"] for row in rows(continued)] == ["4", "5", "6"]
    assert [row["loss"] for row in rows(continued)] == [row["loss"] for row in rows(straight)][3:]
    assert continued.best_path.parent == options.output, "chosen among what this folder has seen"


def test_the_first_progress_of_every_call_says_where_it_stands(options, kept):
    reported = []
    fit(replace(options, resume_from=kept), lambda progress: reported.append((progress.step, progress.first)))
    assert reported == [(4, True), (5, False), (6, False)]


def test_finishing_goes_down_by_a_cosine_from_the_present_rate(ending):
    result = fit(ending)
    assert result.steps == 3 + 4 and not result.interrupted
    rates = [float(row["learning_rate"]) for row in rows(result)]
    expected = 1e-3 * (0.03 + 0.97 * (1 + np.cos(np.pi * np.arange(4) / 4)) / 2)
    np.testing.assert_allclose(rates, expected, rtol=1e-2)
    provenance = load_checkpoint(result.best_path).provenance
    assert provenance["recipe"]["finish"] == 4 and provenance["steps"] <= 7


def test_of_a_run_that_is_still_rising_it_goes_down_from_where_it_is(options, tmp_path):
    rising = replace(options, warmup=9)
    last = fit(rising, stop_after(3)).last_path
    result = fit(replace(rising, output=tmp_path / "end", resume_from=last, finish=2))
    assert [float(row["learning_rate"]) for row in rows(result)] == pytest.approx([4e-4, 4e-4 * (1.03) / 2], rel=1e-2)


@pytest.mark.parametrize("stop", [4, 6])
def test_finishing_is_continued_bit_for_bit(ending, tmp_path, stop):
    straight, halves = fit(ending), replace(ending, output=tmp_path / "halves")
    assert fit(halves, stop_after(stop)).interrupted
    second = fit(replace(halves, resume=True, resume_from=None))
    assert same_weights(straight.last_path, second.last_path) and second.steps == straight.steps == 7


def test_the_run_itself_goes_on_after_it_was_finished_elsewhere(options, tmp_path):
    straight = fit(replace(options, output=tmp_path / "straight"))
    last = fit(options, stop_after(3)).last_path
    fit(replace(options, output=tmp_path / "end", resume_from=last, finish=2))
    assert same_weights(straight.last_path, fit(replace(options, resume=True)).last_path)


def test_a_run_does_not_finish_in_its_own_folder_nor_go_on_from_a_finished_one(options, ending):
    fit(options, stop_after(3))
    refused(replace(options, resume=True, finish=4), "resume:", "other options (finish)")
    finished = fit(ending).last_path
    refused(replace(options, output=ending.output / "on", resume_from=finished), "other options (finish)")


def test_a_folder_with_a_run_is_not_begun_in_again(options, kept):
    fit(options, stop_after(1))
    refused(replace(options, resume_from=kept), "output:", "exists")


def test_a_start_is_for_new_runs(options, kept, tmp_path):
    """Recipes contain one, and are given again when a run is continued."""
    begun = replace(options, start=tmp_path / "gone.pt", resume_from=kept)
    assert fit(begun, stop_after(5)).steps == 5
    assert fit(replace(begun, resume=True, resume_from=None)).steps == 6


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"finish": 5}, "finish: ends an existing run"),
        ({"finish": 5, "resume": True, "minutes": 1.0}, "minutes: the run ends after the steps given by finish"),
        ({"resume": True, "resume_from": "x.pt"}, "resume_from: begins in a new folder"),
        ({"resume_from": "absent.pt"}, r"resume_from: absent\.pt does not exist"),
        ({"finish": -1}, "finish: got -1"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path, changes, words):
    with pytest.raises(InputError, match=words):
        FitOptions(tmp_path, **changes)


def test_other_validation_pairs_change_no_weight_and_their_best_begins_anew(options, tmp_path):
    straight = fit(options)
    begun = fit(replace(options, output=tmp_path / "begun"), stop_after(3))
    shutil.copytree(begun.last_path.parent, tmp_path / "same")
    fewer, same = (
        fit(replace(options, output=folder, resume=True, validation_pairs=pairs, validate_every=6))
        for folder, pairs in ((begun.last_path.parent, 2), (tmp_path / "same", 1))
    )
    assert same_weights(straight.last_path, fewer.last_path) and same_weights(straight.last_path, same.last_path)
    assert fewer.best == fewer.score.value, "scores of other pairs are not compared with those before"
    assert same.best == max(begun.best, same.score.value)


def test_of_listed_volumes_another_validation_list_would_train_on_others_and_is_refused(tmp_path):
    listed = listed_run(tmp_path / "listed", write_subjects(tmp_path))
    fit(listed, stop_after(2))
    all_of_them = replace(listed, resume=True, validation_volumes=None, validation=str(listed.data))
    refused(all_of_them, "trained on 4 volumes, got 6")
