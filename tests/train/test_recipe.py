"""A training step: its pairs, iterations, losses, precision and learning rate, against a plain implementation."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.train.training import generated_run, listed_run, rows, same_weights, stop_after, weights, write_subjects
from train.data.image_pair import FIRST_DEEP_LABEL, ImagePair
from train.fit import fit
from train.loss.objective import Objective, halved
from train.loss.terms import local_ncc, smoothness
from train.model.checkpoint import load_checkpoint
from train.model.fields import warp
from train.model.network import RPNet
from train.steps import numerics
from train.steps.distributed import Processes
from train.steps.numerics import Numerics
from train.steps.run import Run
from train.steps.timetable import Timetable

pytestmark = pytest.mark.usefixtures("own_threads")


@pytest.fixture
def options(tmp_path):
    return generated_run(tmp_path / "run", average=0.0, clip=0.0, schedule="constant", warmup=0, validation_pairs=1)


def by_hand(options, indices, counts=(1, 1, 1, 1)) -> list[torch.Tensor]:
    """Return the mean gradient of the paper's loss over pairs, for the network that a run begins with."""
    run = Run(options)
    losses = []
    for index in indices:
        pair = run.sources.pair(index)
        moving, fixed = pair.moving[None, None], pair.fixed[None, None]
        flow = run.network.flows(moving, fixed, counts)[1]
        losses.append(options.smooth * smoothness(flow) - local_ncc(fixed, warp(moving, flow)))
    return torch.autograd.grad(sum(losses) / len(losses), [*run.network.parameters()])


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_step_descends_the_mean_gradient_of_its_pairs(options, accumulate):
    run = Run(replace(options, accumulate=accumulate))
    expected = by_hand(options, range(accumulate))
    run.train_step([run.sources.pair(index) for index in range(accumulate)])
    for weight, gradient in zip(run.network.parameters(), expected, strict=True):
        assert torch.allclose(weight.grad, gradient, atol=1e-6)


def test_clipped_gradients_keep_their_direction(options):
    run, expected = Run(replace(options, clip=1e-3)), by_hand(options, [0])
    run.train_step([run.sources.pair(0)])
    got = torch.cat([weight.grad.flatten() for weight in run.network.parameters()])
    whole = torch.cat([gradient.flatten() for gradient in expected])
    assert got.norm() == pytest.approx(1e-3, rel=1e-3)
    assert torch.allclose(got / got.norm(), whole / whole.norm(), atol=1e-4)


class TestTimetable:
    def test_learning_rate_rises_then_follows_the_cosine_down(self, options):
        rates = [float(row["learning_rate"]) for row in rows(fit(replace(options, schedule="cosine", warmup=1)))]
        steps = np.arange(6)
        cosine = 1e-3 * (0.03 + 0.97 * (1 + np.cos(np.pi * steps / 6)) / 2)
        np.testing.assert_allclose(rates, cosine * np.minimum(1, (steps + 1) / 2), rtol=1e-2)

    def test_every_number_of_iterations_is_drawn_and_depends_on_seed_and_step_alone(self, options):
        table = Timetable(replace(options, iterations=(1, 2, 3, 4), steps=1000))
        counts = [table.plan(step, 0.0).counts for step in range(300)]
        for level, most in enumerate((1, 2, 3, 4)):
            drawn = np.bincount([count[level] for count in counts], minlength=most + 1)[1:]
            assert len(drawn) == most and all(drawn > 300 / most / 2)
        assert [table.plan(step, 99.0).counts for step in range(300)] == counts
        other = Timetable(replace(table.options, seed=6))
        assert [other.plan(step, 0.0).counts for step in range(300)] != counts

    def test_half_the_size_and_coarse_losses_end_when_they_should(self, options):
        table = Timetable(replace(options, half_size=0.5, coarse=0.4, steps=10))
        plans = [table.plan(step, 0.0) for step in range(10)]
        assert [plan.half_size for plan in plans] == [True] * 5 + [False] * 5
        assert [plan.coarse for plan in plans] == pytest.approx([0.4 * (1 - step / 10) for step in range(10)])

    def test_the_clock_counts_where_minutes_are_given(self, options):
        table = Timetable(replace(options, minutes=10.0, steps=10**9, schedule="cosine", half_size=0.5))
        early, late = table.plan(100, 60.0), table.plan(100, 540.0)
        assert early.rate > 5 * late.rate and early.half_size and not late.half_size
        assert table.seconds_left(100, 540.0, 100, 540.0) == pytest.approx(60)
        assert table.done(100, 601.0) == 1


class TestLosses:
    def test_coarse_levels_count_at_first_and_no_more_at_the_end(self, options, tmp_path):
        shares = []
        for coarse in (0.0, 0.5):
            changed = replace(options, output=tmp_path / str(coarse), coarse=coarse, learning_rate=1e-12, steps=4)
            totals = []
            fit(changed, lambda p, totals=totals: totals.append((p.losses.total, p.losses.local_ncc)))
            shares.append(totals)
        extra = [with_coarse[0] - alone[0] for alone, with_coarse in zip(*shares, strict=True)]
        assert [row[1] for row in shares[0]] == pytest.approx([row[1] for row in shares[1]], abs=1e-4)
        assert extra[0] < -0.1 and abs(extra[3]) < abs(extra[0]) / 2

    def test_dice_is_added_with_its_weight_and_falls(self, tmp_path):
        options = listed_run(tmp_path / "run", write_subjects(tmp_path), smooth=0.05)
        alone, run = Run(options), Run(replace(options, dice=2.0))
        plain, losses = alone.train_step([alone.sources.pair(1)]), [run.train_step([run.sources.pair(1)])]
        assert plain.dice is None and losses[0].local_ncc == pytest.approx(plain.local_ncc)
        assert losses[0].total - plain.total == pytest.approx(2 * losses[0].dice) and 0 < losses[0].dice < 1
        losses += [run.train_step([run.sources.pair(1)]) for _ in range(20)]
        assert losses[-1].dice < losses[0].dice - 0.05

    def test_a_perfect_overlap_costs_nothing(self):
        ball = torch.linspace(-1, 1, 16).square()
        image = 1 - (ball[:, None, None] + ball[:, None] + ball) / 3
        labels = (image > 0.6).int() + (image > 0.8).int()
        still = {level: torch.zeros(1, 3, *(16 >> level - 1,) * 3) for level in (1, 2, 3, 4)}
        pair = ImagePair(image, image, labels, labels)
        loss, parts = Objective("squared", 1.0, 1.0)((pair,), still, coarse=0.0)
        assert parts["dice"].item() == pytest.approx(0, abs=1e-6) and parts["smoothness"] == 0
        assert parts["total"] == loss.item() == pytest.approx(-parts["local_ncc"].item())

    def test_dice_of_deep_structures_leaves_the_others_out(self):
        """A cortex that coincides with the other's, and a nucleus that does not: one label has Dice 1, one 0."""
        moving = torch.zeros(16, 16, 16, dtype=torch.int32)
        moving[2:5], moving[8:10] = 3, FIRST_DEEP_LABEL
        fixed = torch.where(moving == 3, 3, moving.where(moving > 3, 0).roll(4, dims=0))
        still = {1: torch.zeros(1, 3, 16, 16, 16)}
        pair = ImagePair(torch.rand(16, 16, 16), torch.rand(16, 16, 16), moving, fixed)
        for labels, expected in (("all", 0.5), ("deep", 1.0)):
            _, parts = Objective("plain", 1.0, 1.0, labels)((pair,), still, coarse=0.0)
            assert parts["dice"].item() == pytest.approx(expected)

    def test_a_pair_at_half_its_size(self):
        image, labels = torch.rand(16, 8, 8), torch.randint(0, 5, (16, 8, 8), dtype=torch.int32)
        small = halved(ImagePair(image, 1 - image, labels, labels))
        blocks = image.reshape(8, 2, 4, 2, 4, 2).mean(dim=(1, 3, 5))
        assert torch.allclose(small.moving, blocks) and torch.allclose(small.fixed, 1 - blocks)
        assert torch.equal(small.fixed_labels, labels[::2, ::2, ::2]) and small.moving_labels.dtype == torch.int32

    def test_half_the_size_is_trained_on_at_first(self, options, monkeypatch):
        seen = []
        flows = RPNet.flows
        monkeypatch.setattr(
            RPNet, "flows", lambda net, moving, *a: seen.append(moving.shape[2]) or flows(net, moving, *a)
        )
        fit(replace(options, half_size=0.5, steps=4))
        assert seen == [8, 8, 16, 16]


class TestNumerics:
    def test_bf16_trains_the_same_way(self, options):
        losses = {}
        for precision in ("fp32", "bf16"):
            seen = losses[precision] = []
            changed = replace(options, output=options.output / precision, precision=precision, shape=(24, 24, 24))
            fit(changed, lambda p, seen=seen: seen.append(p.losses.total))
        np.testing.assert_allclose(losses["bf16"], losses["fp32"], atol=0.02)

    def test_channels_last_is_a_layout_and_nothing_else(self, options, tmp_path):
        one = weights(fit(replace(options, steps=2)).last_path)
        other = weights(fit(replace(options, steps=2, channels_last="on", output=tmp_path / "other")).last_path)
        assert all(torch.allclose(one[name], other[name], atol=1e-4) for name in one)

    @pytest.mark.parametrize(
        ("channels_last", "precision", "expected"),
        [("auto", "fp32", False), ("auto", "bf16", True), ("off", "bf16", False), ("on", "fp32", True)],
    )
    def test_layout_follows_autocast_unless_it_is_said(self, options, channels_last, precision, expected):
        changed = replace(options, precision=precision, channels_last=channels_last)
        chosen = numerics.choose_numerics(changed, torch.device("cpu"), smallest=48)
        weight = chosen.place(RPNet()).estimators["1"].entry.weight
        assert weight.is_contiguous(memory_format=torch.channels_last_3d) == chosen.channels_last == expected

    def test_scaled_fp16_gradients_train_the_same_way_and_continue_exactly(self, options, monkeypatch, tmp_path):
        """fp16 is for GPUs; the scaler and what a checkpoint holds of it are the same on a CPU."""
        plain, options = ([], []), replace(options, steps=4, validate_every=100)
        fit(options, lambda p: plain[0].append(p.losses.total))
        monkeypatch.setattr(numerics, "_precision", lambda *_: "fp16")
        monkeypatch.setattr(
            Numerics, "scaler", lambda _: torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=2)
        )
        half = replace(options, output=tmp_path / "half", clip=10.0)
        straight = fit(half, lambda p: plain[1].append(p.losses.total))
        assert straight.precision == "fp16"
        np.testing.assert_allclose(*plain, atol=0.02)
        halves = replace(half, output=tmp_path / "halves")
        fit(halves, stop_after(2))
        last = fit(replace(halves, resume=True)).last_path
        assert same_weights(straight.last_path, last)
        assert load_checkpoint(last).training["scaler"]["scale"] == 2.0**10, "doubled after every second step"

    def test_an_overflow_in_fp16_skips_the_step_and_lowers_the_scale(self, options, monkeypatch):
        monkeypatch.setattr(numerics, "_precision", lambda *_: "fp16")
        monkeypatch.setattr(Numerics, "scaler", lambda _: torch.amp.GradScaler("cpu", init_scale=2.0**40))
        run = Run(options)
        before = [weight.detach().clone() for weight in run.network.parameters()]
        run.train_step([run.sources.pair(0)])
        assert run.scaler.get_scale() == 2.0**39 and run.step == 1
        assert all(torch.equal(a, b) for a, b in zip(before, run.network.parameters(), strict=True))

    def test_a_compiled_run_trains_validates_and_names_its_weights_as_any_other(self, options, monkeypatch):
        """With a compiler that leaves the graphs as they are; validation, where sizes differ, does without."""
        graphs, really = [], torch.nn.Module.compile

        def keep(graph, _):
            graphs.append(graph)
            return graph.forward

        monkeypatch.setattr(torch.nn.Module, "compile", lambda part, **how: really(part, backend=keep, **how))
        monkeypatch.setattr(numerics, "_require_compiler", lambda _: None)
        options = replace(options, res_blocks=0)
        plain, compiled = Run(options), Run(replace(options, compile=True))
        pairs = [plain.sources.pair(0)]
        losses = [run.train_step(pairs).total for run in (plain, compiled)]
        traced = len(graphs)
        scores = [run.validate(lambda *_: None).value for run in (plain, compiled)]
        assert losses[0] == pytest.approx(losses[1], abs=1e-5) and scores[0] == pytest.approx(scores[1], abs=1e-4)
        assert traced == len(graphs) >= 5, "the extractor and four estimators, and nothing more in validation"
        states = [run.checkpoint(resumable=False).state for run in (plain, compiled)]
        assert [*states[0]] == [*states[1]]
        assert all(torch.allclose(states[0][name], states[1][name], atol=1e-5) for name in states[0])


def test_the_running_mean_is_a_mean_of_the_weights(options):
    run = Run(replace(options, average=0.5))
    start = [weight.detach().clone() for weight in run.network.parameters()]
    run.train_step([run.sources.pair(0)])
    decay = min(0.5, 1 / 11)
    for first, new, mean in zip(start, run.network.parameters(), run.average.parameters(), strict=True):
        assert torch.allclose(mean, decay * first + (1 - decay) * new, atol=1e-7)


def test_pairs_per_step_change_nothing_but_the_steps(options, tmp_path):
    """Two steps of one pair see the pairs of one step of two."""
    one, two = Run(options), Run(replace(options, accumulate=2))
    assert [*one.batch.mine(0), *one.batch.mine(1)] == [*two.batch.mine(0)]
    assert two.batch.size == 2 and two.processes == Processes()
