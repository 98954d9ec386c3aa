"""The training loss against the NumPy definition, closed forms and its own numerical derivative."""

import numpy as np
import pytest
import torch

from runtime.geometry import similarity
from train.losses import FORMS, box_sum, local_ncc, smoothness


def _images(shape=(12, 11, 10), seed=0, correlation=0.6):
    rng = np.random.default_rng(seed)
    fixed = rng.random(shape, dtype=np.float32)
    other = rng.random(shape, dtype=np.float32)
    return fixed, (correlation * fixed + (1 - correlation) * other).astype(np.float32)


def _torch(image):
    return torch.from_numpy(np.asarray(image, np.float32))[None, None]


@pytest.mark.parametrize("window", [1, 3, 9])
def test_box_sum_is_the_definition(window):
    image = np.random.default_rng(0).random((12, 7, 5))
    result = box_sum(torch.from_numpy(image).float()[None], window)[0].numpy()
    np.testing.assert_allclose(result, similarity.box_sum(image, window), rtol=1e-5)


@pytest.mark.parametrize("shape", [(12, 11, 10), (30, 4, 9), (16, 1, 5)])
def test_squared_form_is_the_similarity_of_the_runtime(shape):
    fixed, warped = _images(shape)
    assert local_ncc(_torch(fixed), _torch(warped), "squared").item() == pytest.approx(
        similarity.lncc(fixed, warped), abs=2e-5
    )


def test_plain_form_is_equation_3():
    """Directly, window by window: zeros outside, sums and means over 9^3 voxels."""
    fixed, warped = _images((6, 5, 7))
    padded_f, padded_w = (np.pad(image.astype(np.float64), 4) for image in (fixed, warped))
    values = []
    for i, j, k in np.ndindex(fixed.shape):
        f, w = (image[i : i + 9, j : j + 9, k : k + 9] for image in (padded_f, padded_w))
        f, w = f - f.mean(), w - w.mean()
        values.append((f * w).sum() / np.sqrt((f * f).sum() * (w * w).sum() + 1e-5))
    assert local_ncc(_torch(fixed), _torch(warped), "plain").item() == pytest.approx(np.mean(values), abs=1e-5)


def test_plain_form_keeps_the_sign_that_the_squared_form_loses():
    fixed, _ = _images((24, 24, 24))
    inside = np.pad(fixed[4:20, 4:20, 4:20], 4)
    inverted = np.pad(1 - fixed[4:20, 4:20, 4:20], 4)
    core = (slice(8, 16),) * 3
    f, w = _torch(inside[core]), _torch(inverted[core])
    plain, squared = (local_ncc(f, w, form, window=1 + 2 * 2).item() for form in FORMS)
    assert plain < 0 < squared


@pytest.mark.parametrize("form", FORMS)
def test_identical_images_reach_nearly_one_and_scale_or_offset_inside_do_not_matter(form):
    fixed, _ = _images()
    assert local_ncc(_torch(fixed), _torch(fixed), form).item() == pytest.approx(1, abs=1e-3)
    assert local_ncc(_torch(fixed), _torch(0.5 * fixed), form).item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("constant", ["fixed", "warped", "both"])
def test_constant_images_give_zero_and_finite_gradients(form, constant):
    fixed, warped = (_torch(image) for image in _images())
    fixed = torch.zeros_like(fixed) if constant != "warped" else fixed
    warped = (torch.zeros_like(warped) if constant != "fixed" else warped).requires_grad_()
    value = local_ncc(fixed, warped, form)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-6)
    assert warped.grad.isfinite().all()


@pytest.mark.parametrize("form", FORMS)
def test_gradient_is_the_derivative(form):
    fixed, warped = (_torch(image) for image in _images((6, 6, 6)))
    direction = torch.from_numpy(np.random.default_rng(3).normal(size=warped.shape).astype(np.float32))
    moving = warped.clone().requires_grad_()
    local_ncc(fixed, moving, form).backward()
    step = 1e-3
    ahead, behind = (local_ncc(fixed, warped + sign * step * direction, form).item() for sign in (1, -1))
    assert (moving.grad * direction).sum().item() == pytest.approx((ahead - behind) / (2 * step), rel=0.02, abs=2e-3)


@pytest.mark.parametrize("form", FORMS)
def test_autocast_does_not_change_the_value(form):
    fixed, warped = (_torch(image) for image in _images())
    with torch.autocast("cpu", torch.bfloat16):
        under = local_ncc(fixed, warped, form)
    assert under.dtype == torch.float32 and under.item() == local_ncc(fixed, warped, form).item()


def test_smoothness_of_a_linear_flow_is_its_slopes():
    i, j, k = torch.meshgrid(torch.arange(5.0), torch.arange(6.0), torch.arange(7.0), indexing="ij")
    flow = torch.stack((0.5 * i, 2 * j - k, 3 + 0 * k))[None]
    along_i, along_j, along_k = 0.5**2 / 3, 2**2 / 3, 1**2 / 3  # means over the three components
    assert smoothness(flow).item() == pytest.approx((along_i + along_j + along_k) / 3)


def test_smoothness_counts_an_axis_of_one_voxel_as_flat():
    flow = torch.arange(4.0).view(1, 1, 4, 1, 1).expand(1, 3, 4, 1, 1)
    assert smoothness(flow).item() == pytest.approx(1 / 3)
