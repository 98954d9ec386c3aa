"""Small real training runs: the loss decreases, runs continue exactly, and the documented files are written."""

import itertools
import multiprocessing
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from runtime.errors import InputError
from tests.train.training import generated_run, listed_run, rows, same_weights, stop_after, weights, write_subjects
from train.data.image_pair import ImagePair
from train.data.sources import Sources
from train.fit import fit
from train.log.logs import LOG_COLUMNS
from train.model.checkpoint import load_checkpoint, save_checkpoint
from train.steps import run as run_module
from train.steps.distributed import Processes
from train.steps.loader import Batch, feed
from train.steps.run import Run

pytestmark = pytest.mark.usefixtures("own_threads")

# Everything that changes what a step does and works on a CPU, at once.
ALL = {
    "accumulate": 2, "dice": 0.5, "coarse": 0.5, "iterations": (2, 2, 2, 2), "half_size": 0.5, "loss": "squared",
    "smooth": 0.5, "channels_last": "on",
}  # fmt: skip


@pytest.fixture
def generated(tmp_path):
    return generated_run(tmp_path / "run")


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The run of `generated`, once through."""
    before = torch.get_num_threads()
    yield fit(generated_run(tmp_path_factory.mktemp("straight") / "run"))
    torch.set_num_threads(before)


@pytest.fixture
def listed(tmp_path):
    return listed_run(tmp_path / "run", write_subjects(tmp_path))


def test_loss_falls_and_best_is_the_largest_dice_of_iterstop(listed):
    losses, scores = [], []
    options = replace(listed, steps=40, smooth=0.05, validate_every=10)
    result = fit(options, lambda p: (losses.append(p.losses.total), scores.append(p.score)))
    assert np.mean(losses[-10:]) < np.mean(losses[:10]) - 0.05
    dices = [score.iterstop.dice for score in scores[9:]]
    provenance = load_checkpoint(result.best_path).provenance
    assert scores[0] is None and result.best == max(dices) == provenance["validation"]
    assert max(dices) > dices[0] and provenance["validated_by"] == result.best_by == "Dice of IterStop"


@pytest.mark.parametrize("changes", [{}, ALL], ids=["usual", "all"])
def test_stopped_and_resumed_equals_straight_through_bit_for_bit(generated, straight, tmp_path, changes):
    straight = fit(replace(generated, **changes)) if changes else straight
    halves = replace(generated, output=tmp_path / "halves", **changes)
    first = fit(halves, stop_after(3))
    assert first.interrupted and first.steps == 3 and not straight.interrupted
    second = fit(replace(halves, resume=True))
    assert second.steps == straight.steps == 6 and second.best == straight.best
    assert same_weights(straight.last_path, second.last_path) and same_weights(straight.best_path, second.best_path)
    columns = [[(row["step"], row["loss"], row["iterstop_ncc"]) for row in rows(r)] for r in (straight, second)]
    assert columns[0] == columns[1]


def test_augmented_volumes_continue_bit_for_bit_too(listed, tmp_path):
    straight = fit(replace(listed, augment=1.0))
    halves = replace(listed, augment=1.0, output=tmp_path / "halves")
    fit(halves, stop_after(2))
    assert same_weights(straight.last_path, fit(replace(halves, resume=True, cache=0)).last_path)
    plain = fit(replace(listed, output=tmp_path / "plain"))
    assert not same_weights(straight.last_path, plain.last_path)


def test_a_checkpoint_from_before_an_option_existed_is_continued(generated, straight, tmp_path):
    halves = replace(generated, output=tmp_path / "halves")
    last = fit(halves, stop_after(3)).last_path
    content = torch.load(last)
    for name in ("dice", "iterations", "accumulate", "half_size", "channels_last", "compile", "tensorboard", "augment"):
        del content["training"]["options"][name]
    for name in ("scaler", "batch", "chosen"):
        del content["training"][name]
    torch.save(content, last)
    assert same_weights(straight.last_path, fit(replace(halves, resume=True)).last_path)


def test_pairs_made_beside_training_change_nothing(generated, tmp_path):
    options = replace(generated, steps=3, validate_every=3)
    alone, beside = fit(options), fit(replace(options, output=tmp_path / "beside", workers=2))
    assert same_weights(alone.last_path, beside.last_path)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("accumulate", "count", "first"), [(1, 1, 0), (1, 1, 3), (2, 1, 1), (3, 1, 1), (2, 2, 0), (1, 3, 1)]
)
def test_pairs_keep_their_order_and_a_scene_is_made_by_one_worker(workers, accumulate, count, first):
    """The moving image of the pair that is `made` tells its index and the process that made it."""
    batch = Batch(accumulate, Processes(count - 1, count))
    steps = [[(int(pair.moving[0]), int(pair.moving[1])) for pair in pairs]
             for pairs in feed(Sources(made, (), "", (8, 8, 8)), range(first, 6), batch, workers)]  # fmt: skip
    assert [[index for index, _ in step] for step in steps] == [[*batch.mine(step)] for step in range(first, 6)]
    makers: dict[int, set[int]] = {}
    for index, maker in itertools.chain.from_iterable(steps):
        makers.setdefault(index // 2, set()).add(maker)
    assert all(len(one) == 1 for one in makers.values())
    assert len(set.union(*makers.values())) == max(workers, 1), "all workers are used"


def made(index: int) -> ImagePair:
    image = torch.tensor([index, os.getpid()])
    return ImagePair(image, image)


def test_a_signal_to_all_processes_of_a_run_still_ends_it_with_a_checkpoint(generated):
    """As a batch system sends it: the workers that prepare pairs get it too."""

    def signal_all(progress):
        for process in (*multiprocessing.active_children(), None):
            os.kill(process.pid if process else os.getpid(), signal.SIGTERM)

    result = fit(replace(generated, workers=1), signal_all)
    assert result.interrupted and result.steps == 1 and result.last_path.exists()


def test_a_second_sigterm_says_nothing_new(generated):
    """`make` passes it on to a process that may have had it already."""

    def twice(progress):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)

    assert fit(generated, twice).interrupted and load_checkpoint(generated.output / "last.pt").training["step"] == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_breaks_off_waiting_for_pairs(generated, monkeypatch, number):
    """A worker that never answers must not keep a run from ending."""

    def stuck(sources, steps, batch, workers):
        yield [sources.pair(0)]
        os.kill(os.getpid(), number)
        raise AssertionError("went on waiting")

    monkeypatch.setattr("train.fit.feed", stuck)
    result = fit(generated)
    assert result.interrupted == number and result.steps == 1 and result.last_path.exists()


def test_a_signal_breaks_off_a_validation_which_is_made_up_for(generated, straight, monkeypatch):
    """A validation may take minutes, a batch system waits for seconds; weights equal those of an uninterrupted run."""
    validate = run_module.validate

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("went on validating")

    for steps, due in ((2, 2), (6, 6)):
        monkeypatch.setattr(run_module, "validate", interrupted)
        resumed = replace(generated, resume=(generated.output / "last.pt").exists(), validate_every=due)
        stopped = fit(resumed)
        assert stopped.interrupted == signal.SIGTERM and stopped.steps == steps and stopped.best_path is None
    monkeypatch.setattr(run_module, "validate", validate)
    finished = fit(replace(generated, resume=True))
    assert finished.interrupted is None and finished.score == straight.score and finished.best_path.exists()


def test_killed_around_its_first_best_weights_it_can_be_continued(generated, monkeypatch):
    """A best.pt without last.pt could be neither continued nor, in that folder, begun again."""

    def killed(path, checkpoint):
        save_checkpoint(path, checkpoint)
        if path.name == "best.pt":
            raise KeyboardInterrupt

    with monkeypatch.context() as first, pytest.raises(KeyboardInterrupt):
        first.setattr("train.fit.save_checkpoint", killed)
        fit(generated)
    finished = fit(replace(generated, resume=True))
    assert finished.steps == 6 and finished.best_path.exists()


def test_a_second_ctrl_c_ends_at_once(generated):
    def insist(progress):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit(generated, insist)


def test_best_is_a_network_with_its_provenance_and_the_log_has_every_step(generated):
    result = fit(replace(generated, licence="CC0-1.0", iterations=(1, 2, 1, 1)))
    best = load_checkpoint(result.best_path)
    assert best.training is None and best.network()(torch.rand(1, 1, 8, 8, 8), torch.rand(1, 1, 8, 8, 8)).shape[1] == 3
    table = rows(result)
    assert tuple(table[0]) == LOG_COLUMNS and [int(row["step"]) for row in table] == list(range(1, 7))
    assert {row["iterations"] for row in table} == {"1 1 1 1", "1 2 1 1"}
    scores = [float(row["iterstop_dice"]) for row in table if row["iterstop_dice"]]
    assert len(scores) == 3 and max(scores) == pytest.approx(result.best, abs=1e-5)


def test_provenance_holds_the_whole_recipe(generated):
    result = fit(replace(generated, licence="CC0-1.0", steps=2, **ALL))
    provenance = load_checkpoint(result.best_path).provenance
    assert provenance["licence"] == "CC0-1.0" and provenance["seed"] == 5 and provenance["seconds"] > 0
    assert "generated" in provenance["data"] and provenance["validation"] == result.best
    assert provenance["processes"] == 1 and provenance["memory_format"] == "channels_last_3d"
    expected = {name: list(value) if isinstance(value, tuple) else value for name, value in ALL.items()}
    del expected["channels_last"]
    recipe = provenance["recipe"]
    assert expected.items() <= recipe.items() and recipe["shape"] == [16, 16, 16] and recipe["batch"] == 2
    assert {"steps", "minutes", "learning_rate", "schedule", "warmup", "clip", "average", "augment"} <= recipe.keys()


def test_provenance_says_nothing_about_the_machines_folders(listed):
    result = fit(listed)
    assert str(listed.output.parent) not in repr(dict(load_checkpoint(result.best_path).provenance))


def test_minutes_end_a_run(generated):
    result = fit(replace(generated, steps=10**6, minutes=1e-6))
    assert result.steps == 1 and not result.interrupted and result.best_path.exists()


def test_start_takes_the_weights_and_remembers_where_from(generated, straight):
    again = fit(replace(generated, start=straight.best_path, steps=1, learning_rate=1e-9))
    before, after = load_checkpoint(straight.best_path), load_checkpoint(again.last_path)
    assert all(torch.allclose(after.state[name], tensor, atol=1e-6) for name, tensor in before.state.items())
    assert after.provenance["started_from"] == before.provenance


def test_pictures_are_drawn_at_every_second_validation(generated):
    result = fit(replace(generated, pictures=2, validate_every=1, steps=4))
    pictures = sorted((generated.output / "pictures").iterdir())
    assert [path.name for path in pictures] == ["step_0000002.png", "step_0000004.png"]
    with Image.open(pictures[0]) as picture:
        assert picture.width > 1000 and len(picture.getcolors(2**24)) > 100
    assert result.steps == 4


def test_curves_for_tensorboard_are_those_of_the_log(generated):
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    result = fit(replace(generated, tensorboard=True, pictures=1, steps=4), stop_after(3))
    result = fit(replace(generated, tensorboard=True, pictures=1, steps=4, resume=True))
    curves = loader.EventAccumulator(str(generated.output / "tensorboard")).Reload()
    read = {event.step: event.value for event in curves.Scalars("train/total")}
    assert read == pytest.approx({int(row["step"]): float(row["loss"]) for row in rows(result)}, abs=1e-5)
    dices = {event.step: event.value for event in curves.Scalars("validation/dice/iterstop")}
    assert dices.keys() == {2, 4} and max(dices.values()) == pytest.approx(result.best)
    assert [event.step for event in curves.Images("validation")] == [2, 4]


def test_generated_pairs_can_be_validated_on_scans_of_another_size(generated, tmp_path):
    scans = write_subjects(tmp_path, count=3, size=24)
    result = fit(replace(generated, validation=str(scans), steps=2))
    assert result.best_by == "Dice of IterStop" and result.score.rpnet.dice > 0
    assert "validated on 3 volumes of list.csv" in load_checkpoint(result.best_path).provenance["data"]


def test_weights_move_in_every_layer(generated):
    first, last = (
        weights(fit(replace(generated, output=generated.output / str(n), steps=n)).last_path) for n in (1, 2)
    )
    assert all(not torch.equal(first[name], last[name]) for name in first if name.startswith("trained"))


def test_what_goes_wrong_in_a_validation_costs_no_step(generated, monkeypatch):
    def fail(self, show):
        raise InputError("similarity: got nan")

    monkeypatch.setattr(Run, "validate", fail)
    with pytest.raises(InputError, match="got nan"):
        fit(replace(generated, validate_every=4))
    assert load_checkpoint(generated.output / "last.pt").training["step"] == 4


def test_a_folder_with_another_runs_best_weights_is_left_alone(generated):
    generated.output.mkdir()
    (generated.output / "best.pt").write_bytes(b"precious")
    with pytest.raises(InputError, match=r"output: .*best\.pt exists"):
        fit(generated)
    assert (generated.output / "best.pt").read_bytes() == b"precious"
