"""Faulty headers from other tools or damage: those repaired with a warning and those refused, for every reader."""

import gzip
import struct
import tracemalloc
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from runtime.errors import InputError
from runtime.images.formats import image_file
from runtime.images.formats.image_file import read_header
from runtime.images.volume import read_labels, read_series, read_source, read_volume
from runtime.transforms import read_transform

SHAPE = (6, 7, 5)
DATA = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
AFFINE = np.array([[0, 0, 2.5, -10], [2, 0, 0, -25], [0, 2, 0, 20], [0, 0, 0, 1.0]])  # turned about (1, 1, 1)
TURN = 256  # where the quaternion of a NIfTI-1 header stands
ROOTS = (0.70710720, 0.70710690)  # rounded up from the root of one half: their squares add up to more than 1


def scan(path: Path, *edits: tuple, data: np.ndarray = DATA, affine: np.ndarray = AFFINE) -> Path:
    """A NIfTI-1 file with some header fields overwritten: (byte, struct format, values ...)."""
    image = nib.Nifti1Image(data, affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    content = bytearray(image.to_bytes())
    for place, form, *numbers in edits:
        struct.pack_into(f"<{form}", content, place, *numbers)
    path.write_bytes(gzip.compress(content) if path.name.endswith(".gz") else content)
    return path


def by_itk(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels (I, J, K) and the (4, 4) voxel -> RAS mm as ITK, and NIfTI's own library in it, read them."""
    image = sitk.ReadImage(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image).T, np.diag((-1.0, -1, 1, 1)) @ affine


class TestMended:
    """Where only one meaning is possible it is used, as in ITK, with a warning."""

    @pytest.mark.parametrize("said", [0.0, 348.0, 351.0, -16.0, float("nan")])
    def test_voxels_never_begin_inside_the_header(self, tmp_path, said):
        volume = read_volume(scan(tmp_path / "a.nii", (108, "f", said)), "x")
        assert np.array_equal(volume.data, DATA)
        assert "read from byte 352" in volume.warnings[0]

    @pytest.mark.parametrize("code", [5, 7, 64, 255])
    def test_a_unit_that_is_not_defined_is_mm(self, tmp_path, code):
        volume = read_volume(scan(tmp_path / "a.nii", (123, "B", code)), "x")
        assert volume.grid.affine == pytest.approx(AFFINE)
        assert f"unit code is {code}" in volume.warnings[0]

    @pytest.mark.parametrize("sform", [0, 1])
    def test_a_quaternion_too_long_by_rounding(self, tmp_path, sform):
        """Half a turn about (1, 1, 0), whose axis is stored in single precision: no warning is needed."""
        half = np.array([[0, 2, 0, 3], [2, 0, 0, 4], [0, 0, -2.5, 5], [0, 0, 0, 1.0]])
        path = scan(tmp_path / "a.nii", (TURN, "3f", *ROOTS, 0), (254, "h", sform), affine=half)
        volume = read_volume(path, "x")
        assert volume.grid.affine == pytest.approx(by_itk(path)[1], abs=1e-5)
        assert volume.grid.affine == pytest.approx(half, abs=1e-5) and volume.warnings == ()

    def test_a_damaged_qform_beside_a_sform(self, tmp_path):
        volume = read_volume(scan(tmp_path / "a.nii", (TURN, "f", 1000.0)), "x")
        assert volume.grid.affine == pytest.approx(AFFINE)
        assert "the qform is damaged; the sform is used" in volume.warnings[0]

    @pytest.mark.parametrize("size", [-2.0, float("nan"), float("inf")])
    def test_voxel_sizes_do_not_count_beside_a_sform(self, tmp_path, size):
        volume = read_volume(scan(tmp_path / "a.nii", (80, "f", size)), "x")
        assert volume.grid.affine == pytest.approx(AFFINE)
        assert "the header's voxel sizes are" in volume.warnings[0]

    def test_negative_voxel_sizes_of_a_qform_lose_their_sign(self, tmp_path):
        path = scan(tmp_path / "a.nii", (80, "f", -2.0), (254, "h", 0))
        assert read_volume(path, "x").grid.affine == pytest.approx(AFFINE, abs=1e-5)

    @pytest.mark.parametrize(("slope", "inter"), [(np.nan, 0), (np.inf, 0), (2, np.nan), (2, np.inf), (0, 7)])
    def test_a_scale_that_is_none(self, tmp_path, slope, inter):
        assert np.array_equal(read_volume(scan(tmp_path / "a.nii", (112, "2f", slope, inter)), "x").data, DATA)

    @pytest.mark.parametrize(("said", "kept"), [(-2.0, 2.0), (np.nan, 0.0), (np.inf, 0.0), (1.5, 1.5)])
    def test_the_step_of_a_series(self, tmp_path, said, kept):
        path = scan(tmp_path / "a.nii", (92, "f", said), data=np.stack([DATA, DATA], -1))
        assert read_series(path, "x").step[0] == kept

    def test_the_step_of_an_mgh_series_stands_behind_its_voxels(self, tmp_path):
        image = nib.MGHImage(np.stack([DATA, DATA], -1).astype(np.float32), AFFINE)
        image.header["tr"] = 2500
        nib.save(image, tmp_path / "a.mgz")
        assert read_series(tmp_path / "a.mgz", "x").step == (2500.0, "msec")

    def test_big_endian_and_nifti_2(self, tmp_path):
        two = nib.Nifti2Image(DATA, AFFINE)
        nib.save(two, tmp_path / "two.nii.gz")
        big = nib.Nifti1Image(DATA.astype(">i2"), AFFINE, nib.Nifti1Header(endianness=">"))
        nib.save(big, tmp_path / "big.nii")
        for name in ("two.nii.gz", "big.nii"):
            volume = read_volume(tmp_path / name, "x")
            assert np.array_equal(volume.data, DATA) and volume.grid.affine == pytest.approx(AFFINE, abs=1e-5)

    def test_compression_is_told_by_content(self, tmp_path):
        scan(tmp_path / "a.nii.gz").rename(tmp_path / "packed.nii")
        scan(tmp_path / "a.nii").rename(tmp_path / "plain.nii.gz")
        for name in ("packed.nii", "plain.nii.gz"):
            assert np.array_equal(read_volume(tmp_path / name, "x").data, DATA)


FAR = {
    "origin": ((292, "f", 1e10), "reaches 1e.10 mm from the origin"),
    "origin, infinite": ((292, "f", np.inf), "not finite"),
    "tiny": ((280, "12f", *1e-20 * AFFINE[:3].ravel()), "has voxels of"),
    "huge": ((280, "12f", *1e5 * AFFINE[:3].ravel()), "has voxels of"),
    "sizes whose product overflows": ((40, "6h", 5, *5 * (32767,)), "volumes"),
    "more voxels than the file has": ((42, "3h", 600, 700, 500), "it holds .* at most"),
    "no axes": ((40, "h", 0), "number of axes"),
    "a size below 1": ((42, "h", -3), "shape"),
    "type": ((70, "h", 77), "data code"),
    "quaternion alone": ((252, "2h3f", 1, 0, 1000.0, 0, 0), "quaternion"),
    "size alone": ((80, "f", np.nan), (252, "2h", 1, 0), "voxel size"),
}


@pytest.mark.parametrize("case", FAR)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("read", [read_volume, read_labels, read_series, read_source])
def test_what_no_scan_has_is_refused(tmp_path, read, suffix, case):
    *edits, fault = FAR[case]
    with pytest.raises(InputError, match=fault) as refusal:
        found = read(scan(tmp_path / f"a{suffix}", *edits), "--fixed")
        assert read is read_source and case.startswith("more voxels"), found
        raise InputError("--fixed: it holds as much as a header says, at most")  # headers alone cannot tell
    assert str(refusal.value).startswith("--fixed: ") and "\n" not in str(refusal.value)


def test_fields_are_held_to_the_same_headers(tmp_path):
    """A field's voxels lie where its header says, by the same rules: displacements of 2 mm along x in RAS."""
    field = np.zeros((*SHAPE, 1, 3), np.float32)
    field[..., 0] = -2  # LPS
    image = nib.Nifti1Image(field, AFFINE)
    image.header.set_intent(1007)
    content = bytearray(image.to_bytes())
    struct.pack_into("<B", content, 123, 66)
    struct.pack_into("<f", content, 108, 0)
    (tmp_path / "w.nii").write_bytes(content)
    points = np.array([[-9.0, -20, 25]])
    assert read_transform(tmp_path / "w.nii").transform.points(points) == pytest.approx(points + (2, 0, 0))
    (tmp_path / "cut.nii").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"-t: .* cannot be read, damaged, truncated"):
        read_transform(tmp_path / "cut.nii")
    struct.pack_into("<f", content, 292, 1e10)
    (tmp_path / "far.nii").write_bytes(content)
    with pytest.raises(InputError, match="from the origin"):
        read_transform(tmp_path / "far.nii")


class TestBounds:
    def test_what_follows_the_voxels_takes_no_memory(self, tmp_path):
        """A volume of 420 bytes is followed by 100 MB of zeros in 0.1 MB of file."""
        pack = zlib.compressobj(9, zlib.DEFLATED, 31)
        packed = [pack.compress(scan(tmp_path / "a.nii").read_bytes())]
        packed += [pack.compress(bytes(1 << 20)) for _ in range(100)]
        (tmp_path / "b.nii.gz").write_bytes(b"".join(packed) + pack.flush())
        tracemalloc.start()
        try:
            assert np.array_equal(read_volume(tmp_path / "b.nii.gz", "x").data, DATA)
            assert tracemalloc.get_traced_memory()[1] < 2e7
        finally:
            tracemalloc.stop()

    def test_what_follows_without_end_is_refused(self, tmp_path, monkeypatch):
        monkeypatch.setattr(image_file, "MOST_BESIDE", 1000)
        path = scan(tmp_path / "a.nii")
        path.write_bytes(path.read_bytes() + bytes(5000))
        with pytest.raises(InputError, match="follow its voxels"):
            read_volume(path, "x")

    def test_a_header_is_read_without_the_voxels(self, tmp_path):
        path = scan(tmp_path / "a.nii")
        path.write_bytes(path.read_bytes()[:360])
        assert read_header(path, "x").shape == SHAPE


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("slice", bytes(128) + b"DICM" + bytes(300), "a DICOM file.*dcm2niix"),
        ("a.mnc", b"CDF\x01" + bytes(300), "a MINC image.*mnc2nii"),
        ("a.nii.gz", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a pointer of Git LFS.*git lfs pull"),
        ("a.nii.gz", b"<!DOCTYPE html>", "a web page, which is not supported; the download failed"),
        ("a.nii.gz", b"PK\x03\x04", "a zip archive, which is not supported; unpack it: unzip a.nii.gz"),
        ("a.mif", b"mrtrix image\n", "an image of MRtrix.*mrconvert a.mif a.nii.gz"),
        ("a+orig.HEAD", b"type = string-attribute\n", "an image of AFNI.*3dAFNItoNIFTI"),
        ("a.img", bytes(500), "an Analyze or NIfTI pair"),
        ("a.hdr", struct.pack("<i", 348) + bytes(344), "the header of an Analyze or NIfTI pair"),
        ("a.npy", b"\x93NUMPY\x01", "a NumPy array"),
        ("a.nii", b"", "is empty"),
    ],
)
def test_other_formats_are_named_with_what_converts_them(tmp_path, name, content, told):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"--fixed: .*{told}") as refusal:
        read_volume(tmp_path / name, "--fixed")
    assert "\n" not in str(refusal.value)


def test_tensors_and_vectors_are_no_images(tmp_path):
    for intent, what in ((1005, "tensors"), (1007, "vectors")):
        image = nib.Nifti1Image(np.zeros((*SHAPE, 6), np.float32), AFFINE)
        image.header["intent_code"] = intent
        nib.save(image, tmp_path / "a.nii")
        with pytest.raises(InputError, match=f"--image: .* holds {what}"):
            read_series(tmp_path / "a.nii", "--image")


def test_refusals_that_quote_line_breaks_are_one_line():
    assert str(InputError("--points: has the column 'a\nb\r\nc', expected x")) == (
        "--points: has the column 'a b c', expected x"
    )
