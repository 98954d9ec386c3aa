"""Lists of real volumes: early one-line errors, one read per volume, bounded cache, reproducible pairs."""

import pickle
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch

from runtime.errors import InputError
from runtime.images.scan_list import Scan
from tests.train.training import same_pair
from train.data import volumes
from train.data.augment import Augmentation
from train.data.volumes import VolumeCache, VolumePairs, check_volumes, read_scan, validation_pairs

SHAPE = (16, 8, 24)
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
ONE_MB = 1e-6 * 16 * 8 * 24 * 3  # of one scan in the cache: two bytes for the image and one for the labels


def _write(path, array, affine=AFFINE):
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


@pytest.fixture
def scans(tmp_path):
    """Five scans with label maps; the n-th has its bright voxel and its label at (n + 3, 4, 5)."""

    def scan(number):
        rng = np.random.default_rng(number)
        image, labels = rng.integers(0, 500, SHAPE).astype(np.int16), np.zeros(SHAPE, np.int16)
        image[number + 3, 4, 5], labels[number + 3, 4, 5] = 1000, number + 1
        return Scan(_write(tmp_path / f"s{number}.nii.gz", image), _write(tmp_path / f"l{number}.nii.gz", labels))

    return tuple(scan(number) for number in range(5))


@pytest.fixture
def read(monkeypatch):
    """Names of the images that were read, in order."""
    names, really = [], volumes.read_scan
    monkeypatch.setattr(volumes, "read_scan", lambda scan, shape: names.append(scan.image.name) or really(scan, shape))
    return names


def _refused(scans, *words, shape=None):
    with pytest.raises(InputError) as caught:
        check_volumes(scans, shape, VolumeCache(0))
    assert "\n" not in str(caught.value) and all(word in str(caught.value) for word in words), caught.value


def test_a_scan_is_read_as_the_intensity_rule_and_its_files_say(scans):
    stored = read_scan(scans[2], SHAPE)
    voxels = np.asarray(nib.load(scans[2].image).dataobj, np.float32)
    expected = np.clip(voxels / np.percentile(voxels[voxels > 0], 99.9), 0, 1)
    np.testing.assert_allclose(stored.image().numpy(), expected, atol=1 / 65535)
    assert stored.image().dtype == torch.float32 and stored.image().max() == 1
    assert stored.labels().dtype == torch.int32 and stored.labels()[5, 4, 5] == 3 == stored.labels().sum()
    assert stored.bytes == 3 * np.prod(SHAPE)


def test_intensities_that_are_prepared_already_stay(scans, tmp_path):
    voxels = np.full(SHAPE, 0.25, np.float32)
    voxels[4:9] = 0.5
    image = read_scan(replace(scans[0], image=_write(tmp_path / "window.nii.gz", voxels), labels=None), SHAPE).image()
    np.testing.assert_allclose(image.numpy(), voxels, atol=1 / 65535)


def test_a_mask_that_leaves_nothing_is_refused(scans, tmp_path):
    nothing = _write(tmp_path / "nothing.nii.gz", np.zeros(SHAPE, np.uint8))
    _refused([replace(scans[0], mask=nothing), *scans[1:]], "s0.nii.gz shows nothing", "inside its mask")


def test_a_list_of_another_size_is_padded_where_that_is_asked_for(scans, tmp_path):
    odd = [Scan(_write(tmp_path / scan.image.name, np.asarray(nib.load(scan.image).dataobj)[:-3])) for scan in scans]
    assert check_volumes(odd, None, VolumeCache(64), pad=True) == SHAPE


def test_what_lies_outside_the_mask_is_nothing(scans, tmp_path):
    mask = np.zeros(SHAPE, np.uint8)
    mask[4:12] = 1
    masked = replace(scans[0], mask=_write(tmp_path / "mask.nii.gz", mask))
    image, whole = read_scan(masked, SHAPE).image(), read_scan(scans[0], SHAPE).image()
    assert not image[:4].any() and not image[12:].any()
    ratio = image[4:12] / whole[4:12]
    assert ratio.nan_to_num(1).median() == pytest.approx(1, abs=0.01)


def test_label_maps_follow_their_image_into_ras_order_and_size(scans, tmp_path):
    def as_lia(path):
        image = nib.load(path)
        turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt("LIA"))
        turned = image.as_reoriented(turn)
        return _write(tmp_path / f"lia_{path.name}", np.asarray(turned.dataobj), turned.affine)

    turned = Scan(as_lia(scans[1].image), as_lia(scans[1].labels))
    for shape in (SHAPE, (8, 16, 24)):
        one, other = read_scan(scans[1], shape), read_scan(turned, shape)
        assert torch.equal(one.image(), other.image()) and torch.equal(one.labels(), other.labels())
        assert one.image().shape == shape


def test_checking_reads_every_volume_once_and_training_none_again(scans, read):
    cache = VolumeCache(100)
    assert check_volumes(scans, None, cache) == SHAPE
    pairs = VolumePairs(scans, SHAPE, 0, cache)
    for index in range(20):
        pairs.pair(index)
    validation_pairs(scans, SHAPE, 4, cache)
    assert sorted(read) == [f"s{n}.nii.gz" for n in range(5)]


def test_the_cache_keeps_what_fits_and_its_bound_changes_no_pair(scans, read):
    pairs = {}
    for megabytes, kept in ((0, 0), (2.5 * ONE_MB, 2), (100, 5)):
        read.clear()
        cache = VolumeCache(megabytes)
        source = VolumePairs(scans, SHAPE, 0, cache)
        pairs[kept] = [source.pair(index) for index in range(12)]
        assert len(cache) == kept and cache.bytes <= megabytes * 1e6
        assert {0: 24, 5: 5}.get(kept, len(read)) == len(read)
    for kept in (0, 2):
        assert all(same_pair(one, other) for one, other in zip(pairs[kept], pairs[5], strict=True))


def test_a_tensor_of_a_pair_can_be_changed_without_changing_the_cache(scans):
    source = VolumePairs(scans, SHAPE, 0, VolumeCache(100))
    before = source.pair(0).moving.clone()
    source.pair(0).moving.zero_()
    assert torch.equal(source.pair(0).moving, before)


def test_a_worker_that_is_started_afresh_makes_the_same_pairs(scans):
    source = VolumePairs(scans, SHAPE, 3, VolumeCache(100))
    source.pair(0)
    copy = pickle.loads(pickle.dumps(source))
    assert len(copy.cache) == 0 and same_pair(copy.pair(5), source.pair(5))


def test_pairs_depend_on_seed_and_index_alone(scans):
    one, again, other = (VolumePairs(scans, SHAPE, seed, VolumeCache(100)) for seed in (0, 0, 1))
    forwards = [one.pair(index) for index in range(20)]
    assert all(same_pair(again.pair(index), forwards[index]) for index in reversed(range(20)))
    assert not all(same_pair(other.pair(index), forwards[index]) for index in range(20))


def test_pairs_are_ordered_of_two_different_scans_and_all_occur(scans):
    """A scan is known by its label."""
    source = VolumePairs(scans, SHAPE, 0, VolumeCache(100))
    drawn = {tuple(int(labels.max()) for labels in source.pair(index).tensors()[2:]) for index in range(150)}
    assert drawn == {(moving, fixed) for moving in range(1, 6) for fixed in range(1, 6) if moving != fixed}


def test_augmented_pairs_differ_from_the_volumes_and_repeat(scans):
    plain = VolumePairs(scans, SHAPE, 0, VolumeCache(100))
    changed = replace(plain, augmentation=Augmentation())
    assert same_pair(changed.pair(3), changed.pair(3)) and not same_pair(changed.pair(3), plain.pair(3))


def test_a_pair_has_both_label_maps_or_none(scans):
    mixed = (scans[0], Scan(scans[1].image), scans[2])
    for index in range(20):
        pair = VolumePairs(mixed, SHAPE, 0, VolumeCache(100)).pair(index)
        assert (pair.moving_labels is None) == (pair.fixed_labels is None)
    first, second, third = validation_pairs(mixed, SHAPE, 3, VolumeCache(0))  # 0 onto 1, 1 onto 2, 2 onto 0
    assert not first.labelled and not second.labelled and third.labelled


def test_validation_pairs_are_each_onto_the_next_then_onto_the_one_after(scans):
    pairs = validation_pairs(scans[:3], SHAPE, 5, VolumeCache(0))
    assert [(int(p.moving_labels.max()), int(p.fixed_labels.max())) for p in pairs] == [
        (1, 2), (2, 3), (3, 1), (1, 3), (2, 1),
    ]  # fmt: skip


def test_headers_are_compared_before_any_voxel_is_read(scans, tmp_path, read):
    wide = Scan(_write(tmp_path / "wide.nii.gz", np.ones((16, 8, 32), np.int16)))
    _refused((*scans, wide), "data:", "wide.nii.gz", "(16, 8, 32)", "not on the grid of", "s0.nii.gz", "resample")
    assert not read


@pytest.mark.parametrize("kind", ["labels", "mask"])
def test_label_maps_and_masks_must_lie_on_their_image(scans, tmp_path, read, kind):
    affine = AFFINE.copy()
    affine[0, 3] = 4
    moved = _write(tmp_path / "moved.nii.gz", np.ones(SHAPE, np.uint8), affine)
    _refused((scans[0], replace(scans[1], **{kind: moved})), f"{kind}:", "moved.nii.gz", "s1.nii.gz", "not on the grid")
    assert not read
    with pytest.raises(InputError, match=f"{kind}: .*moved.nii.gz .* not on the grid of .*s1.nii.gz"):
        read_scan(replace(scans[1], **{kind: moved}), SHAPE)


def _negative(folder):
    _write(folder / "l3.nii.gz", np.full(SHAPE, -1, np.int16))


def _fractions(folder):
    _write(folder / "l3.nii.gz", np.full(SHAPE, 0.5, np.float32))


def _empty(folder):
    _write(folder / "s3.nii.gz", np.zeros(SHAPE, np.int16))


def _not_finite(folder):
    _write(folder / "s3.nii.gz", np.full(SHAPE, np.nan, np.float32))


def _series(folder):
    _write(folder / "s3.nii.gz", np.ones((*SHAPE, 2), np.int16))


def _truncated(folder):
    content = (folder / "s3.nii.gz").read_bytes()
    (folder / "s3.nii.gz").write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_negative, ("labels:", "l3.nii.gz", "-1")), (_fractions, ("labels:", "l3.nii.gz", "whole number")),
        (_empty, ("image:", "s3.nii.gz")), (_not_finite, ("image:", "s3.nii.gz", "NaN")),
        (_series, ("image:", "s3.nii.gz", "2 volumes")), (_truncated, ("image:", "s3.nii.gz", "truncated")),
    ],
)  # fmt: skip
def test_files_that_cannot_be_used_are_found_before_training(scans, tmp_path, damage, words):
    damage(tmp_path)
    _refused(scans, *words)


def test_a_size_that_is_no_multiple_of_eight_says_what_to_give(scans, tmp_path):
    odd = tuple(Scan(_write(tmp_path / f"odd{n}.nii.gz", np.arange(13 * 16 * 9).reshape(13, 16, 9).astype(np.int16)))
                for n in range(2))  # fmt: skip
    _refused(odd, "shape:", "(13, 16, 9)", "16,16,16")
    assert check_volumes(odd, (16, 16, 16), VolumeCache(0)) == (16, 16, 16)


def test_one_volume_makes_no_pair(scans):
    for make in (
        lambda: VolumePairs(scans[:1], SHAPE, 0, VolumeCache(100)),
        lambda: validation_pairs(scans[:1], SHAPE, 1, VolumeCache(0)),
    ):
        with pytest.raises(InputError, match="got 1 volume"):
            make()
