"""Transform files: their content, recognition of formats, rejected files, and detection of wrong ones.

The meaning of the numbers is checked with other tools in `tests.transforms.test_round_trips`.
"""

import gzip
from dataclasses import replace

import h5py
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from runtime.errors import InputError
from runtime.geometry.grid import Grid
from runtime.geometry.transform import AffineTransform, Chain, SpatialTransform, from_displacement
from runtime.transforms import (
    CONVENTIONS,
    Space,
    file_name,
    read_transform,
    verify_transform,
    write_transform,
    write_verified,
)
from runtime.transforms.conventions import nifti_field
from runtime.transforms.conventions.frames import Frame
from runtime.transforms.conventions.fsl import scaled_voxels
from runtime.transforms.conventions.nifti_field import LAYOUTS
from tests.transforms.round_trip_cases import AFFINES, FIXED, MOVING, registration, voxels_of

START = Space(FIXED["oblique"], "a" * 64, "fixed.nii.gz")
END = Space(MOVING["oblique"], "b" * 64, "moving.nii.gz")
LPS = np.array([-1.0, -1.0, 1.0])
POINTS = START.grid.to_physical(voxels_of(START.grid))[::97]


@pytest.fixture
def written(tmp_path):
    """convention -> a file with the transform of a registration."""

    def write(convention: str, **options):
        path = tmp_path / file_name(convention, False, "fixed", "moving")
        write_transform(path, registration(), convention, START, END, **options)
        return path

    return write


def without_metadata(path, **header):
    """The file as another tool would have left it."""
    image = nib.load(path)
    image.header.extensions.clear()
    for key, value in header.items():
        image.header[key] = value
    nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj), image.affine, image.header), path)
    return path


class TestWhatStandsInTheFile:
    @pytest.mark.parametrize(("convention", "shape"), [("itk", (1, 3)), ("freesurfer", (1, 3)), ("fsl", (3,))])
    def test_shape_type_and_intent(self, written, convention, shape):
        image = nib.load(written(convention, codes=(2, 1)))
        assert image.shape == (*START.grid.shape, *shape) and image.get_data_dtype() == np.float32
        assert image.header["intent_code"] == {"itk": 1007, "freesurfer": 1006, "fsl": 2006}[convention]
        assert (image.header["sform_code"], image.header["qform_code"]) == (2, 1)
        assert image.affine == pytest.approx(START.grid.affine, abs=1e-4)

    def test_itks_numbers_are_lps_and_otherwise_untouched(self, tmp_path):
        displacement = np.random.default_rng(0).normal(size=(*START.grid.shape, 3)).astype(np.float32)
        path = tmp_path / "warp.nii"
        transform = from_displacement(displacement, START.grid)
        write_transform(path, transform, "itk", START, END, displacement=displacement)
        assert np.array_equal(nib.load(path).get_fdata()[:, :, :, 0], displacement * [-1, -1, 1])

    def test_the_metadata_is_a_comment_of_the_header(self, written):
        image = nib.load(written("learn2reg"))
        assert image.header["vox_offset"] % 16 == 0
        (extension,) = image.header.extensions
        assert extension.get_code() == 6
        assert "a" * 64 in extension.text and '"name":"moving.nii.gz"' in extension.text

    def test_the_same_transform_gives_the_same_bytes(self, written):
        assert written("fsl").read_bytes() == written("fsl").read_bytes()

    def test_names(self):
        names = [file_name(convention, False, "f", "m") for convention in CONVENTIONS]
        assert names == [
            "warp.nii.gz",
            "warp_freesurfer.nii.gz",
            "warp_fsl.nii.gz",
            "disp_f_m.nii.gz",
            "transform.h5",
        ]
        assert file_name("itk", True, "f", "m") == "inverse_warp.nii.gz"
        assert file_name("learn2reg", True, "f", "m") == "disp_m_f.nii.gz"


class TestReading:
    @pytest.mark.parametrize("convention", CONVENTIONS)
    def test_our_own_files_say_everything(self, written, convention):
        found = read_transform(written(convention))
        assert found.convention == convention
        assert (found.start.sha256, found.start.name) == ("a" * 64, "fixed.nii.gz")
        assert (found.end.sha256, found.end.name) == ("b" * 64, "moving.nii.gz")
        assert found.start.grid.close(START.grid) and found.end.grid.close(END.grid)
        assert found.transform.points(POINTS) == pytest.approx(registration().points(POINTS), abs=1e-4)

    @pytest.mark.parametrize("convention", ["itk", "freesurfer"])
    def test_the_intent_tells_a_foreign_file(self, written, convention):
        found = read_transform(without_metadata(written(convention)))
        assert found.convention == convention and found.end is None and found.start.sha256 is None

    def test_a_foreign_warp_of_fsl_needs_the_moving_grid(self, written):
        path = without_metadata(written("fsl"))
        with pytest.raises(InputError, match=r"-t: .*warp_fsl.nii.gz: is an FSL warp, which needs the moving image"):
            read_transform(path)
        found = read_transform(path, end=END.grid).transform.points(POINTS)
        assert found == pytest.approx(registration().points(POINTS), abs=1e-4)

    def test_three_numbers_on_the_fourth_axis_may_be_anybodys(self, written):
        path = without_metadata(written("learn2reg"))
        with pytest.raises(InputError, match=r"does not state its convention; name it: fsl or learn2reg"):
            read_transform(path)
        found = read_transform(path, convention="learn2reg").transform.points(POINTS)
        assert found == pytest.approx(registration().points(POINTS), abs=1e-4)

    def test_the_wrong_convention_is_refused_where_the_file_tells(self, written):
        with pytest.raises(InputError, match=r"which is itk's, not freesurfer's"):
            read_transform(written("itk"), convention="freesurfer")
        with pytest.raises(InputError, match=r"not fsl's"):
            read_transform(without_metadata(written("freesurfer")), convention="fsl")
        with pytest.raises(InputError, match=r"is an ITK composite, expected the convention h5 or itk, got fsl"):
            read_transform(written("h5"), convention="fsl")
        with pytest.raises(InputError, match=r"convention: got 'elastix', expected one of auto, itk"):
            read_transform(written("h5"), convention="elastix")

    def test_an_unmarked_field_is_believed_if_its_convention_is_named(self, written):
        path = without_metadata(written("itk"), intent_code=0)
        with pytest.raises(InputError, match=r"name it: itk or freesurfer"):
            read_transform(path)
        found = read_transform(path, convention="itk").transform.points(POINTS)
        assert found == pytest.approx(registration().points(POINTS), abs=1e-4)

    @pytest.mark.parametrize("dtype", [np.float64, ">f4"])
    def test_other_types_of_numbers(self, written, dtype):
        path = written("freesurfer")
        image = nib.load(path)
        order = ">" if dtype == ">f4" else "<"
        header = image.header.as_byteswapped(order)
        header.set_data_dtype(dtype)
        nib.save(nib.Nifti1Image(image.get_fdata(), image.affine, header), path)
        found = read_transform(path).transform.points(POINTS)
        assert found == pytest.approx(registration().points(POINTS), abs=1e-4)

    def test_metadata_of_another_grid_says_nothing(self, written):
        """A tool that resamples a field and keeps its header's extension."""
        path = written("itk")
        image = nib.load(path)
        image.affine[:3, 3] += 5
        nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj), image.affine, image.header), path)
        found = read_transform(path)
        assert found.end is None and found.start.sha256 is None

    @pytest.mark.parametrize("convention", CONVENTIONS)
    def test_damaged_files_are_refused_in_one_line(self, written, convention):
        path = written(convention)
        path.write_bytes(path.read_bytes()[:-2000])
        with pytest.raises(InputError, match=r"-t: .* cannot be read") as refusal:
            read_transform(path)
        assert "\n" not in str(refusal.value)

    def test_other_files_are_no_transforms(self, tmp_path, written):
        nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.float32), np.eye(4)), tmp_path / "a.nii.gz")
        with pytest.raises(InputError, match=r"-t: .* has shape \(4, 4, 4\) and intent 0, expected a displacement"):
            read_transform(tmp_path / "a.nii.gz")
        with pytest.raises(InputError, match=r"--moving: .* does not exist"):
            read_transform(tmp_path / "none.nii.gz", "--moving")
        with pytest.raises(InputError, match=r"intent 2009, coefficients of fnirt .*: fnirtfileutils --in=warp_fsl"):
            read_transform(without_metadata(written("fsl"), intent_code=2009))

    def test_a_header_in_metres_is_meant_in_metres(self, written):
        """As for images, and in ITK; the numbers are mm in either."""
        path = without_metadata(written("itk"))
        image = nib.load(path)
        affine = np.diag([1e-3, 1e-3, 1e-3, 1.0]) @ image.affine
        metres = nib.Nifti1Image(np.asanyarray(image.dataobj), affine)
        metres.header.set_intent(1007)
        metres.header.set_xyzt_units("meter")
        nib.save(metres, path)
        assert read_transform(path).start.grid.close(START.grid)

    @pytest.mark.parametrize("fault", [np.nan, np.inf])
    def test_a_composite_with_numbers_that_are_none(self, written, fault):
        path = written("h5")
        with h5py.File(path, "a") as file:
            file["TransformGroup/2/TransformParameters"][50] = fault
        with pytest.raises(InputError, match=rf"^-t: {path}: holds numbers that are NaN or infinite"):
            read_transform(path)

    @pytest.mark.parametrize("convention", ["itk", "h5"])
    def test_a_field_of_one_slice(self, written, convention):
        grid = Grid((5, 6, 1), np.eye(4))
        path = written(convention)
        known = np.zeros((*grid.shape, 3), np.float32)
        write_transform(path, AffineTransform(np.eye(4)), convention, Space(grid), None, displacement=known)
        with pytest.raises(InputError, match=rf"^-t: {path}: has shape \(5, 6, 1\), expected 2 or more voxels along"):
            read_transform(path)

    def test_a_grid_that_is_none(self, written):
        path = written("h5")
        with h5py.File(path, "a") as file:
            file["TransformGroup/2/TransformFixedParameters"][6] = 0
        with pytest.raises(InputError, match=rf"^-t: {path}: voxel-to-world affine: is singular"):
            read_transform(path)

    def test_numbers_that_are_none(self, written, tmp_path):
        path = written("itk")
        image = nib.load(path)
        values = image.get_fdata()
        values[3, 4, 5] = np.nan
        nib.save(nib.Nifti1Image(values, image.affine, image.header), path)
        with pytest.raises(InputError, match=r"NaN or infinite"):
            read_transform(path)

    @pytest.mark.parametrize("place", FIXED)
    def test_absolute_warps_of_fsl(self, tmp_path, place):
        """Coordinates instead of displacements are noticed in other tools' files."""
        start, end, path = Space(FIXED[place]), Space(MOVING[place]), tmp_path / "warp.nii.gz"
        write_transform(path, registration(), "fsl", start, end)
        image = nib.load(without_metadata(path))
        read_transform(path, end=end.grid)
        own = nib.affines.apply_affine(scaled_voxels(start.grid), voxels_of(start.grid)).reshape(image.shape)
        nib.save(nib.Nifti1Image(image.get_fdata() + own, image.affine, image.header), path)
        with pytest.raises(InputError, match=r"seems to hold coordinates, .* use FSL's convertwarp --relout"):
            read_transform(path, end=end.grid)

    def test_a_warp_of_ours_may_change_sizes_as_much_as_it_likes(self, tmp_path):
        """A map that doubles lengths moves voxels as coordinates would; our metadata says they are displacements."""
        double = np.diag([2.0, 2.0, 2.0, 1.0])
        assert write_verified(tmp_path / "warp.nii.gz", AffineTransform(double), "fsl", START, END) < 1e-3
        found = read_transform(tmp_path / "warp.nii.gz").transform
        assert found.points(POINTS) == pytest.approx(2 * POINTS, abs=1e-3)


class TestWriting:
    @pytest.mark.parametrize("convention", CONVENTIONS)
    def test_what_was_written_is_verified(self, written, convention):
        assert verify_transform(written(convention), convention, registration(), START, END) < 1e-4

    @pytest.mark.parametrize("convention", CONVENTIONS)
    def test_a_shift_of_a_hundredth_of_a_millimetre_is_noticed(self, written, convention):
        path = written(convention)
        shift = np.eye(4)
        shift[0, 3] = 0.011
        with pytest.raises(InputError, match=r"read back, it differs by 0.011 mm from the transform, expected 0.01 mm"):
            verify_transform(path, convention, Chain((registration(), AffineTransform(shift))), START, END)

    def test_what_is_not_read_back_as_it_should_be_does_not_replace_a_file(self, tmp_path, monkeypatch):
        path = tmp_path / "warp.nii.gz"
        assert write_verified(path, registration(), "itk", START, END) < 1e-4
        before, read = path.read_bytes(), nifti_field.read_field
        flipped = Frame(START.grid, np.eye(3), np.eye(4))
        monkeypatch.setattr(nifti_field, "read_field", lambda *given: replace(read(*given), frame=flipped))
        with pytest.raises(InputError, match=rf"^{path}: read back, it differs by .* mm .*; nothing was written$"):
            write_verified(path, registration(), "itk", START, END)
        assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]

    def test_a_flipped_bit_is_noticed(self, written):
        path = written("itk")
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        with pytest.raises(InputError, match="cannot be read"):
            verify_transform(path, "itk", registration(), START, END)

    def test_a_displacement_that_is_known_is_taken_and_compared_with(self, written):
        known = np.full((*START.grid.shape, 3), 2, np.float32)
        path = written("fsl", displacement=known)
        assert read_transform(path).transform.points(POINTS) == pytest.approx(POINTS + 2, abs=1e-4)
        assert verify_transform(path, "fsl", registration(), START, END, displacement=known) < 1e-4

    def test_what_cannot_be_written(self, tmp_path):
        def refused(name, transform, convention, message, end=END, **options):
            with pytest.raises(InputError, match=message):
                write_transform(tmp_path / name, transform, convention, START, end, **options)

        affine = AffineTransform(AFFINES["affine"])
        refused("a.mha", affine, "itk", r"cannot be written as itk, .* ends in .nii, .nii.gz, .txt, .tfm, .mat")
        refused("a.h5", affine, "fsl", r"cannot be written as fsl, .* ends in .nii, .nii.gz, .mat")
        refused("a.txt", registration(), "ras", r"is a file for affine transforms, got one that is not affine")
        refused("a.nii", affine, "elastix", r"convention: got 'elastix'")
        refused("a.nii", affine, "itk", r"displacement: got shape \(2, 2, 2, 3\)", displacement=np.zeros((2, 2, 2, 3)))
        refused("a.nii", affine, "fsl", r"end: is not known", end=None)
        assert list(tmp_path.iterdir()) == []

    def test_the_end_need_not_be_known(self, tmp_path):
        write_transform(tmp_path / "warp.nii.gz", registration(), "itk", START, None)
        found = read_transform(tmp_path / "warp.nii.gz")
        assert found.start.sha256 == "a" * 64 and found.end is None

    @pytest.mark.parametrize("name", ["a.nii", "a.h5"])
    def test_nothing_is_left_of_what_fails(self, tmp_path, name):
        class Failing(SpatialTransform):
            def displacement(self, target):
                raise MemoryError

        known = registration()
        failing = Failing(known.affine, known.flow, known.grid)
        with pytest.raises(MemoryError):
            write_transform(tmp_path / name, failing, "h5" if name == "a.h5" else "itk", START, END)
        assert list(tmp_path.iterdir()) == []

    def test_compressed_and_plain_files_hold_the_same(self, tmp_path):
        for name in ("a.nii", "b.nii.gz"):
            write_transform(tmp_path / name, registration(), "fsl", START, END)
        assert gzip.decompress((tmp_path / "b.nii.gz").read_bytes()) == (tmp_path / "a.nii").read_bytes()


class TestComposites:
    def test_the_affine_is_kept_apart(self, written):
        """So that ITK, which takes a field to be 0 beyond its grid, goes on with the affine there."""
        found = read_transform(written("h5")).transform
        assert found.affine == pytest.approx(registration().affine)
        assert found.grid.close(START.grid)

    def test_any_list_of_fields_and_affines(self, tmp_path, written):
        """ITK applies the last first."""
        field = sitk.DisplacementFieldTransform(sitk.ReadImage(str(written("itk")), sitk.sitkVectorFloat64))
        turn = sitk.Euler3DTransform((5, 6, 7), 0.1, -0.02, 0.03, (1, 2, 3))
        composite = sitk.CompositeTransform([turn, field, sitk.AffineTransform(3), field])
        sitk.WriteTransform(composite, str(tmp_path / "a.h5"))
        points = np.array([[11.0, -22, 33], [13, -24, 35]])
        expected = [np.array(composite.TransformPoint(point * LPS)) * LPS for point in points]
        found = read_transform(tmp_path / "a.h5")
        assert found.transform.points(points) == pytest.approx(np.array(expected), abs=1e-4)
        assert found.start.grid.close(START.grid) and found.end is None

    def test_the_older_spelling(self, written):
        path = written("h5")
        with h5py.File(path, "a") as file:
            for part in ("1", "2"):
                for name in ("Parameters", "FixedParameters"):
                    file.move(f"TransformGroup/{part}/Transform{name}", f"TransformGroup/{part}/Tranform{name}")
        assert read_transform(path).transform.points(POINTS) == pytest.approx(registration().points(POINTS), abs=1e-4)

    def test_other_files_of_this_format(self, tmp_path):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["data"] = np.zeros(3)
        with pytest.raises(InputError, match="cannot be read as a composite transform of ITK"):
            read_transform(tmp_path / "a.h5")


@pytest.mark.parametrize("convention", LAYOUTS)
def test_sheared_grids_survive(tmp_path, convention):
    affine = START.grid.affine.copy()
    affine[:3, 0] += 0.2 * affine[:3, 2]
    start = Space(Grid(START.grid.shape, affine))
    path = tmp_path / "warp.nii.gz"
    write_transform(path, registration(), convention, start, END)
    assert verify_transform(path, convention, registration(), start, END) < 1e-3
