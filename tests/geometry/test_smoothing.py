"""Smoothing of residual flows: closed forms of the reference (`runtime.geometry.smoothing`)."""

import math

import numpy as np
import pytest

from runtime.errors import InputError
from runtime.geometry import smoothing
from runtime.geometry.smoothing import EDGE, LEAST, confidence, gaussian, halve, smooth_residual

SHAPE = (9, 12, 7)


def random(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def wave(length: float, shape=(64, 5, 5)):
    """A residual along J that oscillates along I with a wavelength in voxels."""
    field = np.zeros((3, *shape))
    field[1] = np.sin(2 * np.pi * np.arange(shape[0]) / length)[:, None, None]
    return field


class TestConfidence:
    def test_a_flat_image_says_nothing(self):
        np.testing.assert_array_equal(confidence(np.full(SHAPE, 0.7)), 0)

    @pytest.mark.parametrize("slope", [0.001, 0.02, 0.1])
    def test_of_a_ramp_it_is_the_same_up_to_the_border(self, slope):
        """For an oblique ramp, the squares of its slopes along the axes add up."""
        ramp = slope * np.indices(SHAPE).sum(axis=0)
        squared = 3 * slope**2
        np.testing.assert_allclose(confidence(ramp), squared / (squared + EDGE), rtol=1e-9)

    def test_it_is_half_where_the_squared_gradient_is_the_constant(self):
        ramp = math.sqrt(EDGE) * np.indices(SHAPE)[1]
        np.testing.assert_allclose(confidence(ramp), 0.5)

    def test_an_axis_of_one_voxel_has_no_slope(self):
        assert confidence(np.ones((1, 1, 1))) == 0
        np.testing.assert_allclose(confidence(math.sqrt(EDGE) * np.indices((1, 6, 1))[1]), 0.5)


class TestSmoothResidual:
    def test_full_confidence_leaves_a_residual_as_it_is(self):
        residual = random((3, *SHAPE))
        np.testing.assert_array_equal(smooth_residual(residual, np.ones(SHAPE), 1.5), residual)

    def test_without_any_confidence_nothing_is_left(self):
        np.testing.assert_array_equal(smooth_residual(random((3, *SHAPE)), np.zeros(SHAPE), 1.5), 0)

    def test_one_displacement_everywhere_stays_whatever_the_image(self):
        """The only deviation is the constant that keeps the quotient finite."""
        trusted, one = np.random.default_rng(1).uniform(0.2, 1, SHAPE), np.array([1.0, -2.0, 0.5])
        residual = np.broadcast_to(one[:, None, None, None], (3, *SHAPE))
        np.testing.assert_allclose(smooth_residual(residual, trusted, 1.5), residual, rtol=LEAST / 0.2)

    @pytest.mark.parametrize("sigma", [1.0, 1.5, 3.0])
    @pytest.mark.parametrize("trust", [0.1, 0.5, 0.9])
    def test_equal_confidence_mixes_the_residual_and_its_gaussian(self, sigma, trust):
        """Away from the border, a Gaussian scales a wave's amplitude by exp(-2 (pi sigma / length)^2)."""
        field = wave(16)
        found = smooth_residual(field, np.full(field.shape[1:], trust), sigma)
        expected = (trust + (1 - trust) * math.exp(-2 * (math.pi * sigma / 16) ** 2)) * field
        np.testing.assert_allclose(found[:, 16:-16], expected[:, 16:-16], atol=0.01)

    def test_what_is_not_trusted_follows_the_edge_beside_it_not_its_own_noise(self):
        """The residual is trusted in one plane and noise beside it."""
        trusted, residual = np.zeros(SHAPE), random((3, *SHAPE))
        trusted[4] = 1
        residual[:, 4] = 2
        found = smooth_residual(residual, trusted, 1.5)
        np.testing.assert_allclose(found[:, 2:7], 2, rtol=0.01)


class TestGaussian:
    @pytest.mark.parametrize("sigma", [0.2, 1.0, 1.5, 5.0])
    def test_weights_add_up_to_one_and_reach_three_sigmas(self, sigma):
        weights = smoothing.gaussian_weights(sigma)
        assert weights.sum() == pytest.approx(1, abs=1e-6)
        assert len(weights) // 2 == max(1, math.ceil(3 * sigma))

    def test_a_constant_stays_up_to_the_border(self):
        np.testing.assert_allclose(gaussian(np.full((2, *SHAPE), 3.0), 2.0), 3, rtol=1e-6)

    def test_axes_are_filtered_one_by_one(self):
        """A point becomes the product of the weights along the axes."""
        point, weights = np.zeros((11, 11, 11)), smoothing.gaussian_weights(1.5)
        point[5, 5, 5] = 1
        np.testing.assert_allclose(gaussian(point, 1.5), np.einsum("i,j,k->ijk", weights, weights, weights), atol=1e-9)


def test_halving_a_ramp_takes_the_places_between():
    ramp = np.indices((4, 6, 8)).astype(np.float64)
    for axis in range(3):
        np.testing.assert_allclose(halve(ramp[axis]), 2 * np.indices((2, 3, 4))[axis] + 0.5)


@pytest.mark.parametrize("sigma", [-0.1, 5.1, math.nan, math.inf, -math.inf])
def test_what_is_no_smoothing_is_refused(sigma):
    with pytest.raises(InputError, match=r"--smooth: got \S+, expected 0 \(no smoothing\) to 5 voxels; 1.5 is"):
        smoothing.check_sigma(sigma)


@pytest.mark.parametrize("sigma", [0, 0.5, 5])
def test_what_is_one_is_taken(sigma):
    smoothing.check_sigma(sigma)
