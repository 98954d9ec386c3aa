"""Dice and surface distances: known shifts of known shapes, and random label maps compared with SimpleITK."""

import tracemalloc

import numpy as np
import pytest
import SimpleITK as sitk

from runtime.errors import InputError
from runtime.geometry.grid import Grid
from runtime.images.overlap import mean_dice
from runtime.workflows.evaluation.scoring.label_scores import FixedLabels
from runtime.workflows.evaluation.scoring.surfaces import boundary, surfaces


def grid(shape, spacing=(1.0, 1.0, 1.0), shear=0.0) -> Grid:
    affine = np.diag((*spacing, 1.0))
    affine[0, 1] = shear
    return Grid(shape, affine)


def box(shape, start, size, label=3) -> np.ndarray:
    labels = np.zeros(shape, np.int16)
    labels[tuple(slice(first, first + length) for first, length in zip(start, size, strict=True))] = label
    return labels


def scores(fixed, warped, place, labels=(3,)):
    return FixedLabels(fixed, place, labels).compare(warped)


def random_labels(seed: int, shape=(28, 24, 20), labels=5) -> np.ndarray:
    """Blobs of every label, none at the border, some in several pieces."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((labels + 1, *shape))
    smooth = [sitk.GetArrayFromImage(sitk.SmoothingRecursiveGaussian(sitk.GetImageFromArray(n), 2.0)) for n in noise]
    found = np.argmax(smooth, axis=0).astype(np.int16)
    found[[0, -1]] = found[:, [0, -1]] = found[:, :, [0, -1]] = 0
    return found


class TestShiftedBoxes:
    """A box of 6 voxels moved by n along an axis: Dice, and the distances of its faces, are known."""

    @pytest.mark.parametrize("axis", range(3))
    @pytest.mark.parametrize("n", [0, 1, 3])
    def test_dice(self, axis, n):
        start = np.array((5, 5, 5))
        moved = box((20, 20, 20), start + n * np.eye(3, dtype=int)[axis], (6, 6, 6))
        assert scores(box((20, 20, 20), start, (6, 6, 6)), moved, grid((20, 20, 20))).dice == pytest.approx((6 - n) / 6)

    @pytest.mark.parametrize("axis, spacing", [(0, 0.5), (1, 2.0), (2, 3.0)])
    def test_distance_is_in_mm_along_each_axis(self, axis, spacing):
        """Plates one voxel thick: every point of one is n spacings from the other."""
        size = [9, 9, 9]
        size[axis] = 1
        place = grid((20, 20, 20), (0.5, 2.0, 3.0))
        moved = box(place.shape, np.array((5, 5, 5)) + 4 * np.eye(3, dtype=int)[axis], size)
        found = scores(box(place.shape, (5, 5, 5), size), moved, place)
        assert (found.dice, found.hd95_mm, found.asd_mm) == (0, pytest.approx(4 * spacing), pytest.approx(4 * spacing))

    def test_distance_on_a_sheared_grid_is_euclidean(self):
        """Lines along I, two steps of J apart, whose step leans by 1 mm along I: the nearest point lies across."""
        place = grid((40, 12, 5), (1.0, 2.0, 1.0), shear=1.0)
        line = box(place.shape, (5, 4, 2), (30, 1, 1))
        found = scores(line, np.roll(line, 2, axis=1), place)
        assert found.each[0].asd_mm == pytest.approx(4.0, rel=0.01)

    def test_equal_maps_are_perfect(self):
        labels = random_labels(0)
        found = scores(labels, labels.copy(), grid(labels.shape), range(1, 6))
        assert (found.dice, found.hd95_mm, found.asd_mm, found.lost) == (1, 0, 0, 0)


class TestIds:
    """Label ids influence neither scores nor cost."""

    @pytest.mark.parametrize("factor", [1, 13_007, 12_000_000])
    @pytest.mark.parametrize("seed", range(3))
    def test_dice_is_that_of_counting_voxel_by_voxel(self, seed, factor):
        """Random maps, ids that one map or both lack, others that were not asked for, in any order."""
        rng = np.random.default_rng(seed)
        fixed, warped = (factor * rng.integers(0, 9, (9, 8, 7)).astype(np.int32) for _ in range(2))
        fixed[fixed == 2 * factor], warped[warped == 3 * factor] = 0, 0
        ids = [factor * int(label) for label in rng.permutation([1, 2, 3, 5, 6, 8, 10])]
        expected = [
            2 * np.sum((fixed == label) & (warped == label)) / max(np.sum(fixed == label) + np.sum(warped == label), 1)
            for label in ids
        ]
        assert [score.dice for score in scores(fixed, warped, grid(fixed.shape), ids).each] == expected

    def test_scores_are_those_of_small_numbers(self):
        fixed, warped = random_labels(1).astype(np.int32), random_labels(101).astype(np.int32)
        small = scores(fixed, warped, grid(fixed.shape), range(1, 6)).each
        large = scores(fixed * 400_000_000, warped * 400_000_000, grid(fixed.shape), (400_000_000, 800_000_000)).each
        assert [(s.dice, s.hd95_mm, s.asd_mm) for s in small[:2]] == [(s.dice, s.hd95_mm, s.asd_mm) for s in large]

    def test_memory_goes_by_voxels(self):
        label = 60_000_000
        fixed = box((20, 20, 20), (5, 5, 5), (6, 6, 6), 1).astype(np.int32) * label
        tracemalloc.start()
        found = scores(fixed, np.roll(fixed, 1, axis=0), grid(fixed.shape), (label,))
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert found.dice == pytest.approx(5 / 6) and used < 10e6


class TestLostLabels:
    def test_dice_counts_as_0_and_distances_are_left_out(self):
        fixed = box((16, 16, 16), (3, 3, 3), (4, 4, 4)) + box((16, 16, 16), (9, 9, 9), (4, 4, 4), 7)
        found = scores(fixed, np.where(fixed == 7, 0, fixed), grid(fixed.shape), (3, 7))
        assert (found.dice, found.hd95_mm, found.lost) == (0.5, 0, 1)
        assert (found.each[1].dice, found.each[1].hd95_mm, found.each[1].asd_mm) == (0, None, None)

    def test_with_nothing_left_the_mean_distance_is_none_at_all(self):
        fixed = box((16, 16, 16), (3, 3, 3), (4, 4, 4))
        found = scores(fixed, np.zeros_like(fixed), grid(fixed.shape))
        assert found.dice == 0 and np.isnan(found.hd95_mm) and found.lost == 1

    def test_which_labels_are_scored(self):
        from runtime.images.volume import Volume
        from runtime.workflows.evaluation.scoring.scores import pair_labels

        place = grid((16, 16, 16))
        one, two = box(place.shape, (1, 1, 1), (4, 4, 4)), box(place.shape, (8, 8, 8), (4, 4, 4), 7)
        small = box(place.shape, (14, 14, 14), (1, 1, 1), 9)
        fixed, moving = Volume(data=one + two + small, grid=place), Volume(data=one + small, grid=place)
        assert pair_labels(fixed, moving).chosen == (3,)
        asked = pair_labels(fixed, moving, (9, 7, 3))
        assert (asked.chosen, asked.absent) == ((9, 3), (7,))
        with pytest.raises(InputError, match=r"^--fixed-labels, --moving-labels: .* share no label of 7, 8; "):
            pair_labels(fixed, moving, (7, 8))


@pytest.mark.parametrize("seed, spacing", [(1, (1.0, 1.0, 1.0)), (2, (0.8, 1.3, 2.5)), (3, (3.0, 0.7, 0.7))])
class TestAgainstSimpleITK:
    """Two random label maps on an anisotropic grid; ITK sees the same voxels with the same spacing."""

    LABELS = range(1, 6)

    def maps(self, seed, spacing):
        fixed, warped = random_labels(seed), random_labels(seed + 100)
        images = [sitk.GetImageFromArray(labels.transpose()) for labels in (fixed, warped)]
        for image in images:
            image.SetSpacing(spacing)
        return scores(fixed, warped, grid(fixed.shape, spacing), self.LABELS), images, (fixed, warped)

    def test_dice(self, seed, spacing):
        found, images, maps = self.maps(seed, spacing)
        measure = sitk.LabelOverlapMeasuresImageFilter()
        measure.Execute(*images)
        for score in found.each:
            assert score.dice == pytest.approx(measure.GetDiceCoefficient(score.label), abs=1e-12)
        assert found.dice == pytest.approx(mean_dice(*maps, self.LABELS), abs=1e-12)

    def test_surface_distances(self, seed, spacing):
        """Contours of each label, and distances read off Maurer's distance map of the other contour."""
        found, images, _ = self.maps(seed, spacing)
        for score in found.each:
            contours = [sitk.LabelContour(image == score.label) for image in images]
            there, back = directed(*contours), directed(*reversed(contours))
            expected = max(np.percentile(there, 95), np.percentile(back, 95))
            assert score.hd95_mm == pytest.approx(expected, abs=1e-4)
            assert score.asd_mm == pytest.approx(np.concatenate((there, back)).mean(), abs=1e-4)

    def test_the_largest_distance_is_itks_hausdorff_distance(self, seed, spacing):
        _, images, maps = self.maps(seed, spacing)
        place = grid(maps[0].shape, spacing)
        ours = [surfaces(labels, place, self.LABELS) for labels in maps]
        for label in self.LABELS:
            measure = sitk.HausdorffDistanceImageFilter()
            measure.Execute(*(sitk.LabelContour(image == label) for image in images))
            one, two = (found[label] for found in ours)
            largest = max(one.to(two).max(), two.to(one).max())
            assert largest == pytest.approx(measure.GetHausdorffDistance(), abs=1e-4)

    def test_boundaries_are_itks_contours(self, seed, spacing):
        _, images, maps = self.maps(seed, spacing)
        for labels, image in zip(maps, images, strict=True):
            union = sum(sitk.GetArrayFromImage(sitk.LabelContour(image == label)) for label in self.LABELS)
            np.testing.assert_array_equal(boundary(labels), union.transpose() > 0)


def directed(one, two) -> np.ndarray:
    """Return the distances of one contour's voxels from the other's."""
    away = sitk.SignedMaurerDistanceMap(two, squaredDistance=False, useImageSpacing=True)
    return np.abs(sitk.GetArrayFromImage(away))[sitk.GetArrayFromImage(one) > 0]
