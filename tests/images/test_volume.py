"""Reading and writing of volumes: supported files, one-line refusals, and no half-written files."""

import gzip
import hashlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from runtime.errors import InputError, explained
from runtime.geometry.grid import Grid
from runtime.host.files.whole_files import atomic_path, write_bytes, write_text
from runtime.images.formats.gzip_stream import AHEAD, DENSE, FAST, write_gzip
from runtime.images.formats.nifti_writer import COMPACT_ERROR, write_compact_volume, write_volume
from runtime.images.formats.rounding import rounded_to_bits, rounded_to_steps
from runtime.images.volume import read_labels, read_volume

OBLIQUE = np.array([[-1.9, 0.3, 0.1, 50], [0.3, 1.2, 0.6, -20], [0.1, -0.4, 2.3, 5], [0, 0, 0, 1.0]])
SHAPE = (6, 7, 5)


def rotated(spacing=(2.0, 1.5, 3.0)) -> np.ndarray:
    """An oblique orthogonal affine in LPS-like order."""
    left, _, right = np.linalg.svd(OBLIQUE[:3, :3])
    affine = OBLIQUE.copy()
    affine[:3, :3] = left @ right @ np.diag(spacing)
    return affine


def values(dtype=np.int16) -> np.ndarray:
    return np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(dtype)


def save(path: Path, data=None, affine=None, sform=1, qform=1, **fields) -> Path:
    """A file written by nibabel, not by our own code."""
    data = values() if data is None else data
    image = nib.Nifti1Image(data, rotated() if affine is None else affine, dtype=data.dtype)
    image.set_sform(image.affine, sform)
    image.set_qform(image.affine if qform else None, qform)
    for name, value in fields.items():
        image.header[name] = value
    nib.save(image, path)
    return path


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8", ">i2", ">f4"])
def test_every_integer_and_float_type_is_read(tmp_path, dtype):
    volume = read_volume(save(tmp_path / "a.nii.gz", (values() % 100).astype(dtype)), "--fixed")
    assert np.array_equal(volume.data, values() % 100)
    assert volume.data.dtype == np.float32 and volume.data.flags.c_contiguous
    assert volume.grid.affine == pytest.approx(rotated(), abs=1e-5)


def test_slope_and_intercept_are_applied(tmp_path):
    path = save(tmp_path / "a.nii")
    raw = bytearray(path.read_bytes())
    raw[112:120] = np.array([0.5, -10], "<f4").tobytes()  # scl_slope, scl_inter
    path.write_bytes(raw)
    assert read_volume(path, "x").data == pytest.approx(values() * 0.5 - 10)


@pytest.mark.parametrize("suffix", [".mgz", ".mgh"])
def test_mgh_is_read(tmp_path, suffix):
    nib.save(nib.MGHImage(values(np.float32), rotated()), tmp_path / f"a{suffix}")
    volume = read_volume(tmp_path / f"a{suffix}", "--fixed")
    assert np.array_equal(volume.data, values())
    assert volume.grid.affine == pytest.approx(rotated(), abs=1e-4)
    assert volume.codes == (1, 1) and volume.warnings == ()


def test_trailing_axes_of_one_are_dropped(tmp_path):
    assert read_volume(save(tmp_path / "a.nii", values()[..., None]), "x").grid.shape == SHAPE
    assert read_volume(save(tmp_path / "b.nii", values()[..., None, None]), "x").data.shape == SHAPE


def test_a_volume_remembers_its_file(tmp_path):
    path = save(tmp_path / "a.nii.gz", sform=2, qform=3)
    volume = read_volume(str(path), "x")
    assert volume.path == path and volume.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert volume.codes == (2, 3)


def truncated(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    return path


def flipped(path: Path) -> Path:
    """One bit is wrong in voxels stored uncompressed and far from the header: only the checksum reveals it."""
    raw = bytearray(gzip.compress(gzip.decompress(path.read_bytes()), compresslevel=0))
    raw[-50] ^= 1
    path.write_bytes(raw)
    return path


def no_affine(path: Path) -> Path:
    save(path)
    raw = bytearray(path.read_bytes())
    raw[280:328] = np.full(12, np.nan, "<f4").tobytes()  # srow_x, srow_y, srow_z
    path.write_bytes(raw)
    return path


def flat_affine(path: Path) -> Path:
    save(path)
    raw = bytearray(path.read_bytes())
    raw[312:328] = bytes(16)  # srow_z
    path.write_bytes(raw)
    return path


def empty(path: Path) -> Path:
    save(path)
    raw = bytearray(path.read_bytes())
    raw[42:44] = bytes(2)  # dim[1]
    path.write_bytes(raw)
    return path


def text(path: Path) -> Path:
    path.write_text("not an image\n" * 100)
    return path


RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
SOME = np.where(values() % 70 == 3, np.nan, values()).astype(np.float32)  # 3 of 210 voxels

LARGE = np.arange(80**3, dtype=np.int16).reshape(80, 80, 80)

REFUSED = {
    "missing": (lambda folder: folder / "no.nii.gz", "does not exist"),
    "folder": (lambda folder: folder, "not a file"),
    "name too long": (lambda folder: folder / f"{'x' * 300}.nii.gz", r"/x{300}\.nii\.gz"),
    "suffix": (lambda folder: text(folder / "a.png"), r"expected NIfTI, MGH, .*, whose names end in \.nii\.gz"),
    "text": (lambda folder: text(folder / "a.nii"), "cannot be read"),
    "text as gz": (lambda folder: text(folder / "a.nii.gz"), "cannot be read"),
    "text as mgz": (lambda folder: text(folder / "a.mgz"), "cannot be read"),
    "truncated": (lambda folder: truncated(save(folder / "a.nii")), "cannot be read, damaged, truncated"),
    "truncated gz": (lambda folder: truncated(save(folder / "a.nii.gz")), "cannot be read, damaged, truncated"),
    "flipped bit": (lambda folder: flipped(save(folder / "a.nii.gz", LARGE)), "CRC"),
    "4-D": (lambda folder: save(folder / "a.nii", np.stack([values()] * 3, -1)), "3 volumes.*extract one"),
    "2-D": (lambda folder: save(folder / "a.nii", values()[..., 0]), "slice"),
    "one slice": (lambda folder: save(folder / "a.nii", values()[..., :1]), "slice"),
    "no voxels": (lambda folder: empty(folder / "a.nii"), "a.nii"),
    "complex": (lambda folder: save(folder / "a.nii", values(np.complex64)), "complex.*magnitude"),
    "colour": (lambda folder: save(folder / "a.nii", np.zeros(SHAPE, RGB)), "colour"),
    "not finite": (lambda folder: save(folder / "a.nii", SOME), "3 voxels that are NaN; set"),
    "infinite": (lambda folder: save(folder / "a.nii", np.where(np.isnan(SOME), np.inf, SOME)), "3 .* NaN or infinite"),
    "affine": (lambda folder: no_affine(folder / "a.nii"), "affine: has entries that are not finite"),
    "flat": (lambda folder: flat_affine(folder / "a.nii"), "affine: is singular"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("read", [read_volume, read_labels])
def test_what_cannot_be_used_is_refused_in_one_line(tmp_path, case, read):
    make, fault = REFUSED[case]
    with pytest.raises(InputError, match=fault) as refusal:
        read(make(tmp_path), "--fixed")
    assert str(refusal.value).startswith("--fixed: ") and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(13, "Permission denied", "/a/b.nii"), "--fixed: /a/b.nii: Permission denied; check the name"),
        (OSError("first\nsecond"), "--fixed: first; check the name"),
        (OSError(), "--fixed: OSError; check the name"),
    ],
)
def test_what_the_system_says_of_a_path_becomes_one_line(error, message):
    with pytest.raises(InputError) as refusal, explained("--fixed"):
        raise error
    assert str(refusal.value).startswith(message) and "\n" not in str(refusal.value)


def test_a_constant_image_is_refused_and_a_constant_label_map_is_not(tmp_path):
    path = save(tmp_path / "a.nii", np.full(SHAPE, 4, np.int16))
    with pytest.raises(InputError, match=r"every voxel of .* is 4"):
        read_volume(path, "--fixed")
    assert np.all(read_labels(path, "--labels").data == 4)


@pytest.mark.parametrize(
    ("high", "stored", "expected"),
    [(255, "f8", "u1"), (256, "i4", "i2"), (40000, "f4", "u2"), (40000, "u4", "u2"), (70000, "i8", "i4")],
)
def test_labels_take_the_smallest_type(tmp_path, high, stored, expected):
    labels = np.where(values() % 3 == 0, high, 2)
    volume = read_labels(save(tmp_path / "a.nii.gz", labels.astype(stored)), "--labels")
    assert np.array_equal(volume.data, labels) and volume.data.dtype == np.dtype(expected)


def test_labels_may_be_negative_and_must_be_whole_and_fit(tmp_path):
    assert read_labels(save(tmp_path / "a.nii", values(np.int16) - 5), "x").data.min() == -5
    with pytest.raises(InputError, match="105 voxels that are not whole numbers"):
        read_labels(save(tmp_path / "b.nii", values(np.float32) / 2), "--labels")
    with pytest.raises(InputError, match="fit 32 bits"):
        read_labels(save(tmp_path / "c.nii", values(np.int64) + 2**40), "--labels")


def test_labels_scaled_by_a_slope_are_whole_again(tmp_path):
    """A mask stored as 0 and 255 with the slope 1/255, as some tools do."""
    path = save(tmp_path / "a.nii", np.where(values() > 100, 255, 0).astype(np.uint8))
    raw = bytearray(path.read_bytes())
    raw[112:120] = np.array([1 / 255, 0], "<f4").tobytes()
    path.write_bytes(raw)
    assert np.array_equal(read_labels(path, "x").data, values() > 100)


def test_a_header_without_place_is_a_warning(tmp_path):
    (warning,) = read_volume(save(tmp_path / "a.nii", affine=np.eye(4), sform=0, qform=0), "x").warnings
    assert "neither sform nor qform" in warning and "\n" not in warning


def test_forms_that_disagree_are_a_warning_and_the_sform_wins(tmp_path):
    image = nib.Nifti1Image(values(), rotated())
    moved = rotated()
    moved[0, 3] += 5
    image.set_qform(rotated(), 1)
    image.set_sform(moved, 2)
    nib.save(image, tmp_path / "a.nii")
    volume = read_volume(tmp_path / "a.nii", "x")
    assert volume.grid.affine == pytest.approx(moved, abs=1e-5)
    assert "differ by up to 5.00 mm" in volume.warnings[0]


def test_an_ordinary_header_gives_no_warning(tmp_path):
    for codes in ((1, 1), (1, 0), (0, 1), (2, 4)):
        assert read_volume(save(tmp_path / "a.nii", sform=codes[0], qform=codes[1]), "x").warnings == ()


@pytest.mark.parametrize(("code", "name", "factor"), [(1, "meter", 1e3), (2, "mm", 1), (3, "micron", 1e-3)])
def test_the_unit_of_the_header_is_converted_to_mm_with_a_warning(tmp_path, code, name, factor):
    small = np.diag([0.1, 0.1, 0.1, 1]) @ rotated()
    volume = read_volume(save(tmp_path / "a.nii", affine=small, xyzt_units=code), "x")
    plain = read_volume(save(tmp_path / "b.nii", affine=small, xyzt_units=2), "x")
    np.testing.assert_allclose(volume.grid.affine[:3], factor * plain.grid.affine[:3])
    assert [name in warning for warning in volume.warnings] == ([] if name == "mm" else [True])


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32])
def test_what_is_written_is_read_back(tmp_path, suffix, dtype):
    grid = Grid(SHAPE, rotated())
    write_volume(tmp_path / f"a{suffix}", values(dtype), grid, codes=(2, 1))
    image = nib.load(tmp_path / f"a{suffix}")
    assert np.array_equal(image.get_fdata(), values(dtype)) and image.get_data_dtype() == dtype
    assert image.get_sform() == pytest.approx(rotated(), abs=1e-5)
    assert image.get_qform() == pytest.approx(rotated(), abs=1e-4)
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (2, 1)
    assert image.header.get_xyzt_units()[0] == "mm"
    again = read_volume(tmp_path / f"a{suffix}", "x")
    assert again.grid.close(grid, 1e-4) and again.codes == (2, 1) and again.warnings == ()


def test_itk_sees_the_same_voxels_in_the_same_places(tmp_path):
    grid = Grid(SHAPE, rotated())
    write_volume(tmp_path / "a.nii.gz", values(), grid)
    image = sitk.ReadImage(str(tmp_path / "a.nii.gz"))
    assert np.array_equal(sitk.GetArrayFromImage(image), values().T)
    lps = grid.to_physical(np.array([3.0, 2.0, 4.0])) * (-1, -1, 1)
    assert image.TransformIndexToPhysicalPoint((3, 2, 4)) == pytest.approx(lps, abs=1e-4)


def test_a_sheared_grid_has_an_sform_alone(tmp_path):
    grid = Grid(SHAPE, OBLIQUE)
    assert not grid.orthogonal
    write_volume(tmp_path / "a.nii", values(), grid, codes=(2, 2))
    header = nib.load(tmp_path / "a.nii").header
    assert header.get_sform() == pytest.approx(OBLIQUE, abs=1e-5)
    assert (int(header["sform_code"]), int(header["qform_code"])) == (2, 0)


@pytest.mark.parametrize(("codes", "written"), [((0, 0), (1, 1)), ((2, 0), (2, 2)), ((0, 3), (3, 3))])
def test_both_forms_are_always_set(tmp_path, codes, written):
    write_volume(tmp_path / "a.nii", values(), Grid(SHAPE, rotated()), codes)
    assert read_volume(tmp_path / "a.nii", "x").codes == written


@pytest.mark.parametrize(("given", "stored"), [("?", "u1"), ("i8", "i4"), ("f8", "f4"), ("f2", "f4")])
def test_types_that_few_tools_read_are_replaced(tmp_path, given, stored):
    data = (values() % 2).astype(given)
    write_volume(tmp_path / "a.nii", data, Grid(SHAPE, rotated()))
    image = nib.load(tmp_path / "a.nii")
    assert image.get_data_dtype() == np.dtype(stored) and np.array_equal(image.get_fdata(), data)


def test_values_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(InputError, match="do not fit uint8"):
        write_volume(tmp_path / "a.nii", values() + 100, Grid(SHAPE, rotated()), dtype=np.uint8)
    assert list(tmp_path.iterdir()) == []


def test_names_and_shapes_are_checked_before_writing(tmp_path):
    with pytest.raises(InputError, match=r"ends in \.nii or \.nii\.gz"):
        write_volume(tmp_path / "a.mgz", values(), Grid(SHAPE, rotated()))
    with pytest.raises(InputError, match="for a grid of"):
        write_volume(tmp_path / "a.nii", values()[1:], Grid(SHAPE, rotated()))
    assert list(tmp_path.iterdir()) == []


def test_equal_data_give_equal_files(tmp_path):
    for name in ("a.nii.gz", "b.nii.gz"):
        write_volume(tmp_path / name, values(), Grid(SHAPE, rotated()))
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


@pytest.mark.parametrize("compression", [FAST, DENSE])
@pytest.mark.parametrize("sizes", [[], [0], [1], [5, 0, 100_000], [50_000] * (AHEAD + 3)])
def test_the_gzip_stream_is_one_valid_member(tmp_path, sizes, compression):
    """Compressed and stored pieces may alternate in any way."""
    rng = np.random.default_rng(len(sizes))
    pieces = [rng.integers(0, (4, 256)[n % 2], size, np.uint8).tobytes() for n, size in enumerate(sizes)]
    with open(tmp_path / "a.gz", "wb") as stream:
        write_gzip(stream, [lambda piece=piece: piece for piece in pieces], compression=compression)
    content = (tmp_path / "a.gz").read_bytes()
    assert gzip.decompress(content) == b"".join(pieces)
    assert content.count(b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x04\xff") == 1


class TestRounding:
    """Values that keep few bits, and so compress."""

    def test_to_bits_is_relative_and_keeps_signs(self):
        rng = np.random.default_rng(0)
        values = (rng.choice((-1, 1), 5000) * 10 ** rng.uniform(-6, 6, 5000)).astype(np.float32)
        found = rounded_to_bits(values, 8).astype(np.float64)
        mantissa, exponent = np.frexp(np.abs(values.astype(np.float64)))
        expected = np.ldexp(np.floor(mantissa * 2**9 + 0.5), exponent - 9)
        np.testing.assert_array_equal(found, np.copysign(expected, values))
        assert 0.95 * 2**-9 < np.abs(found / values - 1).max() <= 2**-9
        assert rounded_to_bits(np.zeros(3, np.float32), 8).tolist() == [0, 0, 0]

    def test_to_steps_is_absolute(self):
        values = np.random.default_rng(0).normal(0, 20, 5000).astype(np.float32)
        found = rounded_to_steps(values, 2.0**-5)
        assert found.dtype == np.float32 and np.all(found * 32 == np.rint(found * 32))
        assert 0.99 * 2**-6 < np.abs(found - values).max() <= 2**-6

    def test_a_compact_volume_is_small_and_close(self, tmp_path):
        """Folds, values of 0 and below, remain folds, and nothing becomes one."""
        rng = np.random.default_rng(0)
        data = np.asfortranarray(1 + rng.normal(0, 1, (32, 36, 20)).cumsum(axis=0) / 8).astype(np.float32)
        where = Grid(data.shape, np.diag((1, 2, 3, 1.0)))
        write_compact_volume(tmp_path / "compact.nii.gz", data, where, (2, 1))
        write_volume(tmp_path / "plain.nii.gz", data, where, (2, 1))
        image = nib.load(tmp_path / "compact.nii.gz")
        found = image.get_fdata()
        assert image.get_data_dtype() == np.float32 and np.array_equal(image.affine, where.affine)
        assert 0.9 * COMPACT_ERROR < np.abs(found / data - 1).max() <= COMPACT_ERROR
        assert np.array_equal(found <= 0, data <= 0) and 0.01 < (found <= 0).mean() < 0.5
        sizes = [(tmp_path / f"{name}.nii.gz").stat().st_size for name in ("compact", "plain")]
        assert sizes[0] < 0.5 * sizes[1]


def test_what_hardly_shrinks_is_stored_and_the_rest_compressed(tmp_path):
    """A field's mantissas are noise; the dark background of a scan is not."""
    noise = np.random.default_rng(0).normal(0, 1, (64, 64, 64)).astype(np.float32)
    image = np.zeros_like(noise)
    image[20:40] = noise[20:40]
    for name, data in (("noise", noise), ("image", image)):
        write_volume(tmp_path / f"{name}.nii.gz", data, Grid(data.shape, np.eye(4)))
    stored, compressed = ((tmp_path / f"{name}.nii.gz").stat().st_size for name in ("noise", "image"))
    assert 1 <= stored / noise.nbytes < 1.001
    assert compressed < 0.4 * image.nbytes


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_memory_order_does_not_matter(tmp_path, monkeypatch, order, suffix):
    """Components are written one after the other, each first axis fastest, in pieces of whole planes."""
    monkeypatch.setattr("runtime.images.formats.nifti_bytes.PIECE", 4 * 6 * 7 * 2)
    data = np.arange(np.prod(SHAPE) * 6, dtype=np.float32).reshape(*SHAPE, 2, 3)
    write_volume(tmp_path / f"a{suffix}", np.asarray(data, order=order), Grid(SHAPE, rotated()))
    assert np.array_equal(nib.load(tmp_path / f"a{suffix}").get_fdata(), data)


def test_labels_stored_as_floats_are_read_exactly(tmp_path):
    """Beyond 2^24 single precision would not hold them; scaled ones pass where the product is whole."""
    data = values(np.float64) + 2**24
    labels = read_labels(save(tmp_path / "a.nii.gz", data), "x")
    assert np.array_equal(labels.data, data) and labels.data.dtype == np.int32
    path = save(tmp_path / "b.nii")
    raw = bytearray(path.read_bytes())
    raw[112:120] = np.array([2, 1], "<f4").tobytes()  # scl_slope, scl_inter
    path.write_bytes(raw)
    assert np.array_equal(read_labels(path, "x").data, values() * 2 + 1)


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "warped.nii.gz"
    path.write_text("before")
    with pytest.raises(RuntimeError, match="stopped"), atomic_path(path) as temporary:
        assert temporary.parent == path.parent and temporary.name.endswith(".nii.gz")
        temporary.write_text("half")
        raise RuntimeError("stopped")
    assert path.read_text() == "before" and [entry.name for entry in tmp_path.iterdir()] == ["warped.nii.gz"]


def test_a_file_is_replaced_on_success(tmp_path):
    write_text(tmp_path / "a.txt", "one\n")
    write_text(tmp_path / "a.txt", "zwei ä\n")
    write_bytes(tmp_path / "b", b"\x00\x01")
    assert (tmp_path / "a.txt").read_text("utf-8") == "zwei ä\n" and (tmp_path / "b").read_bytes() == b"\x00\x01"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.txt", "b"]
