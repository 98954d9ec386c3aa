"""`apply` on images, label maps and series: voxels are mapped correctly, with one interpolation."""

import gzip
from types import MappingProxyType

import nibabel as nib
import numpy as np
import pytest

from runtime.geometry.transform import AffineTransform, SpatialTransform
from runtime.images.formats.nifti_writer import write_volume
from runtime.images.volume import read_labels, read_series, read_volume
from runtime.transforms import Space, write_transform
from tests import scans
from tests.known_pair import (
    SHIFT,
    TURN,
    done,
    field,
    places,
    refused,
    run,
    shift,
    side,
    write_affine,
    write_plain_affine,
    write_series,
    write_warp,
)


def labels_of(image: np.ndarray) -> np.ndarray:
    return np.digitize(image, (150, 450, 650))


@pytest.mark.parametrize("order", ["linear", "cubic", "nearest"])
def test_an_image_lands_where_the_warp_says(shifted, tmp_path, order):
    out = tmp_path / "out.nii.gz"
    done("apply", "--image", shifted.scan, "-t", shifted.warp, "--output", out, "--interpolation", order)
    found = read_volume(out, "out")
    assert found.grid.close(shifted.grid) and found.data.dtype == np.float32
    assert found.data == pytest.approx(shifted.truth(), abs=1)


def test_a_label_map_lands_there_too_in_a_type_that_holds_it(shifted, tmp_path):
    labels, out = scans.write_labels(tmp_path / "labels.nii.gz", shifted.scan_grid), tmp_path / "out.nii.gz"
    done("apply", "--labels", labels, "-t", shifted.warp, "--output", out)
    expected = np.array((0, 10, 250, 1035))[labels_of(shifted.truth())]
    assert np.array_equal(read_labels(out, "out").data, expected)
    assert nib.load(out).get_data_dtype() == np.int16


def test_smoothed_labels_stay_labels_and_differ_at_their_borders_alone(bent, tmp_path):
    labels = scans.write_labels(tmp_path / "labels.nii.gz", bent.scan_grid)
    found = {}
    for order in ("nearest", "smooth"):
        out = tmp_path / f"{order}.nii.gz"
        done("apply", "--labels", labels, "-t", bent.warp, "--output", out, "--interpolation", order)
        found[order] = read_labels(out, "out").data
    assert set(np.unique(found["smooth"])) <= {0, 10, 250, 1035}
    assert 0 < np.mean(found["smooth"] != found["nearest"]) < 0.1


def test_every_volume_of_a_series_goes_through_the_same_map(shifted, tmp_path):
    moves = [lambda p: p, lambda p: p + [1, 0, 0], lambda p: p + [0, 2, 0]]
    series = write_series(tmp_path / "series.nii.gz", shifted.scan_grid, moves)
    out, affine = tmp_path / "out.nii.gz", tmp_path / "affine.txt"
    matrix = np.eye(4)
    matrix[:3, 3] = SHIFT
    write_affine(affine, matrix, shifted.reference, shifted.scan)
    for transform in (shifted.warp, affine):
        reference = ("--reference", shifted.reference, "--overwrite")
        done("apply", "--image", series, "-t", transform, "--output", out, *reference)
        found = read_series(out, "out")
        assert found.step == (2.5, "sec") and found.data.shape == (*shifted.grid.shape, 3)
        for volume, move in zip(np.moveaxis(found.data, -1, 0), moves, strict=True):
            assert volume == pytest.approx(scans.body(move(shift(places(shifted.grid)))), abs=2)


def test_a_series_of_scaled_integers_is_read_as_its_header_says(shifted, tmp_path):
    moves = [lambda p: p, lambda p: p + [1, 0, 0]]
    whole = write_series(tmp_path / "whole.nii.gz", shifted.scan_grid, moves)
    scaled = nib.Nifti1Image(np.rint(nib.load(whole).get_fdata()).astype(np.int16), shifted.scan_grid.affine)
    scaled.header.set_slope_inter(0.5, 10)
    nib.save(scaled, tmp_path / "scaled.nii.gz")
    found = [read_series(path, "test").data for path in (whole, tmp_path / "scaled.nii.gz")]
    assert found[1] == pytest.approx(np.rint(found[0]) / 2 + 10)


def test_deformed_oblique_and_anisotropic(bent, tmp_path):
    """Cubic is closer than linear; both are as close as interpolating a body with bumps of some voxels allows."""
    errors = {}
    for order in ("linear", "cubic"):
        out = tmp_path / f"{order}.nii.gz"
        done("apply", "--image", bent.scan, "-t", bent.warp, "--output", out, "--interpolation", order)
        errors[order] = np.abs(read_volume(out, "out").data - bent.truth()).mean()
    assert errors["cubic"] < errors["linear"] < 10 < bent.truth().std()
    assert errors["cubic"] < 2


def test_the_inverse_carries_back(bent, tmp_path):
    out = tmp_path / "out.nii.gz"
    arguments = ("--image", bent.reference, "-t", f"{bent.warp},inverse", "--output", out, "--interpolation", "cubic")
    done("apply", *arguments)
    found = read_volume(out, "out")
    assert found.grid.close(bent.scan_grid)
    inside = scans.scan(bent.scan_grid) > 100
    assert np.abs(found.data - scans.scan(bent.scan_grid))[inside].mean() < 5


def test_a_chain_with_its_own_inverse_is_the_identity(bent, tmp_path):
    out = tmp_path / "out.nii.gz"
    done("apply", "--image", bent.reference, "-t", bent.warp, "-t", f"{bent.warp},inverse", "--output", out)
    original = read_volume(bent.reference, "reference").data
    inner = (slice(4, -4),) * 3  # the way leads through places beyond the image at its border
    assert read_volume(out, "out").data[inner] == pytest.approx(original[inner], abs=2)


def test_the_order_of_a_chain_is_from_the_reference_to_the_scan(shifted, tmp_path):
    """First the shift, then a rotation about the origin; the other order gives another result."""
    turned, out = tmp_path / "turned.nii.gz", tmp_path / "out.nii.gz"
    back = np.linalg.inv(TURN)
    wide = scans.grid((60, 60, 60))
    image = scans.body(places(wide) @ back[:3, :3].T + back[:3, 3]).astype(np.float32)
    write_volume(turned, image, wide)
    turn = write_affine(tmp_path / "turn.txt", TURN, shifted.scan, turned)
    done("apply", "--image", turned, "-t", shifted.warp, "-t", turn, "--output", out, "--interpolation", "cubic")
    assert np.abs(read_volume(out, "out").data - shifted.truth()).mean() < 1


def test_affines_alone_need_no_field(shifted, tmp_path, monkeypatch):
    """However many: their product is applied while resampling."""
    half = np.eye(4)
    half[:3, 3] = SHIFT / 2
    links = [argument for n in range(2) for argument in ("-t", write_plain_affine(tmp_path / f"half{n}.txt", half))]
    monkeypatch.setattr(SpatialTransform, "displacement", None)
    out = tmp_path / "out.nii.gz"
    done("apply", "--image", shifted.scan, *links, "--reference", shifted.reference, "--output", out)
    assert read_volume(out, "out").data == pytest.approx(shifted.truth(), abs=1)


def test_without_a_transform_headers_place_the_image(bent, tmp_path):
    """Any grid will do as reference, and its codes are written."""
    place, out = scans.grid((30, 30, 30), (1.2, 1.1, 1.3), axes="PIR"), tmp_path / "out.nii.gz"
    write_volume(tmp_path / "place.nii.gz", np.zeros(place.shape, np.uint8), place, (4, 2))
    arguments = ("--reference", tmp_path / "place.nii.gz", "--output", out, "--interpolation", "cubic")
    done("apply", "--image", bent.scan, *arguments)
    found = read_volume(out, "out")
    assert found.grid.close(place) and found.codes == (4, 2)
    assert np.abs(found.data - scans.scan(place)).mean() < 2


def test_any_grid_may_be_the_reference(shifted, tmp_path):
    place, out = scans.grid((25, 25, 25), (1.5, 1.5, 1.5), rotation=scans.OBLIQUE), tmp_path / "out.nii.gz"
    reference = scans.write_scan(tmp_path / "place.nii.gz", place)
    arguments = ("--reference", reference, "--output", out, "--interpolation", "cubic")
    done("apply", "--image", shifted.scan, "-t", shifted.warp, *arguments)
    assert np.abs(read_volume(out, "out").data - shifted.truth(place)).mean() < 3


def test_beyond_the_image_is_what_outside_says(shifted, tmp_path):
    out, small = tmp_path / "out.nii.gz", tmp_path / "small.nii.gz"
    scans.write_scan(small, scans.grid((10, 10, 10)))
    done("apply", "--image", small, "-t", shifted.warp, "--output", out, "--outside", -1024)
    assert read_volume(out, "out").data[0, 0, 0] == -1024


def test_an_image_without_contrast_may_be_carried(shifted, tmp_path):
    ones, out = tmp_path / "ones.nii.gz", tmp_path / "out.nii.gz"
    write_volume(ones, np.ones(shifted.scan_grid.shape, np.uint8), shifted.scan_grid)
    done("apply", "--image", ones, "-t", shifted.warp, "--output", out)
    assert set(np.unique(np.round(read_series(out, "out").data, 3))) == {0, 1}


@pytest.mark.parametrize("convention", ["itk", "freesurfer", "fsl", "learn2reg", "h5"])
def test_every_convention_carries_an_image_to_its_place(bent, tmp_path, convention):
    suffix = "h5" if convention == "h5" else "nii.gz"
    path, out = tmp_path / f"warp.{suffix}", tmp_path / "out.nii.gz"
    write_warp(path, field(bent.grid, bent.move), bent.reference, bent.scan, convention)
    done("apply", "--image", bent.scan, "-t", path, "--output", out, "--interpolation", "cubic")
    assert np.abs(read_volume(out, "out").data - bent.truth()).mean() < 2


def test_a_file_of_fsl_without_metadata_is_read_with_the_grids_at_hand(bent, tmp_path):
    """Its end is the scan to be warped, as for applywarp."""
    path, out = tmp_path / "warp.nii.gz", tmp_path / "out.nii.gz"
    write_warp(path, field(bent.grid, bent.move), bent.reference, bent.scan, "fsl")
    bare = nib.load(path)
    bare.header.extensions.clear()
    bare.header["intent_code"] = 0
    nib.save(nib.Nifti1Image(np.asarray(bare.dataobj), bare.affine, bare.header), path)
    done("apply", "--image", bent.scan, "-t", path, "--convention", "fsl", "--output", out, "--interpolation", "cubic")
    assert np.abs(read_volume(out, "out").data - bent.truth()).mean() < 2


def test_an_earlier_result_is_kept_unless_overwrite_is_given(shifted, tmp_path):
    out = tmp_path / "out.nii.gz"
    arguments = ("--image", shifted.scan, "-t", shifted.warp, "--output", out)
    done("apply", *arguments)
    before = out.read_bytes()
    assert f"--output: {out} exists; add --overwrite" in refused("apply", *arguments, "--outside", 5)
    assert out.read_bytes() == before
    done("apply", *arguments, "--outside", 5, "--overwrite")
    assert out.read_bytes() != before


def test_the_codes_are_those_of_the_image_where_the_transform_starts(shifted, tmp_path):
    """Without a reference they are known from the field's header, which has its fixed image's."""
    warp, out = tmp_path / "warp.nii.gz", tmp_path / "out.nii.gz"
    write_transform(warp, field(shifted.grid, shift), "itk", side(shifted.reference), side(shifted.scan), (4, 2))
    done("apply", "--image", shifted.scan, "-t", warp, "--output", out)
    assert read_volume(out, "out").codes == (4, 2)


def test_an_image_that_falls_beside_the_reference_is_told(shifted, tmp_path):
    far = np.eye(4)
    far[:3, 3] = 500
    affine, out = write_plain_affine(tmp_path / "far.txt", far), tmp_path / "out.nii.gz"
    printed = done("apply", "--image", shifted.scan, "-t", affine, "--reference", shifted.reference, "--output", out)
    assert f"warning: no part of {shifted.scan} falls on this grid" in printed


def test_quiet_says_nothing(shifted, tmp_path):
    out = tmp_path / "out.nii.gz"
    result = run("apply", "--image", shifted.scan, "-t", shifted.warp, "--output", out, "--quiet")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")


def test_grids_of_the_tests_fall_on_each_other(shifted):
    """The known shift is exact because each voxel of the reference is a voxel of the scan."""
    voxels = shifted.scan_grid.to_voxels(shift(places(shifted.grid)))
    assert voxels == pytest.approx(np.rint(voxels), abs=1e-9)


def integers(path, data, grid, **fields):
    """A series or volume of stored integers with fields in its header."""
    image = nib.Nifti1Image(data, grid.affine)
    for name, value in fields.items():
        image.header[name] = value
    nib.save(image, path)
    return path


class TestWhatStays:
    """Resampling preserves types and the header's facts about the values."""

    SAID = MappingProxyType(
        {"descrip": b"TE=30", "cal_max": 900.0, "toffset": 1.5, "intent_code": 3, "intent_p1": 20.0}
    )

    def image(self, shifted, tmp_path, kind=np.uint8):
        data = np.clip(scans.scan(shifted.scan_grid) / 8, 0, 120).astype(kind)
        return integers(tmp_path / "image.nii.gz", data, shifted.scan_grid, **self.SAID)

    @pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint16, np.int32])
    def test_integers_stay_integers_where_none_is_interpolated(self, shifted, tmp_path, kind):
        image, out = self.image(shifted, tmp_path, kind), tmp_path / "out.nii.gz"
        done("apply", "--image", image, "-t", shifted.warp, "--output", out, "--interpolation", "nearest")
        assert nib.load(out).get_data_dtype() == kind
        done("apply", "--image", image, "--reference", image, "--output", out, "--overwrite")
        assert nib.load(out).get_data_dtype() == kind
        assert np.array_equal(nib.load(out).dataobj, nib.load(image).dataobj)

    @pytest.mark.parametrize("arguments", [(), ("--interpolation", "nearest", "--outside", "-7.5")])
    def test_what_integers_cannot_hold_is_float(self, bent, tmp_path, arguments):
        image, out = self.image(bent, tmp_path), tmp_path / "out.nii.gz"
        done("apply", "--image", image, "-t", bent.warp, "--output", out, *arguments)
        assert nib.load(out).get_data_dtype() == np.float32

    def test_what_the_header_says_of_the_numbers_is_kept(self, shifted, tmp_path):
        out = tmp_path / "out.nii.gz"
        done("apply", "--image", self.image(shifted, tmp_path), "-t", shifted.warp, "--output", out)
        header = nib.load(out).header
        assert {name: header[name].item() for name in self.SAID} == self.SAID
        assert header.get_best_affine() == pytest.approx(shifted.grid.affine, abs=1e-5)


class TestMotion:
    """An additional transform for each volume, in one interpolation with the others."""

    MOVES = tuple(np.eye(4) + np.outer((n / 4, -n / 5, 0, 0), (0, 0, 0, 1)) for n in range(11))

    def files(self, folder, name, convention, grid):
        folder.mkdir()
        for n, matrix in enumerate(self.MOVES):
            sides = [Space(grid)] * 2 if convention == "fsl" else [None] * 2
            write_transform(folder / name.format(n), AffineTransform(matrix), convention, *sides)
        return folder

    @pytest.mark.parametrize(
        ("name", "convention"), [("m{}.mat", "itk"), ("MAT_{:04d}.mat", "fsl"), ("m_{}.txt", "ras")]
    )
    def test_each_volume_goes_through_its_own(self, shifted, tmp_path, name, convention):
        """A volume n that moved by M_n shows at M_n x what the first shows at x; names count as numbers."""
        moves = [lambda p, m=matrix: p - m[:3, 3] for matrix in self.MOVES]
        series = write_series(tmp_path / "series.nii.gz", shifted.scan_grid, moves)
        folder, out = self.files(tmp_path / "motion", name, convention, shifted.scan_grid), tmp_path / "out.nii.gz"
        named = ("--convention", "fsl") if convention == "fsl" else ()
        done("apply", "--image", series, "-t", shifted.warp, "--motion", folder, "--output", out, *named)
        found = read_series(out, "out").data
        inside = (slice(8, -8),) * 3
        for volume in np.moveaxis(found, -1, 0):
            assert np.abs(volume - shifted.truth())[inside].max() < 60  # interpolated; a shift of a voxel is 300
        assert found[inside][..., 0] == pytest.approx(shifted.truth()[inside], abs=2)

    def test_another_number_of_files_than_of_volumes_is_refused(self, shifted, tmp_path):
        series = write_series(tmp_path / "series.nii.gz", shifted.scan_grid, [lambda p: p] * 2)
        folder = self.files(tmp_path / "motion", "m{}.mat", "itk", None)
        arguments = ("--image", series, "-t", shifted.warp, "--output", tmp_path / "out.nii.gz", "--motion", folder)
        assert "holds 11 files, expected one for each of the 2 volumes" in refused("apply", *arguments)

    def test_one_volume_has_no_motion(self, shifted, tmp_path):
        arguments = ("--image", shifted.scan, "-t", shifted.warp, "--output", tmp_path / "out.nii.gz")
        assert "--motion: is for a 4-D series" in refused("apply", *arguments, "--motion", tmp_path)


class TestProbabilities:
    """4-D maps of labels."""

    def maps(self, path, grid, scale=1.0):
        inner = np.clip(scans.scan(grid) / 900, 0, 1)
        write_volume(path, np.stack((1 - inner, inner), axis=-1).astype(np.float32) * np.float32(scale), grid)
        return path

    @pytest.mark.parametrize("scale", [1, 100])
    def test_they_are_interpolated_and_their_sums_stay(self, bent, tmp_path, scale):
        maps, out = self.maps(tmp_path / "maps.nii.gz", bent.scan_grid, scale), tmp_path / "out.nii.gz"
        done("apply", "--labels", maps, "-t", bent.warp, "--output", out)
        found = read_series(out, "out").data
        expected, inside = scale * bent.truth() / 900, bent.truth() > 300
        assert found[inside].sum(axis=-1) == pytest.approx(scale, rel=1e-5)
        assert found[inside][:, 1] == pytest.approx(expected[inside], abs=0.1 * scale)

    def test_volumes_that_are_none_are_refused(self, shifted, tmp_path):
        series = write_series(tmp_path / "series.nii.gz", shifted.scan_grid, [lambda p: p] * 2)
        printed = refused("apply", "--labels", series, "-t", shifted.warp, "--output", tmp_path / "out.nii.gz")
        assert "expected probabilities, which add up to 1 (or 100) at most" in printed


def test_doubts_of_a_transforms_header_are_warnings(shifted, tmp_path):
    content = bytearray(gzip.decompress(shifted.warp.read_bytes()))
    content[123] = 7  # a code of units that NIfTI does not define
    warp = tmp_path / "warp.nii"
    warp.write_bytes(content)
    printed = done("apply", "--image", shifted.scan, "-t", warp, "--output", tmp_path / "out.nii.gz")
    assert "warning: warp.nii: the header's unit code is 7, which NIfTI does not define" in printed
    printed = done("jacobian", "-t", warp, "--output", tmp_path / "jacobian.nii.gz")
    assert "warning: warp.nii: the header's unit code is 7" in printed


def test_integers_that_single_precision_rounds_are_a_warning(shifted, tmp_path):
    image = tmp_path / "ids.nii.gz"
    write_volume(image, (scans.scan(shifted.scan_grid) > 0) * np.int32(2**24 + 1), shifted.scan_grid)
    arguments = ("--interpolation", "nearest", "--output", tmp_path / "out.nii.gz")
    printed = done("apply", "--image", image, "-t", shifted.warp, *arguments)
    assert "holds integers beyond 16777216, which single precision rounds; give label maps as --labels" in printed


def test_nan_is_a_number_where_one_is_named(shifted, tmp_path):
    data = scans.scan(shifted.scan_grid)
    data[data == 0] = np.nan
    image, out = tmp_path / "spm.nii.gz", tmp_path / "out.nii.gz"
    write_volume(image, data, shifted.scan_grid)
    arguments = ("--image", image, "-t", shifted.warp, "--output", out)
    printed = "voxels that are NaN; set them to single-precision numbers (register, prepare, apply: --nan 0)"
    assert printed in refused("apply", *arguments)
    for no_number in ("nan", "inf", "1e300"):
        assert f"--nan: got {float(no_number):g}, expected a number" in refused("apply", *arguments, "--nan", no_number)
    done("apply", *arguments, "--nan", "0")
    assert read_volume(out, "out").data == pytest.approx(shifted.truth(), abs=1)
