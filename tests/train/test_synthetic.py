"""Generated pairs: their properties, that they are repeatable, and that they can be registered."""

import nibabel as nib
import numpy as np
import pytest
import torch

from runtime.errors import InputError
from runtime.geometry.flow import folded_share
from runtime.images.overlap import mean_dice
from train.data.randomness import Randomness
from train.data.synthetic import ALIKE, VARIED, GeneratedPairs, load_template
from train.data.synthetic.deformation import deformation
from train.data.synthetic.levels import blur, distance, edge, highest, sample, sample_smooth
from train.data.synthetic.population import Side
from train.data.synthetic.scenes import shapes
from train.data.synthetic.template import DEEPEST

SHAPE = (40, 48, 32)
CPU = torch.device("cpu")


def _random(seed=0):
    return Randomness(np.random.default_rng(seed), CPU)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A ball of three tissues: dark rim, grey shell, bright core."""
    axes = np.meshgrid(*(np.arange(n) - n / 2 for n in (120, 140, 120)), indexing="ij")
    radius = np.sqrt(sum(axis.astype(np.float32) ** 2 for axis in axes))
    volume = np.select([radius < 40, radius < 47, radius < 52], [230, 170, 70]).astype(np.uint8)
    path = tmp_path_factory.mktemp("template") / "ball.nii.gz"
    nib.save(nib.Nifti1Image(volume, np.eye(4)), path)
    return load_template(path)


class KeptPairs(GeneratedPairs):
    """Makes each pair once."""

    def pair(self, index):
        kept = self.__dict__.setdefault("kept", {})
        return kept[index] if index in kept else kept.setdefault(index, super().pair(index))


@pytest.fixture(scope="module", params=["shapes", "template", "varied shapes", "varied template"])
def pairs(request, template):
    population = VARIED if "varied" in request.param else ALIKE
    return KeptPairs(SHAPE, 11, template if "template" in request.param else None, population=population)


def test_images_are_normalised_on_a_black_ground(pairs):
    for index in range(0, 8, 2):
        pair = pairs.pair(index)
        for image in (pair.moving, pair.fixed):
            assert image.shape == SHAPE and image.dtype == torch.float32
            assert image.min() >= 0 and image.max() == 1 and image.isfinite().all()
            foreground = image[image > 0]
            assert foreground.numel() / image.numel() > 0.2
            assert (foreground == 1).float().mean() <= 0.0015  # clipped at the 99.9th percentile


def test_labels_are_those_of_the_foreground(pairs):
    for index in range(0, 8, 2):
        pair = pairs.pair(index)
        assert pair.labelled and pair.moving_labels.dtype == pair.fixed_labels.dtype == torch.int32
        for image, labels in ((pair.moving, pair.moving_labels), (pair.fixed, pair.fixed_labels)):
            assert not labels[image == 0].any()
            assert (labels > 0).sum() > 0.8 * (image > 0).sum()  # of what stripping left there is no label
            assert 2 <= len(labels.unique()) <= 40


def test_labels_mean_the_same_in_both_images_of_a_pair_and_nothing_across_pairs(pairs):
    own, foreign = [], []
    for index in range(0, 12, 2):
        fixed = pairs.pair(index).fixed_labels.numpy()
        own.append(mean_dice(fixed, pairs.pair(index).moving_labels.numpy()))
        foreign.append(mean_dice(fixed, pairs.pair(index + 100).moving_labels.numpy()))
    assert np.mean(own) > 0.3 > 2 * np.mean(foreign)


def test_the_two_images_differ_and_show_the_same_thing(pairs):
    own, foreign = [], []
    for index in range(0, 12, 2):
        moving, fixed = pairs.pair(index).moving.numpy().ravel(), pairs.pair(index).fixed.numpy().ravel()
        own.append(np.corrcoef(moving, fixed)[0, 1])
        foreign.append(np.corrcoef(moving, pairs.pair(index + 100).fixed.numpy().ravel())[0, 1])
    assert max(own) < 0.995 and np.mean(own) > 0.6
    assert np.mean(own) > np.mean(foreign) + 0.2


def test_a_pair_depends_on_seed_and_index_alone(pairs):
    again = GeneratedPairs(SHAPE, 11, pairs.template, population=pairs.population)
    pairs.pair(0)
    one, two = pairs.pair(6), again.pair(6)
    assert torch.equal(one.moving, two.moving) and torch.equal(one.fixed_labels, two.fixed_labels)
    other = GeneratedPairs(SHAPE, 12, pairs.template, population=pairs.population)
    assert not torch.equal(other.pair(6).moving, one.moving)
    assert not torch.equal(pairs.pair(4).moving, one.moving)


def test_an_odd_index_is_the_pair_before_it_the_other_way_round(pairs):
    pair, swapped = pairs.pair(4), pairs.pair(5)
    assert torch.equal(swapped.moving, pair.fixed) and torch.equal(swapped.fixed_labels, pair.moving_labels)


def test_deformations_hardly_fold_and_are_large_enough_to_learn_from():
    flows = [deformation(_random(seed), SHAPE).numpy() for seed in range(6)]
    assert np.mean([folded_share(flow) for flow in flows]) < 0.005
    assert 1 < np.mean([np.linalg.norm(flow, axis=0).mean() for flow in flows]) < 8


def test_two_paintings_of_a_scene_are_two_anatomies():
    random = _random(3)
    scene = shapes(random, (64, 64, 64), ALIKE)
    one, two = (scene.paint(random, Side()).labels.numpy() for _ in range(2))
    assert 0.4 < mean_dice(one, two) < 0.97


def test_a_template_knows_the_tissues_and_the_depth_of_its_voxels(template):
    image, grey, white, depth = template.maps
    i, j, k = (size // 2 for size in template.shape)
    assert DEEPEST * depth[i, j, k].item() == pytest.approx(min(DEEPEST, 52), abs=1.5)
    assert white[i, j, k] == pytest.approx(1, abs=0.01) and grey[i, j, k] == pytest.approx(0, abs=0.01)
    assert grey[i + 43, j, k] == pytest.approx(1, abs=0.01) and white[i + 43, j, k] == pytest.approx(0, abs=0.01)
    assert grey[i + 50, j, k] == pytest.approx(0, abs=0.01) and image[i + 50, j, k] > 0
    assert not template.maps[:, 0].any()
    assert template.levels[0, 0, j, k] == pytest.approx(i - 52, abs=1.5) and template.levels[0, i, j, k] == 0


def test_mni152_comes_with_its_own_tissue_maps():
    template = load_template("mni152")
    image, grey, white, depth = template.maps
    inside = depth > 0.5
    assert white[inside].mean() > 0.5 > grey[inside].mean()
    assert image[white > 0.9].mean() > image[grey > 0.9].mean() + 0.1


def test_smooth_noise_has_unit_deviation_and_its_spacing_is_its_scale():
    rough, smooth = (_random().smooth((96, 96, 96), spacing) for spacing in (4, 16))
    assert rough.std().item() == pytest.approx(1, abs=0.1)
    assert smooth.std().item() == pytest.approx(1, abs=0.35)
    slopes = [field.diff(dim=0).square().mean().sqrt() / field.std() for field in (rough, smooth)]
    assert slopes[0] / slopes[1] == pytest.approx(4, rel=0.3)


def test_distance_is_that_to_the_zero_set_whatever_the_slope():
    plane = torch.arange(20.0)[:, None, None].expand(20, 12, 12) - 9.5
    assert torch.allclose(distance(0.3 * plane, 0.01)[2:-2], plane[2:-2], atol=1e-5)
    assert edge(torch.tensor([-2.0, -0.25, 0.0, 2.0])).tolist() == [0, 0.25, 0.5, 1]


def test_the_highest_of_several_fields_is_argmax():
    fields = torch.rand(5, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(highest(fields), fields.argmax(0))


def test_blur_by_two_thirds_is_the_mean_of_three():
    image = torch.rand(8, 6, 5, generator=torch.Generator().manual_seed(0))
    expected = (image[:-2] + image[1:-1] + image[2:]) / 3
    assert torch.allclose(blur(image, 2 / 3, (0,))[1:-1], expected, atol=1e-6)


def test_a_smooth_volume_may_be_sampled_at_every_second_voxel():
    volume = torch.stack(torch.meshgrid(*(torch.arange(20.0) for _ in range(3)), indexing="ij"))
    coordinates = 2 + 0.7 * torch.rand(3, 1, 1, 1) + 0.8 * volume[:, :17, :16, :15]
    assert torch.allclose(sample_smooth(volume, coordinates), sample(volume, coordinates), atol=1e-4)


@pytest.mark.parametrize("shape", [(40, 48), (40, 44, 32), (0, 8, 8)])
def test_other_windows_are_refused(shape):
    with pytest.raises(InputError, match=r"shape: got .* expected three multiples of 8"):
        GeneratedPairs(shape, 0)


def test_a_template_that_is_none_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"template: .* does not exist"):
        load_template(tmp_path / "none.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros((8, 8, 8), np.float32), np.eye(4)), tmp_path / "empty.nii.gz")
    with pytest.raises(InputError, match="template: every voxel"):
        load_template(tmp_path / "empty.nii.gz")
    mask = np.zeros((24, 24, 24), np.uint8)
    mask[8:16, 8:16, 8:16] = 1
    nib.save(nib.Nifti1Image(mask, np.eye(4)), tmp_path / "mask.nii.gz")
    with pytest.raises(InputError, match=r"template: .*fewer than three intensities"):
        load_template(tmp_path / "mask.nii.gz")
