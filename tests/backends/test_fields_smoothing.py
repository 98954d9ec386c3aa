"""Smoothing of residuals in a registration: the image at each level, sharing between pairs, and the option's effect."""

import json

import numpy as np
import pytest

import runtime
from runtime.backends.parity import example_pair
from runtime.errors import InputError
from runtime.geometry.flow import compose
from runtime.geometry.smoothing import confidence, halve, smooth_residual
from runtime.loop import iterstop
from runtime.loop.schedules import LEVELS
from runtime.loop.stop_rules import parse_schedule
from runtime.registration.arrays import register_arrays
from runtime.registration.options import Options
from tests import scans

SHAPE = (24, 32, 16)
SIGMA = 1.5


@pytest.fixture(scope="module")
def images():
    return example_pair(SHAPE)


@pytest.fixture
def pair(engines, images):
    """The example pair, prepared on the engines, within their threads."""
    fixed, moving = map(engines.fields.to_device, images)
    with engines.running():
        yield engines.fixed_side(fixed, "ncc").pair(moving)


def flow_of(pair, schedule="1,2,1,1"):
    return iterstop.run(pair, parse_schedule(schedule)).flow


def averaged(image, level):
    return image if level == 1 else halve(averaged(image, level - 1))


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_trusts_the_edges_of_the_fixed_image_on_its_own_grid(pair, images, level):
    """The first step from the zero flow gives the residual itself."""
    plain, found = (
        np.moveaxis(each.step(level, each.zero(level)), -1, 0) for each in (pair, pair.with_smoothing(SIGMA))
    )
    expected = smooth_residual(plain, confidence(averaged(images[0], level)), SIGMA)
    assert np.abs(expected - plain).max() > 1e-4
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_a_smoothed_residual_is_composed_with_the_flow(pair, engines, images):
    """At a flow that is not zero, with the estimator's own residual there."""
    flow = pair.step(2, pair.zero(2))
    features = engines.fields.warp_into(pair._fixed_side.inputs[2], pair._features[2], flow)
    residual = np.moveaxis(engines.networks.residual(2, features), -1, 0).copy()
    smoothed = smooth_residual(residual, confidence(halve(images[0])), SIGMA)
    found = np.moveaxis(pair.with_smoothing(SIGMA).step(2, flow), -1, 0)
    np.testing.assert_allclose(found, compose(np.moveaxis(flow, -1, 0), smoothed), atol=1e-5)


def test_without_smoothing_nothing_changes(pair):
    plain = flow_of(pair)
    smoothed = pair.with_smoothing(SIGMA)
    assert np.abs(flow_of(smoothed) - plain).max() > 0.01
    np.testing.assert_array_equal(flow_of(pair), plain)
    np.testing.assert_array_equal(flow_of(smoothed.with_smoothing(0)), plain)


def test_similarity_and_smoothing_are_chosen_in_any_order(pair):
    one, other = pair.with_similarity("mse").with_smoothing(SIGMA), pair.with_smoothing(SIGMA).with_similarity("mse")
    assert one.score(1, one.zero(1)) == other.score(1, other.zero(1)) < 0
    np.testing.assert_array_equal(flow_of(one), flow_of(other))


def test_a_cascade_smooths_in_every_pass(pair):
    smoothed = pair.with_smoothing(SIGMA)
    first = flow_of(smoothed, "1,1,1,1")
    again = smoothed.compose(first, flow_of(smoothed.warped(first), "1,1,1,1"))
    np.testing.assert_array_equal(flow_of(smoothed, "cascade:2"), again)
    assert (
        np.abs(flow_of(smoothed.warped(first).with_smoothing(0), "1,1,1,1") - flow_of(smoothed.warped(first))).max() > 0
    )


def test_what_depends_on_the_fixed_image_alone_is_made_once_a_level(pair, engines, monkeypatch):
    made, make = [], type(engines.fields).smoother
    monkeypatch.setattr(type(engines.fields), "smoother", lambda *given: made.append(given[1].shape) or make(*given))
    for moving in (pair.moving, pair.moving[::-1].copy()):
        flow_of(pair._fixed_side.pair(moving).with_similarity("mse").with_smoothing(SIGMA), "2,2,2,2")
    assert made == [tuple(size // 2 ** (level - 1) for size in SHAPE) for level in LEVELS]


@pytest.mark.parametrize("sigma", [-1, 6, float("nan"), float("inf")])
def test_what_is_no_smoothing_is_refused_before_any_work(engines, images, sigma):
    message = "--smooth: got .* expected 0"
    with pytest.raises(InputError, match=message):
        Options(smooth=sigma).resolved(engines.engine_set)
    with pytest.raises(InputError, match=message):
        register_arrays(engines, *images, smooth=sigma)


def test_of_two_scans(engines, tmp_path):
    """The option has the same effect on a fixed scan, a pair or a registration, and is in report and summary."""
    fixed = scans.write_scan(tmp_path / "f.nii.gz", scans.grid((30, 44, 26), (1.2, 1, 1.5), scans.OBLIQUE))
    moving = scans.write_scan(tmp_path / "m.nii.gz", scans.grid((48, 56, 46), axes="LPS"), scans.bend)
    options = Options(affine="none", schedule="1,1,1,1", smooth=SIGMA)
    plain = runtime.FixedScan(fixed, engines, Options(affine="none", schedule="1,1,1,1")).align(moving)
    alone = runtime.register(fixed, moving, engines, options)
    onto = runtime.FixedScan(fixed, engines, options).register(moving)
    for result in (plain.register(options), onto):
        np.testing.assert_array_equal(result.displacement, alone.displacement)
    assert np.abs(plain.register().displacement - alone.displacement).max() > 0.01
    alone.save(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "report.json").read_text())["options"]["smooth"] == SIGMA
    assert "(1,1,1,1, smooth 1.5)" in alone.summary() and "smooth" not in plain.register().summary()
