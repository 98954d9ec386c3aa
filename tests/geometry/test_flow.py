"""The NumPy reference implementations, against closed forms and other libraries."""

import numpy as np
import pytest
import scipy.ndimage

from runtime.geometry import flow
from runtime.images import similarity


def linear_image(shape, slope=(0.1, -0.2, 0.3)):
    return np.tensordot(slope, flow.identity(shape), 1).astype(np.float32)


def constant_flow(shift, shape):
    return np.broadcast_to(np.reshape(shift, (3, 1, 1, 1)), (3, *shape)).astype(np.float32)


def test_warp_samples_at_x_plus_flow():
    """A linear image warped by a shift s is the image plus slope . s, wherever no border is touched."""
    shape, slope, shift = (9, 8, 7), np.array((0.1, -0.2, 0.3)), np.array((1.25, -0.5, 0.75))
    warped = flow.warp(linear_image(shape, slope), constant_flow(shift, shape))
    expected = linear_image(shape, slope) + slope @ shift
    np.testing.assert_allclose(warped[:-2, 1:, :-1], expected[:-2, 1:, :-1], atol=1e-5)


def test_whole_voxel_shift_moves_voxels_and_fills_with_zeros():
    image = np.random.default_rng(0).random((5, 6, 7))
    warped = flow.warp(image, constant_flow((2, 0, -1), image.shape))
    np.testing.assert_allclose(warped[:-2, :, 1:], image[2:, :, :-1])
    assert not warped[-2:].any() and not warped[:, :, 0].any()


def test_sample_agrees_with_scipy_inside():
    rng = np.random.default_rng(1)
    image = rng.random((6, 7, 8))
    points = rng.uniform(0, [[5], [6], [7]], (3, 200))
    np.testing.assert_allclose(flow.sample(image, points), scipy.ndimage.map_coordinates(image, points, order=1))


def test_resize_keeps_corner_voxels_in_place():
    image = np.random.default_rng(2).random((3, 4, 5))
    resized = flow.resize(image, (9, 8, 15))
    np.testing.assert_allclose(resized[::8, ::7, ::14], image[::2, ::3, ::4])


def test_upsample_scales_values_with_the_grid():
    up = flow.upsample(constant_flow((1, -2, 0.5), (2, 3, 4)), 4)
    assert up.shape == (3, 8, 12, 16)
    np.testing.assert_allclose(up, constant_flow((4, -8, 2), (8, 12, 16)), rtol=1e-6)


def test_composed_shifts_add():
    total = flow.compose(constant_flow((1, 0, 0), (8, 8, 8)), constant_flow((0, 2, -1), (8, 8, 8)))
    np.testing.assert_allclose(total[:, :, :6, 1:], constant_flow((1, 2, -1), (8, 6, 7)))


def test_composition_is_residual_first_then_flow():
    """warp(warp(image, flow), residual) = warp(image, compose(flow, residual)), exact for linear images and flows."""
    shape = (12, 12, 12)
    bend = 0.05 * flow.identity(shape).astype(np.float32)
    residual = constant_flow((1.5, 1.0, 0.5), shape)
    image = linear_image(shape)
    twice = flow.warp(flow.warp(image, bend), residual)
    once = flow.warp(image, flow.compose(bend, residual))
    np.testing.assert_allclose(twice[:8, :8, :8], once[:8, :8, :8], atol=1e-5)


@pytest.mark.parametrize("factor", [1.3, 0.5, -0.2])
def test_jacobian_of_a_scaling(factor):
    u = ((factor - 1) * flow.identity((5, 6, 7))).astype(np.float32)
    np.testing.assert_allclose(flow.jacobian_determinant(u), factor**3, rtol=1e-4)
    assert flow.folded_share(u) == (factor < 0)


def test_ncc_is_pearson_and_blind_to_contrast():
    rng = np.random.default_rng(3)
    a, b = rng.random((6, 6, 6)), rng.random((6, 6, 6))
    assert similarity.ncc(a, b) == pytest.approx(np.corrcoef(a.ravel(), b.ravel())[0, 1])
    assert similarity.ncc(a, 3 * a + 1) == pytest.approx(1)
    assert similarity.ncc(a, -a) == pytest.approx(-1)
    assert np.isnan(similarity.ncc(a, np.ones_like(a)))


def test_lncc_window_by_window():
    """A direct loop over windows is the reference."""
    rng = np.random.default_rng(4)
    a, b = rng.random((6, 7, 5)), rng.random((6, 7, 5))
    pad = [np.pad(x, 1) for x in (a, b)]
    total = 0.0
    for i, j, k in np.ndindex(a.shape):
        f, w = (x[i : i + 3, j : j + 3, k : k + 3] for x in pad)
        cross = ((f - f.mean()) * (w - w.mean())).sum()
        total += cross**2 / (((f - f.mean()) ** 2).sum() * ((w - w.mean()) ** 2).sum() + similarity.LNCC_EPSILON)
    assert similarity.lncc(a, b, window=3) == pytest.approx(total / a.size)


def test_mse_is_negative_so_that_larger_is_more_alike():
    a = np.zeros((2, 2, 2))
    assert similarity.negative_mse(a, a + 0.5) == -0.25
