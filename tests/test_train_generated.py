"""Generated pairs: what they are like, that they repeat, and that they can be registered at all."""

import nibabel as nib
import numpy as np
import pytest
import torch

from runtime.geometry.errors import InputError
from runtime.geometry.flow import folded_share
from train.generated import GeneratedPairs, deformation, load_template, smooth_noise

SHAPE = (40, 48, 32)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A ball of three tissues: dark rim, grey shell, bright core."""
    axes = np.meshgrid(*(np.arange(n) - n / 2 for n in (120, 140, 120)), indexing="ij")
    radius = np.sqrt(sum(axis.astype(np.float32) ** 2 for axis in axes))
    volume = np.select([radius < 40, radius < 47, radius < 52], [230, 170, 70]).astype(np.uint8)
    path = tmp_path_factory.mktemp("template") / "ball.nii.gz"
    nib.save(nib.Nifti1Image(volume, np.eye(4)), path)
    return load_template(path)


@pytest.fixture(params=["shapes", "template"])
def pairs(request, template):
    return GeneratedPairs(SHAPE, 11, template if request.param == "template" else None)


def test_images_are_normalised_on_a_black_ground(pairs):
    for index in range(0, 8, 2):
        for image in pairs.pair(index):
            assert image.shape == SHAPE and image.dtype == torch.float32
            assert image.min() >= 0 and image.max() == 1 and image.isfinite().all()
            foreground = image[image > 0]
            assert foreground.numel() / image.numel() > 0.2
            assert (foreground == 1).float().mean() <= 0.0015  # clipped at the 99.9th percentile


def test_the_two_images_differ_and_show_the_same_thing(pairs):
    for index in range(0, 8, 2):
        moving, fixed = (image.numpy().ravel() for image in pairs.pair(index))
        correlation = np.corrcoef(moving, fixed)[0, 1]
        stranger = np.corrcoef(moving, pairs.pair(index + 100)[1].numpy().ravel())[0, 1]
        assert 0.2 < correlation < 0.99 and correlation > stranger


def test_a_pair_depends_on_seed_and_index_alone(pairs):
    again = GeneratedPairs(SHAPE, 11, pairs.template)
    pairs.pair(0)
    assert all(torch.equal(a, b) for a, b in zip(pairs.pair(6), again.pair(6), strict=True))
    other = GeneratedPairs(SHAPE, 12, pairs.template)
    assert not torch.equal(other.pair(6)[0], pairs.pair(6)[0])
    assert not torch.equal(pairs.pair(4)[0], pairs.pair(6)[0])


def test_an_odd_index_is_the_pair_before_it_the_other_way_round(pairs):
    moving, fixed = pairs.pair(4)
    assert torch.equal(pairs.pair(5)[0], fixed) and torch.equal(pairs.pair(5)[1], moving)


def test_deformations_hardly_fold_and_are_large_enough_to_learn_from():
    flows = [deformation(np.random.default_rng(seed), SHAPE).numpy() for seed in range(6)]
    assert np.mean([folded_share(flow) for flow in flows]) < 0.005
    assert 1 < np.mean([np.linalg.norm(flow, axis=0).mean() for flow in flows]) < 12


def test_a_template_knows_the_depth_of_its_voxels(template):
    i, j, k = (size // 2 for size in template.image.shape)
    assert template.depth[i, j, k].item() == pytest.approx(52, abs=1.5)
    assert (template.depth == 0).equal(template.image == 0)


def test_smooth_noise_has_unit_deviation_and_its_spacing_is_its_scale():
    rough, smooth = (smooth_noise(np.random.default_rng(0), (96, 96, 96), spacing) for spacing in (4, 16))
    assert rough.std().item() == pytest.approx(1, abs=0.1)
    assert smooth.std().item() == pytest.approx(1, abs=0.35)
    slopes = [field.diff(dim=0).square().mean().sqrt() / field.std() for field in (rough, smooth)]
    assert slopes[0] / slopes[1] == pytest.approx(4, rel=0.3)


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
