"""Augmentation: permitted changes, invariants, and label maps that move with their images."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from runtime.errors import InputError
from tests.train.training import same_pair
from train.data.augment import Augmentation, affine, augment, blurred, displacement, intensities
from train.data.image_pair import ImagePair
from train.data.randomness import Randomness

SHAPE = (20, 24, 16)
NOTHING = Augmentation().scaled(0)


def _pair(labels=True):
    """Return two images of a bright box on a black background, off centre along every axis, and its label."""
    image, label_map = torch.zeros(SHAPE), torch.zeros(SHAPE, dtype=torch.int32)
    image[4:12, 6:14, 3:9], label_map[4:12, 6:14, 3:9] = 0.6, 7
    maps = (label_map, label_map.clone()) if labels else ()
    return ImagePair(image, image.clone(), *maps)


def _draw(seed=0):
    return Randomness(np.random.default_rng(seed), torch.device("cpu"))


def test_a_pair_depends_on_seed_and_index_alone():
    pair = _pair()
    changed = augment(pair, Augmentation(), 5, 9)
    assert same_pair(augment(pair, Augmentation(), 5, 9), changed)
    assert not same_pair(augment(pair, Augmentation(), 5, 10), changed)
    assert not same_pair(augment(pair, Augmentation(), 6, 9), changed)


def test_the_pair_that_came_stays_as_it_was():
    pair = _pair()
    augment(pair, Augmentation(), 0, 0)
    assert same_pair(pair, _pair())


@pytest.mark.parametrize("labels", [True, False])
def test_strength_zero_changes_nothing(labels):
    pair = _pair(labels)
    for one, other in zip(augment(pair, NOTHING, 0, 0).tensors(), pair.tensors(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)
        assert one.dtype == other.dtype and one.is_contiguous()


@pytest.mark.parametrize("name", ["shift", "rotation", "zoom", "shear", "elastic"])
def test_each_spatial_change_moves_both_images_and_each_its_own_way(name):
    only = replace(NOTHING, **{name: 3 * getattr(Augmentation(), name)})
    changed = augment(_pair(), only, 0, 1)
    for image in (changed.moving, changed.fixed):
        assert (image - _pair().moving).abs().max() > 0.1
    assert (changed.moving - changed.fixed).abs().max() > 0.05


@pytest.mark.parametrize("name", ["gamma", "contrast", "bias", "noise", "blur"])
def test_each_intensity_change_leaves_label_maps_and_the_ground_alone(name):
    only = replace(NOTHING, **{name: 2 * getattr(Augmentation(), name)})
    pair, changed = _pair(), augment(_pair(), only, 0, 1)
    ground = torch.nn.functional.max_pool3d((pair.moving > 0)[None, None].float(), 9, 1, 4)[0, 0] == 0
    assert all(torch.equal(labels, pair.moving_labels) for labels in (changed.moving_labels, changed.fixed_labels))
    for image in (changed.moving, changed.fixed):
        assert not image[ground].any() and image.min() >= 0 and image.max() <= 1
    if name != "contrast":  # of a box of one intensity there is no contrast to change
        assert not torch.equal(changed.moving, pair.moving) and not torch.equal(changed.moving, changed.fixed)


def test_contrast_spreads_intensities_about_their_mean():
    image = torch.zeros(SHAPE)
    image[4:8], image[8:12] = 0.4, 0.6
    result = intensities(image, replace(NOTHING, contrast=0.2), _draw())
    low, high = result[5, 5, 5].item(), result[9, 5, 5].item()
    assert (low + high) / 2 == pytest.approx(0.5, abs=1e-5) and abs(high - low - 0.2) > 1e-3 and not result[0].any()


def test_label_maps_follow_their_images():
    """An image that is 1 where the label is: where it is nearly 1 or 0 after the move, the label must agree."""
    _, label_map = _pair().moving, _pair().moving_labels
    image = (label_map > 0).float()
    only = replace(Augmentation().scaled(2), gamma=0, contrast=0, bias=0, noise=0, blur=0)
    for index in range(4):
        changed = augment(ImagePair(image, image, label_map, label_map), only, 0, index)
        for moved, labels in ((changed.moving, changed.moving_labels), (changed.fixed, changed.fixed_labels)):
            assert set(labels.unique().tolist()) <= {0, 7} and labels.any()
            assert (labels[moved > 0.95] == 7).all() and (labels[moved < 0.05] == 0).all()


def test_both_images_are_mirrored_alike_and_about_half_of_the_pairs():
    only = replace(NOTHING, flip=0.5, flip_axes=(0, 2))
    pair, seen = _pair(), set()
    for index in range(40):
        changed = augment(pair, only, 0, index)
        mirrored = [axes for axes in ((), (0,), (2,), (0, 2))
                    if torch.allclose(changed.moving, pair.moving.flip(axes), atol=1e-6)]  # fmt: skip
        assert len(mirrored) == 1
        torch.testing.assert_close(changed.fixed, pair.fixed.flip(mirrored[0]), atol=1e-6, rtol=0)
        assert torch.equal(changed.moving_labels, pair.moving_labels.flip(mirrored[0]))
        seen.add(mirrored[0])
    assert len(seen) == 4


def test_without_shear_and_zoom_the_affine_map_is_a_rotation_about_the_centre():
    only = replace(NOTHING, rotation=20.0)
    matrix = affine(only, _draw()).double()
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(3, dtype=torch.float64), atol=1e-6, rtol=0)
    assert torch.det(matrix).item() == pytest.approx(1, abs=1e-6) and (matrix - torch.eye(3)).abs().max() > 0.05
    flow = displacement((21, 25, 17), only, _draw())
    assert flow[:, 10, 12, 8].abs().max() < 1e-5 and flow[:, 0, 0, 0].abs().max() > 1


def test_size_of_a_change_grows_with_the_strength():
    strengths = [Augmentation().scaled(strength) for strength in (0, 1, 2)]
    sizes = [displacement(SHAPE, options, _draw()).abs().mean().item() for options in strengths]
    assert sizes[0] < 1e-6 and sizes[2] > 1.5 * sizes[1] > 0.1


def test_the_usual_elastic_change_does_not_fold():
    from train.model.fields import folded_share

    assert max(folded_share(displacement((40, 48, 40), Augmentation(), _draw(n))[None]) for n in range(8)) < 1e-3


def test_blur_is_a_gaussian_that_keeps_a_constant_and_the_mean():
    point = torch.zeros(31, 31, 31)
    point[15, 15, 15] = 1
    result = blurred(point, 1.5)
    assert result.sum().item() == pytest.approx(1, abs=1e-4)
    offset = torch.arange(31.0) - 15
    assert (result.sum(dim=(1, 2)) * offset**2).sum().item() == pytest.approx(1.5**2, rel=0.03)
    torch.testing.assert_close(blurred(torch.full(SHAPE, 0.3), 2.0), torch.full(SHAPE, 0.3))


def test_every_number_may_be_zero_and_none_negative():
    for field in fields(Augmentation):
        if field.name not in ("elastic_width", "flip_axes"):
            replace(Augmentation(), **{field.name: 0.0})
            with pytest.raises(InputError, match=f"augment: {field.name}"):
                replace(Augmentation(), **{field.name: -0.1})
    for bad in ({"flip": 1.5}, {"flip_axes": (3,)}, {"elastic_width": (20.0, 10.0)}):
        with pytest.raises(InputError, match=f"augment: {next(iter(bad))}"):
            Augmentation(**bad)


def test_intensities_do_not_depend_on_the_number_of_threads(own_threads):
    image = torch.rand((80, 96, 80), generator=torch.Generator().manual_seed(0))
    made = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        made.append(intensities(image, Augmentation(), Randomness(np.random.default_rng(2), torch.device("cpu"))))
    assert torch.equal(made[0], made[1]) and torch.equal(made[0], made[2])
