"""Field operations: every implementation against the NumPy definitions of `runtime.geometry`."""

import numpy as np
import pytest

from runtime.backends.fields_numba import NumbaFields
from runtime.geometry import flow as definition
from runtime.geometry.errors import InputError
from runtime.geometry.similarity import SIMILARITIES

SHAPES = [(1, 1, 1), (2, 3, 4), (5, 1, 7), (16, 8, 24), (23, 41, 9)]
IMPLEMENTATIONS = {"numba": NumbaFields}


@pytest.fixture(params=IMPLEMENTATIONS)
def fields(request):
    return IMPLEMENTATIONS[request.param](2)


@pytest.fixture(params=SHAPES, ids=str)
def shape(request):
    return request.param


def image(shape, seed=0):
    return np.random.default_rng(seed).random(shape, np.float32)


def flow(shape, spread=2.5, seed=1):
    """Random, so that coordinates fall inside, on the border and outside."""
    return np.random.default_rng(seed).normal(0, spread, (3, *shape)).astype(np.float32)


def test_warp(fields, shape):
    moving, u = image(shape), flow(shape)
    np.testing.assert_allclose(fields.warp(moving, u), definition.warp(moving, u), atol=5e-6)


def test_warp_into_fills_its_half_and_leaves_the_fixed_half(fields, shape):
    moving, fixed, u = image((3, *shape), 1), image((3, *shape), 2), flow(shape)
    buffer = fields.warp_into(fields.estimator_input(fixed), moving, u)
    np.testing.assert_allclose(buffer[:3], definition.warp(moving, u), atol=5e-6)
    np.testing.assert_array_equal(buffer[3:], fixed)


def test_compose(fields, shape):
    first, residual = flow(shape, seed=3), flow(shape, seed=4)
    np.testing.assert_allclose(fields.compose(first, residual), definition.compose(first, residual), atol=5e-5)


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_upsample(fields, shape, scale):
    coarse = flow(shape)
    expected = definition.upsample(coarse, scale)
    np.testing.assert_allclose(fields.upsample(coarse, scale), expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("scale", [1, 2, 8])
def test_score_is_upsample_warp_and_similarity_in_one(fields, similarity, scale):
    """Compared with the textbook: materialise the upsampled flow and the warped image, then compare the images."""
    coarse_shape = (3, 2, 4)
    full = tuple(scale * size for size in coarse_shape)
    fixed, moving, coarse = image(full, 5), image(full, 6), flow(coarse_shape, 1.0)
    warped = definition.warp(moving, definition.upsample(coarse, scale))
    expected = SIMILARITIES[similarity](fixed, warped)
    assert fields.scorer(fixed, similarity)(moving, coarse) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("shape", [(41, 23, 30), (20, 4, 9), (7, 50, 3)])
def test_local_correlation_of_smooth_images(fields, shape):
    """Blocks and window borders: sizes below, at and above the block and the window."""
    fixed = definition.resize(image((4, 4, 4)), shape)
    moving = definition.resize(image((4, 4, 4), 9), shape)
    score = fields.scorer(fixed, "lncc")(moving, fields.zero(shape))
    assert score == pytest.approx(SIMILARITIES["lncc"](fixed, moving), rel=1e-6)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_score_does_not_depend_on_threads(similarity):
    fixed, moving, u = image((40, 24, 16), 1), image((40, 24, 16), 2), flow((20, 12, 8))
    scores = {NumbaFields(threads).scorer(fixed, similarity)(moving, u) for threads in (1, 2, 1, 2)}
    assert len(scores) == 1


def test_identical_images_have_the_largest_similarity(fields):
    fixed = image((16, 16, 16))
    still = fields.zero(fixed.shape)
    assert fields.scorer(fixed, "ncc")(fixed, still) == pytest.approx(1, abs=1e-12)
    assert fields.scorer(fixed, "mse")(fixed, still) == pytest.approx(0, abs=1e-12)
    assert fields.scorer(fixed, "lncc")(fixed, still) == pytest.approx(1, abs=1e-3)


def test_a_constant_image_has_no_correlation(fields):
    fixed = image((8, 8, 8))
    for constant in (0.0, 0.3):
        flat = np.full_like(fixed, constant)
        assert np.isnan(fields.scorer(fixed, "ncc")(flat, fields.zero(fixed.shape)))
        assert np.isnan(fields.scorer(flat, "ncc")(fixed, fields.zero(fixed.shape)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_a_flow_that_is_not_finite_never_gives_a_finite_score(fields, similarity, bad):
    fixed, moving = image((8, 8, 8), 1), image((8, 8, 8), 2)
    u = flow((8, 8, 8), 0.5)
    u[1, 3, 4, 5] = bad
    assert not np.isfinite(fields.scorer(fixed, similarity)(moving, u))


def test_a_flow_far_outside_gives_zeros(fields):
    moving, u = image((4, 5, 6)), np.full((3, 4, 5, 6), 1e9, np.float32)
    np.testing.assert_array_equal(fields.warp(moving, u), 0)
    np.testing.assert_array_equal(fields.warp(moving, -u), 0)


@pytest.mark.parametrize("size", [(2, 2, 2), (2, 9, 4), (13, 8, 11)])
def test_folded_share(fields, size):
    u = flow(size, 0.7)
    assert fields.folded_share(u) == definition.folded_share(u)
    assert fields.folded_share(fields.zero(size)) == 0


def test_unknown_similarity_is_refused(fields):
    with pytest.raises(InputError, match="similarity: got 'mi', expected one of ncc, lncc, mse"):
        fields.scorer(image((4, 4, 4)), "mi")
