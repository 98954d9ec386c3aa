"""The terms against rough flows, and steps that register a pair in both directions, against closed forms."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from runtime.errors import InputError
from tests.train.training import (
    generated_run,
    listed_run,
    refused,
    rows,
    same_pair,
    same_weights,
    stop_after,
    write_subjects,
)
from train.fit import fit
from train.loss.terms import SMALLEST_VOLUME, bending, inverse_consistency, log_jacobian
from train.model.definition import identity
from train.model.network import RPNet
from train.options import FitOptions
from train.steps.run import Run

pytestmark = pytest.mark.usefixtures("own_threads")
SHAPE = (7, 6, 5)


def linear(matrix) -> torch.Tensor:
    """Return the flow (1, 3, I, J, K) that maps x to ``matrix @ x + (1, -2, 3)``."""
    change = torch.tensor(matrix, dtype=torch.float32) - torch.eye(3)
    shift = torch.tensor([1.0, -2.0, 3.0]).view(3, 1, 1, 1)
    return (torch.einsum("ab,bijk->aijk", change, identity(SHAPE)) + shift)[None]


def derivative(term, flow: torch.Tensor) -> tuple[float, float]:
    """Return a term's slope along a random direction by its gradient and by central differences."""
    direction = torch.randn(flow.shape, generator=torch.Generator().manual_seed(1))
    flow = flow.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(term(flow), flow)
    ahead, behind = (term(flow.detach() + sign * 1e-2 * direction).item() for sign in (1, -1))
    return (gradient * direction).sum().item(), (ahead - behind) / 2e-2


class TestBending:
    def test_an_affine_flow_has_none(self):
        assert bending(linear([[1.2, 0.1, 0], [-0.3, 0.8, 0.2], [0, 0.5, 1.1]])).item() == pytest.approx(0, abs=1e-9)

    def test_a_quadratic_flow_has_its_second_derivatives(self):
        """u = (a i^2 + b i j, c k^2, 0): d2/di2 = 2a, d2/didj = b, twice, d2/dk2 = 2c; means over three components."""
        i, j, k = identity(SHAPE)
        a, b, c = 0.5, 0.3, -0.2
        flow = torch.stack((a * i**2 + b * i * j, c * k**2, 0 * i))[None]
        expected = ((2 * a) ** 2 + 2 * b**2 + (2 * c) ** 2) / 3 / 9
        assert bending(flow).item() == pytest.approx(expected, rel=1e-4)

    def test_axes_that_are_too_short_count_as_flat(self):
        i = torch.arange(4.0).view(1, 1, 4, 1, 1).expand(1, 3, 4, 1, 1)
        assert bending(i**2).item() == pytest.approx(4 / 9)

    def test_gradient_is_the_derivative(self):
        by_gradient, by_differences = derivative(bending, linear(np.eye(3)) + torch.rand(1, 3, *SHAPE))
        assert by_gradient == pytest.approx(by_differences, rel=1e-2)


class TestLogJacobian:
    @pytest.mark.parametrize("scale", [1.0, 0.8, 1.3])
    def test_of_a_scaling(self, scale):
        flow = linear(np.diag([scale, 1.0, scale]))
        assert log_jacobian(flow).item() == pytest.approx((2 * np.log(scale)) ** 2, abs=1e-5)

    def test_shear_and_rotation_change_no_volume(self):
        for matrix in ([[1, 0.7, 0], [0, 1, -0.4], [0, 0, 1]], [[0.6, -0.8, 0], [0.8, 0.6, 0], [0, 0, 1]]):
            assert log_jacobian(linear(matrix)).item() == pytest.approx(0, abs=1e-8)

    @pytest.mark.parametrize("volume", [SMALLEST_VOLUME / 2, 0.0, -1.0])
    def test_folds_cost_on_along_the_tangent(self, volume):
        smallest = np.log(SMALLEST_VOLUME)
        expected = smallest**2 + 2 * smallest / SMALLEST_VOLUME * (volume - SMALLEST_VOLUME)
        assert log_jacobian(linear(np.diag([volume, 1.0, 1.0]))).item() == pytest.approx(expected, rel=1e-4)

    def test_a_fold_is_pulled_open(self):
        slope = torch.tensor(-0.5, requires_grad=True)
        for _ in range(400):
            flow = torch.cat(((slope - 1) * identity(SHAPE)[:1], torch.zeros(2, *SHAPE)))[None]
            (gradient,) = torch.autograd.grad(log_jacobian(flow), slope)
            slope = (slope - 0.002 * gradient).detach().requires_grad_()
        assert slope.item() == pytest.approx(1, abs=0.2)

    def test_gradient_is_the_derivative_for_small_and_folded_volumes(self):
        for matrix in (np.diag([1.2, 0.9, 1.0]), np.diag([-0.5, 1.0, 1.2])):
            by_gradient, by_differences = derivative(log_jacobian, linear(matrix))
            assert by_gradient == pytest.approx(by_differences, rel=2e-2)

    def test_memory_layout_does_not_matter(self):
        flow = torch.rand(2, 3, *SHAPE)
        last = flow.to(memory_format=torch.channels_last_3d)
        assert log_jacobian(last).item() == pytest.approx(log_jacobian(flow).item())
        assert bending(last).item() == pytest.approx(bending(flow).item())


class TestInverseConsistency:
    def test_of_opposite_shifts_is_nothing_inside(self):
        """A shift by (1, 0, 0) and back: what comes from outside, one plane on each side, is as if it were 0."""
        there = torch.zeros(1, 3, *SHAPE)
        there[:, 0] = 1
        left = inverse_consistency(torch.cat((there, -there))).item()
        assert left == pytest.approx(1 / SHAPE[0])

    def test_of_one_shift_and_none_is_its_length_squared(self):
        flows = torch.zeros(2, 3, *SHAPE)
        flows[0, 1], flows[0, 2] = 0.5, 0.2
        assert inverse_consistency(flows).item() == pytest.approx(0.5**2 + 0.2**2, rel=0.2)

    def test_it_is_that_of_both_orders(self):
        flows = torch.rand(2, 3, *SHAPE)
        assert inverse_consistency(flows).item() == pytest.approx(inverse_consistency(flows.flip(0)).item())


class TestBothDirections:
    def test_flows_are_those_of_two_passes(self):
        torch.manual_seed(1)
        network, images = RPNet(), torch.rand(2, 1, 1, 16, 24, 16)
        both = network.flows_both_ways(*images, (1, 2, 1, 2))
        for way, (moving, fixed) in enumerate((images, images.flip(0))):
            for level, flow in network.flows(moving, fixed, (1, 2, 1, 2)).items():
                torch.testing.assert_close(both[level][way : way + 1], flow, atol=1e-6, rtol=1e-5)

    def test_a_step_descends_the_mean_of_both_ways(self, tmp_path):
        options = generated_run(tmp_path, clip=0.0, dice=0.5, coarse=0.3, bending=0.2, log_jacobian=0.1)
        alone = Run(replace(options, accumulate=2))
        pair = alone.sources.pair(0)
        expected = alone.train_step([pair, pair.swapped()])
        both = Run(replace(options, both_directions=True))
        found = both.train_step([pair])
        assert vars(found) == pytest.approx(vars(expected), abs=1e-5)
        one, other = (torch.cat([w.grad.flatten() for w in run.network.parameters()]) for run in (both, alone))
        assert (one - other).norm() < 1e-3 * other.norm()

    def test_every_term_has_its_weight_in_the_total(self, tmp_path):
        weights = {"dice": 0.5, "bending": 2.0, "log_jacobian": 3.0, "inverse_consistency": 4.0}
        run = Run(generated_run(tmp_path, smooth=0.7, both_directions=True, **weights))
        found = run.train_step([run.sources.pair(0)])
        terms = sum(weight * getattr(found, name) for name, weight in weights.items())
        assert found.total == pytest.approx(0.7 * found.smoothness - found.local_ncc + terms, abs=1e-5)
        assert all(getattr(found, name) > 0 for name in weights)

    def test_generated_scenes_are_then_taken_once(self, tmp_path):
        options = generated_run(tmp_path)
        usual, both = Run(options).sources, Run(replace(options, both_directions=True)).sources
        assert all(same_pair(both.pair(index), usual.pair(2 * index)) for index in range(3))
        assert same_pair(both.validation[1], usual.validation[1])

    @pytest.mark.parametrize("listed", [False, True])
    def test_a_run_with_all_terms_continues_bit_for_bit(self, tmp_path, listed):
        terms = {"bending": 0.1, "log_jacobian": 0.1, "both_directions": True, "inverse_consistency": 0.1, "dice": 0.3}
        if listed:
            options = listed_run(tmp_path / "run", write_subjects(tmp_path), iterations=(1, 2, 1, 2), **terms)
        else:
            options = generated_run(tmp_path / "run", channels_last="on", workers=1, **terms)
        straight, halves = fit(options), replace(options, output=tmp_path / "halves")
        fit(halves, stop_after(2))
        assert same_weights(straight.last_path, fit(replace(halves, resume=True)).last_path)
        assert all(float(row["inverse_consistency"]) >= 0 and float(row["bending"]) >= 0 for row in rows(straight))

    def test_inverse_consistency_without_both_is_refused(self, tmp_path):
        with pytest.raises(InputError, match="inverse_consistency: needs the flows of both directions"):
            FitOptions(tmp_path, inverse_consistency=1.0)

    def test_changing_a_term_is_another_run(self, tmp_path):
        options = generated_run(tmp_path / "run", steps=1)
        fit(options)
        changed = replace(options, resume=True, bending=0.1, log_jacobian=0.1, both_directions=True)
        refused(changed, "bending", "log_jacobian", "both_directions")
