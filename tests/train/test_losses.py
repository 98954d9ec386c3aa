"""The terms of the training loss against NumPy definitions, closed forms and their own numerical derivatives."""

import numpy as np
import pytest
import torch

from runtime.images import similarity
from runtime.images.overlap import mean_dice
from train.loss.terms import FORMS, MOST_LABELS, box_sum, dice_loss, local_ncc, smoothness
from train.model.fields import warp


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
    """Compute it directly, window by window: zeros outside, sums and means over 9^3 voxels."""
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


def _label_maps(labels=(1, 2, 3), shape=(10, 9, 8), seed=0):
    """Return two random maps of 0 and the labels, as a batch of one."""
    rng = np.random.default_rng(seed)
    return (torch.from_numpy(rng.choice([0, *labels], (1, *shape)).astype(np.int32)) for _ in range(2))


def _shift(i, shape):
    flow = torch.zeros(1, 3, *shape)
    flow[:, 0] = i
    return flow


@pytest.mark.parametrize("shift", [0, 2])
def test_dice_loss_of_a_whole_shift_is_one_minus_the_dice_of_shifted_labels(shift):
    fixed, moving = _label_maps()
    flow = _shift(shift, fixed.shape[1:])
    warped = warp(moving[None].float(), flow, mode="nearest")[0].round().int()
    expected = 1 - mean_dice(fixed[0].numpy(), warped[0].numpy(), (1, 2, 3))
    assert dice_loss(fixed, moving, flow).item() == pytest.approx(expected, abs=1e-5)


def test_dice_loss_of_a_box_half_a_voxel_away():
    """4 of 5 voxels in full and one half: 2 (3 + 2/2) / (4 + 4), counted along one line."""
    fixed, moving = (torch.zeros(1, 12, 3, 3, dtype=torch.int32) for _ in range(2))
    fixed[:, 4:8], moving[:, 4:8] = 7, 7
    assert dice_loss(fixed, moving, _shift(0, (12, 3, 3))).item() == pytest.approx(0, abs=1e-6)
    # At i = 3 and 7 the warped map is 1/2, at 4, 5, 6 it is 1.
    assert dice_loss(fixed, moving, _shift(0.5, (12, 3, 3))).item() == pytest.approx(1 - 2 * 3.5 / 8)
    assert dice_loss(fixed, moving, _shift(6, (12, 3, 3))).item() == pytest.approx(1)


def test_dice_loss_pulls_a_box_onto_the_other():
    """Gradient descent on a common shift ends when the boxes coincide: moving is 3 voxels along I."""
    fixed, moving = (torch.zeros(1, 20, 4, 4, dtype=torch.int32) for _ in range(2))
    fixed[:, 4:12], moving[:, 7:15] = 1, 1
    shift = torch.full((1,), 0.3, requires_grad=True)
    for _ in range(60):
        along = shift.view(1, 1, 1, 1, 1).expand(1, 1, 20, 4, 4)
        flow = torch.cat((along, torch.zeros(1, 2, 20, 4, 4)), dim=1)
        (gradient,) = torch.autograd.grad(dice_loss(fixed, moving, flow), shift)
        shift = (shift - 0.1 * gradient.sign()).detach().requires_grad_()
    assert shift.item() == pytest.approx(3, abs=0.15)


def test_dice_loss_gradient_is_the_derivative():
    fixed, moving = _label_maps()
    generator = torch.Generator().manual_seed(1)
    flow = (0.2 + 0.3 * torch.rand(1, 3, 10, 9, 8, generator=generator)).requires_grad_()  # stays within each cell
    direction = torch.randn(flow.shape, generator=generator)
    (gradient,) = torch.autograd.grad(dice_loss(fixed, moving, flow), flow)
    ahead, behind = (dice_loss(fixed, moving, flow.detach() + s * 0.01 * direction).item() for s in (1, -1))
    assert (gradient * direction).sum().item() == pytest.approx((ahead - behind) / 0.02, rel=0.02)


def test_dice_loss_compares_what_both_have_and_never_the_ground():
    fixed, moving = _label_maps(labels=(5,))
    alone = dice_loss(fixed, moving, _shift(0, fixed.shape[1:])).item()
    fixed[:, 0], moving[:, 1] = 8, 9  # each in one map only
    fixed[:, 1], moving[:, 0] = 0, 0
    kept = dice_loss(fixed[:, 2:], moving[:, 2:], _shift(0, (8, 9, 8))).item()
    assert dice_loss(fixed, moving, _shift(0, fixed.shape[1:])).item() == pytest.approx(kept) != alone


@pytest.mark.parametrize("labels", [(0,), (3,), (70_000,)])
def test_dice_loss_without_a_shared_label_is_zero_with_a_gradient_of_zero(labels):
    fixed, moving = torch.ones(1, 4, 4, 4, dtype=torch.int32), torch.full((1, 4, 4, 4), labels[0], dtype=torch.int32)
    flow = torch.zeros(1, 3, 4, 4, 4, requires_grad=True)
    value = dice_loss(fixed, moving, flow)
    value.backward()
    assert value.item() == 0 and not flow.grad.any()


def test_of_many_labels_some_are_chosen_evenly_whatever_their_numbers():
    """40 labels, of which every third or so counts; large numbers are found by sorting instead of counting."""
    numbers = torch.arange(1, 41, dtype=torch.int32)
    fixed = numbers.view(1, 40, 1, 1).expand(1, 40, 3, 3)
    moving = fixed.clone()
    flow = _shift(0, (40, 3, 3))
    assert dice_loss(fixed, moving, flow).item() == pytest.approx(0, abs=1e-6)
    lost = []
    for number in numbers:
        changed = torch.where(fixed == number, torch.roll(fixed, 1, dims=2), moving)
        changed[:, number - 1, 0] = 0  # this label alone loses a third of itself
        lost.append(dice_loss(fixed, changed, flow).item() > 1e-6)
    places = np.flatnonzero(lost)
    assert len(places) == MOST_LABELS and places[0] == 0 and places[-1] == 39 and np.diff(places).max() <= 3
    far = dice_loss(fixed + 100_000, changed + 100_000 * (changed > 0), flow).item()
    assert far == pytest.approx(dice_loss(fixed, changed, flow).item())


def test_dice_loss_of_a_batch_is_the_mean_of_its_pairs():
    maps = [tuple(_label_maps(seed=seed)) for seed in (0, 1)]
    flow = _shift(0.4, (10, 9, 8))
    alone = [dice_loss(fixed, moving, flow).item() for fixed, moving in maps]
    fixed, moving = (torch.cat(pair) for pair in zip(*maps, strict=True))
    assert dice_loss(fixed, moving, flow.expand(2, -1, -1, -1, -1)).item() == pytest.approx(np.mean(alone))
    assert alone[0] != pytest.approx(alone[1])
