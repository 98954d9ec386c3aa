"""The ground truth of the demonstration: the known warp is correct and has the direction of a registration's transform.

SimpleITK reads the written files here, so that headers, directions and signs are checked by an independent library.
"""

import importlib.metadata

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from scipy.stats import spearmanr

from runtime.errors import InputError
from runtime.geometry.grid import Grid
from runtime.workflows.demo import known_warp
from runtime.workflows.demo import run as demo

RAS_TO_LPS = np.array([-1, -1, 1])


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return demo.make_pair(tmp_path_factory.mktemp("demo"), seed=1)


def values(path, points, interpolator=sitk.sitkLinear):
    """Sample an image at points (N, 3), RAS mm; zero outside it."""
    image = sitk.ReadImage(str(path), sitk.sitkFloat32)
    found = np.zeros(len(points))
    last = np.array(image.GetSize()) - 1
    for n, point in enumerate((points * RAS_TO_LPS).tolist()):
        index = np.array(image.TransformPhysicalPointToContinuousIndex(point))
        if np.all((index >= 0) & (index <= last)):
            found[n] = image.EvaluateAtPhysicalPoint(point, interpolator)
    return found


class TestPair:
    def test_the_truth_takes_fixed_points_to_the_same_tissue_in_the_moving_scan(self, pair):
        points, moved = pair.points[::10], pair.moving_points[::10]
        fixed = values(pair.fixed, points)

        def correlation(positions):
            return spearmanr(fixed, values(pair.moving, positions)).statistic

        wrong_way = 2 * points - moved
        assert correlation(moved) > 0.9
        assert max(correlation(points), correlation(wrong_way)) < 0.5

    def test_labels_follow(self, pair):
        points, moved = pair.points[::10], pair.moving_points[::10]
        fixed = values(pair.fixed_labels, points, sitk.sitkNearestNeighbor)
        moving = values(pair.moving_labels, moved, sitk.sitkNearestNeighbor)
        assert np.mean(fixed == moving) > 0.85

    def test_all_structures_are_there_and_lie_on_their_side(self, pair):
        labels = nib.load(pair.fixed_labels)
        data = np.asanyarray(labels.dataobj)
        assert set(np.unique(data)) == {0, *demo.LABELS}
        for label, name in demo.LABELS.items():
            x = nib.affines.apply_affine(labels.affine, np.argwhere(data == label))[:, 0]
            assert {"left": x.max() <= 0, "right": x.min() > 0}.get(name.rpartition(", ")[2], abs(x.mean()) < 1)

    def test_the_moving_header_is_oblique_and_stored_another_way(self, pair):
        fixed, moving = nib.load(pair.fixed), nib.load(pair.moving)
        assert nib.aff2axcodes(fixed.affine) == tuple("RAS") and nib.aff2axcodes(moving.affine) == tuple("LPS")
        assert nib.affines.obliquity(moving.affine).max() > np.radians(10)
        np.testing.assert_allclose(moving.header.get_zooms(), demo.MOVING_SPACING, rtol=1e-5)
        np.testing.assert_allclose(moving.get_sform(), moving.get_qform(), atol=1e-3)

    def test_the_whole_brain_is_in_the_moving_scan(self, pair):
        data = np.asanyarray(nib.load(pair.moving_labels).dataobj)
        faces = [np.take(data, end, axis) for axis in range(3) for end in (0, -1)]
        assert not any(face.any() for face in faces)

    def test_the_truth_is_kept_beside_the_scans(self, pair):
        truth = np.load(pair.fixed.with_name("truth.npz"))
        np.testing.assert_array_equal(truth["points"], pair.points)
        np.testing.assert_array_equal(truth["moving_points"], pair.moving_points)
        names = {path.name for path in pair.fixed.parent.iterdir()}
        scans = {"fixed.nii.gz", "moving.nii.gz", "fixed_labels.nii.gz", "moving_labels.nii.gz"}
        assert names == scans | {"truth.npz"}

    def test_without_nilearn_it_says_what_to_do(self, tmp_path, monkeypatch):
        def missing(name):
            raise importlib.metadata.PackageNotFoundError(name)

        monkeypatch.setattr(importlib.metadata, "distribution", missing)
        with pytest.raises(InputError, match=r"nilearn.*pip install -r requirements.txt"):
            demo.make_pair(tmp_path / "demo")
        assert not (tmp_path / "demo").exists()


class TestError:
    def test_of_the_truth_is_zero(self, pair):
        assert demo.error_mm(lambda points: pair.moving_points, pair) == (0, 0)

    def test_of_a_shift_is_its_length(self, pair):
        error = demo.error_mm(lambda points: pair.moving_points + np.array((2, -3, 6)), pair)
        np.testing.assert_allclose(error, (7, 7))

    def test_of_the_headers_alone_is_large(self, pair):
        mean, percentile = demo.error_mm(lambda points: points, pair)
        assert 5 < mean < percentile < 60

    def test_overlap(self):
        labels = np.repeat(list(demo.LABELS), 4).reshape(-1, 4, 1)
        assert demo.mean_dice(labels, labels) == 1
        assert demo.mean_dice(labels, np.zeros_like(labels)) == 0
        half = labels * (np.arange(4) < 2).reshape(1, 4, 1)
        assert demo.mean_dice(labels, half) == pytest.approx(2 * 2 / (4 + 2))


class TestKnownWarp:
    GRID = Grid((30, 36, 24), np.array([[-2.0, 0, 0, 30], [0, -2, 0.4, 35], [0, 0.4, 2, -20], [0, 0, 0, 1]]))

    def linear(self, matrix):
        """The warp whose field is ``v(z) = matrix z``, so that everything about it has a closed form."""
        affine = np.eye(4)
        affine[:3, :3], affine[:3, 3] = known_warp.rotation((5, -7, 3)) * 1.02, (4, -3, 2)
        places = self.GRID.to_physical(np.moveaxis(np.indices(self.GRID.shape), 0, -1))
        return known_warp.KnownWarp(affine, np.moveaxis(places @ matrix.T, -1, 0), self.GRID)

    def test_inverse_of_a_linear_warp(self):
        matrix = np.array([[0.1, -0.05, 0], [0.02, -0.08, 0.1], [0, 0.04, 0.06]])
        warp = self.linear(matrix)
        inverse = np.linalg.inv(warp.affine)
        moving = self.GRID.to_physical(np.random.default_rng(0).uniform(3, 20, (50, 3)))
        fixed = moving @ (inverse[:3, :3] + matrix).T + inverse[:3, 3]
        np.testing.assert_allclose(warp.to_fixed(moving), fixed, atol=1e-9)
        np.testing.assert_allclose(warp.to_moving(fixed), moving, atol=0.01)

    def test_jacobian_of_a_linear_warp(self):
        matrix = np.array([[0.1, -0.05, 0], [0.02, -0.08, 0.1], [0, 0.04, 0.06]])
        warp = self.linear(matrix)
        expected = np.linalg.det(np.eye(3) + warp.affine[:3, :3] @ matrix)
        assert warp.smallest_jacobian() == pytest.approx(expected, rel=1e-6)

    def test_voxels_and_points_agree(self):
        rng = np.random.default_rng(0)
        warp = known_warp.random_warp(rng, known_warp.random_pose(rng, np.zeros(3)), self.GRID)
        voxels = np.array([[0, 0, 0], [29, 35, 23], [4, 17, 9]])
        there = warp.voxels_to_fixed()[tuple(voxels.T)]
        np.testing.assert_allclose(warp.to_fixed(self.GRID.to_physical(voxels)), there, atol=1e-5)

    def test_same_seed_same_warp_within_its_bounds(self):
        first, again, other = (
            known_warp.random_warp(np.random.default_rng(seed), np.eye(4), self.GRID).field for seed in (3, 3, 4)
        )
        np.testing.assert_array_equal(first, again)
        assert np.abs(first - other).max() > 1
        assert np.linalg.norm(first, axis=0).max() == pytest.approx(known_warp.MAX_WARP_MM, rel=1e-5)

    def test_a_folding_warp_is_refused(self, monkeypatch):
        monkeypatch.setattr(known_warp, "MAX_WARP_MM", 60)
        with pytest.raises(ArithmeticError, match="Jacobian"):
            known_warp.random_warp(np.random.default_rng(0), np.eye(4), self.GRID)

    def test_an_inverse_that_is_not_found_is_refused(self):
        """The iteration converges only for fields that change by less than 1 mm per mm."""
        with pytest.raises(ArithmeticError, match="residual"):
            self.linear(1.5 * np.eye(3)).to_moving(self.GRID.to_physical(np.array([[3.0, 4, 5]])))

    def test_smooth_fields_are_smooth_and_of_unit_spread(self):
        field = known_warp.smooth_field(np.random.default_rng(0), Grid((60, 60, 60), np.eye(4)), 20)
        assert field.std() == pytest.approx(1, abs=1e-4)
        assert np.abs(np.diff(field, axis=0)).max() < 0.3

    def test_rotation_about_s_takes_r_to_a(self):
        np.testing.assert_allclose(known_warp.rotation((0, 0, 90)) @ (1, 0, 0), (0, 1, 0), atol=1e-12)
