"""Prepared scans: correct positions and intensities, one interpolation, nothing lost silently.

The body of `tests.scans` has a known value at every point, so what a prepared voxel should hold is known; SimpleITK
resamples the native files independently through the affine that the record states.
"""

import csv

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from runtime.errors import InputError
from runtime.geometry.grid import Grid
from runtime.images.formats.nifti_writer import write_volume
from runtime.images.intensity import PercentileRule, WindowRule
from runtime.images.scan_list import Scan
from runtime.images.volume import read_volume
from runtime.registration.affine.align import FixedPyramid, nearest_rigid
from runtime.workflows.preparation import Preparation, prepare_scans
from runtime.workflows.preparation.output.folder import ONE, write_unit_image
from runtime.workflows.preparation.scan.alignment import Aligner
from runtime.workflows.preparation.scan.native_scan import read_native
from runtime.workflows.preparation.scan.quality import cropped_share, label_facts, record_warnings
from runtime.workflows.preparation.scan.reference import target_grid
from tests import scans
from tests.workflows.preparation import SHAPE, TURNED, affine_map, image_of, moved, options, write_list

STEP = 1 / ONE  # of stored intensities
FLIP = np.diag((-1.0, -1.0, 1.0, 1.0))  # RAS <-> LPS
WIDE = scans.grid((60, 64, 56))


def by_simpleitk(path, result, interpolator) -> np.ndarray:
    """The native file of the second scan on the grid of the results, through the affine of its record."""
    affine = FLIP @ np.array(result.records[1]["affine"]["reference_to_scan"]) @ FLIP
    transform = sitk.AffineTransform(affine[:3, :3].ravel().tolist(), affine[:3, 3].tolist())
    target = sitk.ReadImage(str(result.folder / "reference.nii.gz"))
    image = sitk.Resample(sitk.ReadImage(str(path), sitk.sitkFloat32), target, transform, interpolator)
    return sitk.GetArrayFromImage(image).T


class TestPlace:
    def test_every_scan_lies_where_the_reference_lies(self, prepared):
        """The body has a known value at every point of the reference's space."""
        grid = Grid(SHAPE, np.array(prepared.records[0]["grid"]["affine"]))
        truth = scans.scan(grid) / 1000
        for record in prepared.records:
            image = image_of(prepared, record["name"])
            assert np.corrcoef(image.ravel(), truth.ravel())[0, 1] > 0.99
            assert record["similarity"]["after"] > 0.99 and record["cropped_share"] < 0.001
        assert prepared.records[1]["similarity"]["before"] < 0.9

    def test_the_record_has_the_affine_from_the_reference_to_the_scan(self, prepared):
        matrix = np.array(prepared.records[1]["affine"]["reference_to_scan"])
        corners = np.array([[-13, -16, -12], [13, 16, 12], [13, -16, 12]]) + scans.CENTRE
        distance = np.linalg.norm((corners @ (matrix - TURNED)[:3, :3].T) + (matrix - TURNED)[:3, 3], axis=1)
        assert distance.max() < 0.5

    def test_one_interpolation_as_simpleitk_does_it(self, native, prepared):
        expected = PercentileRule().normalise(by_simpleitk(native / "turned.nii.gz", prepared, sitk.sitkLinear))
        assert np.abs(image_of(prepared, "turned") - expected).max() < 0.02
        assert np.abs(image_of(prepared, "turned") - expected).mean() < 1e-3

    def test_labels_are_the_nearest_ones(self, native, prepared):
        record = prepared.records[1]
        expected = by_simpleitk(native / "turned_labels.nii.gz", prepared, sitk.sitkNearestNeighbor)
        labels = np.asanyarray(nib.load(prepared.folder / "labels" / "turned.nii.gz").dataobj)
        assert labels.dtype == np.int16 and set(np.unique(labels)) == {0, 10, 250, 1035}
        assert np.mean(labels == expected) > 0.9999
        assert record["labels"] == [10, 250, 1035] and record["labels_lost"] == []

    def test_the_reference_is_not_interpolated_where_its_voxels_fit(self, native, prepared):
        """The first scan, which is the reference, keeps its voxels."""
        data = read_volume(native / "first.nii.gz", "image").data[2:42, 1:49, 1:41]
        np.testing.assert_array_equal(prepared.records[0]["affine"]["reference_to_scan"], np.eye(4))
        expected = PercentileRule().normalise(PercentileRule().normalise(data))  # native, then on the grid
        assert np.abs(image_of(prepared, "first") - expected).max() <= STEP
        reference = read_volume(prepared.folder / "reference.nii.gz", "reference")
        np.testing.assert_array_equal(reference.data, image_of(prepared, "first"))

    @pytest.mark.parametrize("axes", ["LPS", "PIR", "ASL"])
    def test_the_order_of_voxels_in_the_file_does_not_matter(self, tmp_path, axes):
        for name, order in (("one", "RAS"), ("two", axes)):
            scans.write_scan(tmp_path / f"{name}.nii.gz", scans.grid((50, 50, 50), axes=order), moved(TURNED))
        scans.write_scan(tmp_path / "reference.nii", WIDE)
        write_list(tmp_path, "image", "one.nii.gz", "two.nii.gz")
        result = prepare_scans(options(tmp_path, tmp_path / "out", reference=str(tmp_path / "reference.nii")))
        np.testing.assert_allclose(image_of(result, "one"), image_of(result, "two"), atol=2e-3)


class TestTargetGrid:
    def test_it_is_centred_on_the_foreground_with_axes_closest_to_ras(self):
        place = scans.grid((50, 60, 52), (1.5, 1.0, 0.8), axes="LPS")
        foreground = np.zeros(place.shape, bool)
        foreground[4:20, 10:30, 20:40] = True
        grid = target_grid(place, foreground, SHAPE, 2.0)
        box = place.to_physical(np.array([[4, 10, 20], [19, 29, 39]]))
        centre = grid.to_physical((np.array(SHAPE) - 1) / 2)
        assert grid.shape == SHAPE and np.abs(centre - box.mean(axis=0)).max() <= 2.0
        np.testing.assert_allclose(grid.affine[:3, :3], 2 * np.eye(3))

    def test_a_shape_smaller_than_the_foreground_is_cut_about_its_middle(self):
        place = scans.grid((64, 64, 64))
        grid = target_grid(place, np.ones(place.shape, bool), (16, 24, 32), 1.0)
        np.testing.assert_allclose(place.to_voxels(grid.to_physical(np.zeros(3))), (24, 20, 16))


class TestIntensities:
    def test_files_are_small_and_hold_exactly_what_training_should_see(self, prepared):
        image = nib.load(prepared.folder / "images" / "turned.nii.gz")
        data = image_of(prepared, "turned")
        assert image.get_data_dtype() == np.int16 and image.dataobj.slope == STEP and image.dataobj.inter == 0
        assert (data.min(), data.max()) == (0, 1)
        assert np.abs(PercentileRule().normalise(data.copy()) - data).max() <= STEP
        np.testing.assert_array_equal(data, sitk.GetArrayFromImage(sitk.ReadImage(image.get_filename())).T)

    def test_storing_costs_half_a_step(self, tmp_path):
        grid = scans.grid((16, 16, 16))
        values = np.random.default_rng(0).random(grid.shape, np.float32)
        write_unit_image(tmp_path / "u.nii.gz", values, grid, 2)
        assert np.abs(read_volume(tmp_path / "u.nii.gz", "image").data - values).max() <= STEP / 2
        header = nib.load(tmp_path / "u.nii.gz").header
        assert (int(header["sform_code"]), int(header["qform_code"])) == (2, 2)

    def test_a_window_is_absolute(self, tmp_path):
        """Air, water and bone are where the window puts them, whatever else is in the scan."""
        place = scans.grid((48, 48, 48))
        hounsfield = np.full(place.shape, -1000, np.int16)
        hounsfield[8:40, 8:40, 8:40] = np.linspace(-100, 240, 32).astype(np.int16)
        write_volume(tmp_path / "ct.nii.gz", hounsfield, place)
        write_list(tmp_path, "image", "ct.nii.gz")
        result = prepare_scans(
            options(tmp_path, tmp_path / "out", window=(-200, 300), shape=(48, 48, 48), affine="none")
        )
        expected = np.clip((hounsfield + 200) / 500, 0, 1)
        assert np.abs(image_of(result, "ct") - expected).max() <= STEP

    def test_nothing_is_left_outside_the_mask_between_its_voxels(self, native_copy, tmp_path):
        place = scans.grid((56, 60, 54), axes="LPS")
        write_volume(native_copy / "mask.nii.gz", (scans.scan(place, moved(TURNED)) > 450).astype(np.uint8), place)
        write_list(native_copy, "image,mask", "first.nii.gz,", "turned.nii.gz,mask.nii.gz")
        result = prepare_scans(options(native_copy, tmp_path / "out", affine="centre"))
        mask = np.asanyarray(nib.load(result.folder / "masks" / "turned.nii.gz").dataobj)
        image = image_of(result, "turned")
        assert set(np.unique(mask)) == {0, 1} and not image[mask == 0].any() and image[mask == 1].all()
        assert np.abs(PercentileRule().normalise(image.copy()) - image).max() <= STEP

    def test_only_what_the_mask_keeps_is_seen_and_sets_the_scale(self, native_copy, tmp_path):
        """A bright thing beside the body, such as a skull, would spoil the scale and the alignment."""
        place = scans.grid((44, 50, 42))
        bare = np.rint(scans.scan(place)).astype(np.int16)
        mask = (bare > 0).astype(np.uint8)
        bright = np.where(mask, bare, 0)
        bright[:, :, :4] = 9000
        write_volume(native_copy / "bright.nii.gz", bright, place)
        write_volume(native_copy / "mask.nii.gz", mask, place)
        write_list(native_copy, "image,mask", "first.nii.gz,", "bright.nii.gz,mask.nii.gz")
        result = prepare_scans(options(native_copy, tmp_path / "out"))
        np.testing.assert_allclose(image_of(result, "bright"), image_of(result, "first"), atol=2 * STEP)
        rows = list(csv.DictReader(result.table.open()))
        assert rows == [
            {"image": "images/first.nii.gz", "mask": ""},
            {"image": "images/bright.nii.gz", "mask": "masks/bright.nii.gz"},
        ]
        kept = np.asanyarray(nib.load(result.folder / "masks" / "bright.nii.gz").dataobj)
        np.testing.assert_array_equal(kept, mask[2:42, 1:49, 1:41])


class TestKinds:
    """The degrees of freedom of each kind of alignment."""

    def matrix(self, kind: str, matrix: np.ndarray) -> np.ndarray:
        reference = scans.scan(WIDE) / 1000
        return Aligner(kind, reference, WIDE).align(scans.scan(WIDE, moved(matrix)) / 1000, WIDE).matrix

    def test_none_trusts_the_headers(self):
        np.testing.assert_array_equal(self.matrix("none", TURNED), np.eye(4))

    def test_centre_only_shifts(self):
        found = self.matrix("centre", affine_map(0, 1, (4, -3, 5)))
        np.testing.assert_array_equal(found[:3, :3], np.eye(3))
        np.testing.assert_allclose(found[:3, 3], (4, -3, 5), atol=0.1)

    def test_rigid_turns_and_keeps_sizes(self):
        true = affine_map(10, 1.0, (4, -3, 5))
        found = self.matrix("rigid", true)
        np.testing.assert_allclose(found[:3, :3].T @ found[:3, :3], np.eye(3), atol=1e-9)
        np.testing.assert_allclose(found[:3] @ [*scans.CENTRE, 1], true[:3] @ [*scans.CENTRE, 1], atol=0.2)
        np.testing.assert_allclose(found[:3, :3], true[:3, :3], atol=0.02)

    def test_rigid_does_not_follow_a_change_of_size(self):
        assert np.linalg.det(self.matrix("rigid", affine_map(5, 1.1))[:3, :3]) == pytest.approx(1)
        assert np.linalg.det(self.matrix("auto", affine_map(5, 1.1))[:3, :3]) == pytest.approx(1.1**3, rel=0.05)

    def test_the_nearest_rigid_map_of_a_scaled_rotation_is_the_rotation(self):
        centre = np.array(scans.CENTRE)
        rigid = nearest_rigid(affine_map(20, 1.3, (1, 2, 3)), centre)
        np.testing.assert_allclose(rigid, affine_map(20, 1.0, (1, 2, 3)), atol=1e-12)

    @pytest.mark.parametrize("kind", ["auto", "rigid"])
    def test_a_scan_of_something_else_is_said_to_be_one(self, kind, monkeypatch):
        def nowhere(self, image, grid):
            raise InputError("fixed and moving do not correlate from any start")

        monkeypatch.setattr(FixedPyramid, "align", nowhere)
        with pytest.raises(InputError, match="image: does not correlate with the reference; remove it from the list"):
            self.matrix(kind, TURNED)


class TestFindings:
    @pytest.mark.parametrize(("start", "share"), [(0, 0.0), (-8, 0.5), (-4, 0.25), (40, 1.0)])
    def test_cropped_share_of_a_box_pushed_out_of_the_grid(self, start, share):
        target = Grid((32, 32, 32), np.eye(4))
        foreground = np.zeros((32, 32, 32), bool)
        foreground[:16] = True
        matrix = np.eye(4)
        matrix[0, 3] = -start  # target -> scan
        assert cropped_share(foreground, target, target, matrix) == pytest.approx(share, abs=0.02)

    def test_lost_labels_are_named(self):
        native, prepared = np.array([0, 3, 5, 7]), np.array([0, 5])
        assert label_facts(native, prepared) == {"labels": [5], "labels_lost": [3, 7]}
        assert label_facts(None, None) == {}

    def test_lost_labels_and_a_doubtful_alignment_are_warnings(self):
        facts = {"similarity": {"after": None}, "cropped_share": 0.0, "labels": [5], "labels_lost": [3, 7]}
        lines = record_warnings(facts | {"affine": {"note": "odd"}})
        assert lines[0] == "the similarity with the reference is low (none)"
        assert lines[1:] == ["2 of 3 labels are not on the grid: 3, 7", "alignment: odd"]

    def test_what_is_doubtful_is_a_warning(self, native, tmp_path):
        result = prepare_scans(options(native, tmp_path / "out", shape=(8, 8, 8), affine="none"))
        first, _, shifted = result.records
        assert first["cropped_share"] > 0.5 and "of the foreground lies outside the grid" in first["warnings"][0]
        assert any("similarity with the reference is low" in line for line in shifted["warnings"])
        assert (
            "warnings    for 3 of 3 scans; most differ strongly from the reference: is it a typical scan?"
            in result.summary()
        )
        assert "; a larger --shape or --spacing crops less" in result.summary()
        assert result.summary().index("shifted: the similarity") < result.summary().index("first: ")

    def test_the_few_that_are_doubtful_may_not_belong(self, tmp_path):
        def record(name, similarity, *warnings):
            return {"name": name, "similarity": {"after": similarity}, "cropped_share": 0.0, "warnings": warnings}

        records = tuple(record(f"s{n}", 0.9) for n in range(20))
        odd = tuple(record(f"odd{n}", 0.5 - n / 100, "unlike") for n in range(7))
        lines = Preparation(tmp_path, (*records, *odd), 0, None, 1.0).summary().splitlines()
        assert "warnings    for 7 of 27 scans; they are in prepared.csv too; remove from the list" in lines[3]
        assert [line.split() for line in lines[4:9]] == [[f"odd{n}:", "unlike"] for n in (6, 5, 4, 3, 2)]
        assert "and 2 more, see records/" in lines[9]

    def test_numbers_far_below_0_without_a_window_look_like_ct(self, tmp_path):
        place = scans.grid((40, 40, 40))
        write_volume(tmp_path / "ct.nii.gz", np.rint(scans.scan(place) - 300).astype(np.int16), place)
        native = read_native(Scan(tmp_path / "ct.nii.gz"), PercentileRule())
        assert "of the voxels are below 0 and count as 0; is it CT? give --window" in native.warnings[0]
        assert not read_native(Scan(tmp_path / "ct.nii.gz"), WindowRule(-300, 500)).warnings
