"""Validation scores the loop that users run, `runtime.loop.iterstop`, and agrees with the definitions of the scores."""

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from runtime.geometry.flow import folded_share, identity, jacobian_determinant, warp
from runtime.geometry.jacobian import sd_log_jacobian
from runtime.images.overlap import mean_dice
from runtime.images.similarity import ncc
from runtime.loop.schedules import fixed_schedule
from runtime.loop.stop_rules import iterstop_schedule
from tests.train.training import generated_run, listed_run, subject, write_subjects
from train.data.image_pair import ImagePair
from train.data.sources import open_sources
from train.model.loop import register_with_torch
from train.model.network import RPNet
from train.steps.distributed import Processes
from train.steps.numerics import Numerics
from train.steps.validation import validate

NUMERICS = Numerics(torch.device("cpu"), "fp32", channels_last=False, compiled=False)


def pair(first: int, second: int, labelled: bool = True) -> ImagePair:
    (moving, moving_labels), (fixed, fixed_labels) = (subject(number) for number in (first, second))
    images = [torch.from_numpy(image / np.float32(900)) for image in (moving, fixed)]
    maps = [torch.from_numpy(labels.astype(np.int32)) for labels in (moving_labels, fixed_labels)]
    return ImagePair(*images, *(maps if labelled else ()))


@pytest.fixture
def network():
    """Random, with flows of about a voxel."""
    torch.manual_seed(3)
    network = RPNet()
    with torch.no_grad():
        for estimator in network.estimators.values():
            estimator.flow.weight *= 6
    return network.eval()


def test_scores_are_the_definitions_of_both_ways_to_register(network):
    pairs = (pair(0, 1), pair(2, 3), pair(4, 5, labelled=False))
    score = validate(network, pairs, NUMERICS)
    schedules = {"rpnet": fixed_schedule((1, 1, 1, 1)), "iterstop": iterstop_schedule()}
    for name, schedule in schedules.items():
        found, ncces, dices, folds, spreads = getattr(score, name), [], [], [], []
        for one in pairs:
            result = register_with_torch(network, one.fixed.numpy(), one.moving.numpy(), schedule)
            ncces.append(ncc(one.fixed.numpy(), warp(one.moving.numpy(), result.flow)))
            folds.append(folded_share(result.flow))
            volume = jacobian_determinant(result.flow)
            spreads.append(sd_log_jacobian(volume, one.fixed.numpy() > 0))
            if one.labelled:
                where = identity(one.fixed.shape) + result.flow
                labels = map_coordinates(one.moving_labels.numpy(), where, order=0, mode="constant")
                dices.append(mean_dice(one.fixed_labels.numpy(), labels, (1, 2)))
        assert found.ncc == pytest.approx(np.mean(ncces), abs=1e-4)
        assert found.dice == pytest.approx(np.mean(dices), abs=5e-3)
        assert found.folded == pytest.approx(np.mean(folds), abs=1e-4)
        assert found.sd_log_jacobian == pytest.approx(np.mean(spreads), abs=1e-3) and min(spreads) > 0
    assert score.rpnet.iterations == (1, 1, 1, 1) and sum(score.iterstop.iterations) > 4
    assert score.value == score.iterstop.dice != score.rpnet.dice and score.name == "Dice of IterStop"


def test_without_labels_the_similarity_decides(network):
    score = validate(network, (pair(0, 1, labelled=False),), NUMERICS)
    assert score.value == score.iterstop.ncc and score.iterstop.dice is None and score.name == "NCC of IterStop"


def test_a_label_that_the_warp_loses_counts_as_nothing(network):
    """If it were excluded, a network could gain by moving small labels away."""
    one = pair(0, 1)
    moving, fixed = torch.zeros_like(one.moving_labels), torch.zeros_like(one.fixed_labels)
    moving[8, 8, 8] = 1
    fixed[0, 0, 0] = 1
    moving[5:12, 5:12, 5:12], fixed[5:12, 5:12, 5:12] = 2, 2
    moving[0, 0, 15] = 1
    score = validate(network, (ImagePair(one.moving, one.fixed, moving, fixed),), NUMERICS)
    assert score.rpnet.dice <= 0.5


def test_processes_share_the_pairs_and_the_score_is_that_of_all(network, monkeypatch):
    """Real processes: test_distributed.py."""
    pairs, shown = tuple(pair(n, n + 1) for n in range(3)), {0: [], 1: []}
    expected, others = validate(network, pairs, NUMERICS), []
    monkeypatch.setattr(Processes, "gather", lambda self, rows: others.extend(rows) or rows)
    validate(network, pairs, NUMERICS, Processes(1, 2), lambda *picture: shown[1].append(picture))
    monkeypatch.setattr(Processes, "gather", lambda self, rows: rows + others)
    found = validate(network, pairs, NUMERICS, Processes(0, 2), lambda *picture: shown[0].append(picture))
    assert [number for number, _ in others] == [1] and found == expected
    assert len(shown[0]) == 1 and not shown[1], "the first process alone draws"


def test_what_is_shown_is_the_first_pair_and_its_flow_of_iterstop(network):
    pairs, shown = (pair(0, 1), pair(1, 2)), []
    score = validate(network, pairs, NUMERICS, show=lambda *picture: shown.append(picture))
    ((first, flow),) = shown
    assert first is pairs[0] and flow.shape == (3, 16, 16, 16)
    warped = warp(first.moving.numpy(), flow.numpy())
    others = validate(network, pairs[1:], NUMERICS).iterstop.ncc
    assert ncc(first.fixed.numpy(), warped) == pytest.approx(2 * score.iterstop.ncc - others, abs=1e-4)


def test_validation_pairs_are_not_training_pairs(tmp_path):
    listed = listed_run(tmp_path / "run", write_subjects(tmp_path))
    sources = open_sources(listed)
    seen = [image for step in range(30) for image in vars(sources.pair(step)).values() if image.is_floating_point()]
    held = [image for one in sources.validation for image in (one.moving, one.fixed)]
    assert not any(torch.equal(a, b) for a in seen for b in held)
    assert all(one.fixed_labels.shape == (16, 16, 16) for one in sources.validation)
    made = open_sources(generated_run(tmp_path / "generated"))
    assert not any(torch.equal(made.pair(step).moving, made.validation[0].moving) for step in range(6))
