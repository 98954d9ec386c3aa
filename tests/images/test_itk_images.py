"""NRRD and MetaImage as SimpleITK writes them: read in a separate process, refused in one line if damaged."""

import hashlib

import numpy as np
import pytest
import SimpleITK as sitk

from runtime.errors import InputError
from runtime.images.formats import itk_image
from runtime.images.formats.image_file import read_header
from runtime.images.volume import read_labels, read_source, read_volume

DATA = np.arange(6 * 7 * 5, dtype=np.int16).reshape(6, 7, 5)
TURN = np.array([[0.0, -1, 0], [0.6, 0, -0.8], [0.8, 0, 0.6]])
SPACING, ORIGIN = (2.0, 1.5, 3.0), (10.0, -20.0, 30.0)  # LPS


def write(path, data=DATA, compress=False):
    image = sitk.GetImageFromArray(np.ascontiguousarray(data.T), isVector=False)
    if data.ndim == 3:
        image.SetSpacing(SPACING), image.SetOrigin(ORIGIN), image.SetDirection(TURN.ravel())
    sitk.WriteImage(image, str(path), compress)
    return path


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_voxels_and_place(tmp_path, suffix, compress):
    path = write(tmp_path / f"a{suffix}", compress=compress)
    volume = read_volume(path, "--fixed")
    expected = np.diag((-1.0, -1, 1, 1)) @ np.block([[TURN * SPACING, np.array(ORIGIN)[:, None]], [np.eye(4)[3:]]])
    assert np.array_equal(volume.data, DATA) and volume.grid.affine == pytest.approx(expected, abs=1e-6)
    assert volume.sha256 == hashlib.sha256(path.read_bytes()).hexdigest() and volume.warnings == ()
    assert read_source(path, "x").grid == volume.grid and np.array_equal(read_labels(path, "x").data, DATA)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_damaged_ones_are_one_line(tmp_path, suffix):
    path = write(tmp_path / f"a{suffix}")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"^--fixed: .* cannot be read as NRRD or MetaImage \(") as refusal:
        read_volume(path, "--fixed")
    assert "\n" not in str(refusal.value)


def test_voxels_in_another_file_are_not_fetched(tmp_path):
    write(tmp_path / "a.nrrd")
    header = (tmp_path / "a.nrrd").read_bytes().split(b"\n\n")[0]
    (tmp_path / "b.nrrd").write_bytes(header + b"\ndata file: /etc/passwd\n\n")
    with pytest.raises(InputError, match="its voxels are in another file"):
        read_volume(tmp_path / "b.nrrd", "x")


def test_several_numbers_a_voxel(tmp_path):
    with pytest.raises(InputError, match=r"it has 4 axes and 1 values per voxel"):
        read_volume(write(tmp_path / "a.nrrd", np.stack([DATA, DATA], -1)), "x")


def test_more_voxels_than_it_holds(tmp_path):
    path = write(tmp_path / "a.nrrd")
    path.write_bytes(path.read_bytes().replace(b"sizes: 6 7 5", b"sizes: 6000 7000 5000"))
    with pytest.raises(InputError, match="it is too small for voxels of shape"):
        read_header(path, "x")


def test_without_simpleitk(tmp_path, monkeypatch):
    """A reader that fails like one without SimpleITK stands in for the real one."""
    (tmp_path / "reader.py").write_text('def read(*given): raise ValueError("SimpleITK is not installed")')
    monkeypatch.setattr(itk_image, "READER", tmp_path / "reader.py")
    with pytest.raises(InputError, match=r"cannot be read as NRRD or MetaImage \(SimpleITK is not installed\)"):
        read_volume(write(tmp_path / "a.nrrd"), "x")


def test_a_folder_may_be_of_dicom(tmp_path):
    with pytest.raises(InputError, match=r"is not a file but a folder; convert a folder of DICOM files: dcm2niix"):
        read_volume(tmp_path, "--fixed")
