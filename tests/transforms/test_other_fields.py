"""Transforms of other tools: fields of SPM, NiftyReg and AFNI are read, others are rejected by name."""

import os
import struct
import sys
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest

from runtime.errors import InputError
from runtime.host.files import reading_process
from runtime.transforms import Link, read_transform
from runtime.transforms.conventions.itk import h5 as itk_h5

SHAPE = (9, 8, 7)
AFFINE = np.array([[0, -2.0, 0.3, 20], [1.8, 0, 0, -31], [0.2, 0, 2.5, 7], [0, 0, 0, 1]])
PLACES = np.stack(np.indices(SHAPE), -1) @ AFFINE[:3, :3].T + AFFINE[:3, 3]
MOVE = np.stack([2 * np.sin(PLACES[..., 1] / 9), 1.5 * np.cos(PLACES[..., 0] / 8), 1 + 0 * PLACES[..., 0]], -1)  # RAS
MOVED = PLACES + MOVE


def field(path: Path, numbers: np.ndarray, intent: int, name: bytes = b"", value: float = 0, extension=None) -> Path:
    """A file (I, J, K, 1, 3), as nibabel writes it."""
    image = nib.Nifti1Image(numbers[:, :, :, None].astype(np.float32), AFFINE)
    image.header["intent_code"], image.header["intent_name"], image.header["intent_p1"] = intent, name, value
    if extension:
        image.header.extensions.append(nib.nifti1.Nifti1Extension(4, extension))
    nib.save(image, path)
    return path


@pytest.mark.parametrize(
    ("numbers", "intent", "name", "value"),
    [(MOVED, 1007, b"Mapping", 0), (MOVED, 1007, b"NREG_TRANS", 0), (MOVE, 1007, b"NREG_TRANS", 1)],
    ids=["SPM", "NiftyReg's deformation", "NiftyReg's displacement"],
)
def test_positions_and_displacements_in_ras(tmp_path, numbers, intent, name, value):
    found = read_transform(field(tmp_path / "y.nii.gz", numbers, intent, name, value))
    assert found.transform.points(PLACES.reshape(-1, 3)) == pytest.approx(MOVED.reshape(-1, 3), abs=2e-5)
    assert found.start.grid.affine == pytest.approx(AFFINE, abs=1e-6)


def test_doubts_of_a_fields_header_are_told(tmp_path):
    path = field(tmp_path / "y.nii", MOVE, 1006)
    content = bytearray(path.read_bytes())
    struct.pack_into("<f", content, 112, np.inf)  # the slope
    path.write_bytes(content)
    (doubt,) = read_transform(path).doubts
    assert doubt == "y.nii: slope inf and intercept 0 are not both finite; stored values are unscaled"


def test_afnis_are_in_dicoms_axes(tmp_path):
    path = field(tmp_path / "a.nii", MOVE * (-1, -1, 1), 0, extension=b'<?xml version="1.0" ?>\n<AFNI_attributes\n/>')
    found = read_transform(path)
    assert found.transform.points(PLACES.reshape(-1, 3)) == pytest.approx(MOVED.reshape(-1, 3), abs=2e-5)
    assert found.convention == "itk"


@pytest.mark.parametrize("name", ["warp.mgz", "warp.mgh"])
def test_a_field_of_freesurfer_in_its_own_format(tmp_path, name):
    nib.save(nib.MGHImage(MOVE.astype(np.float32), AFFINE), tmp_path / name)
    found = read_transform(tmp_path / name, convention="freesurfer")
    assert found.transform.points(PLACES.reshape(-1, 3)) == pytest.approx(MOVED.reshape(-1, 3), abs=2e-5)
    with pytest.raises(InputError, match=r"does not state its convention; name it: freesurfer$"):
        read_transform(tmp_path / name)


def test_a_field_in_nifti_2(tmp_path):
    image = nib.Nifti2Image((MOVE * (-1, -1, 1))[:, :, :, None].astype(np.float32), AFFINE)
    image.header.set_intent(1007)
    nib.save(image, tmp_path / "w.nii.gz")
    found = read_transform(tmp_path / "w.nii.gz")
    assert found.transform.points(PLACES.reshape(-1, 3)) == pytest.approx(MOVED.reshape(-1, 3), abs=2e-5)


@pytest.mark.parametrize("value", [2, 3, 4, 5, 6, 17])
def test_niftyregs_grids_and_velocities_are_no_fields(tmp_path, value):
    path = field(tmp_path / "cpp.nii", MOVE, 1007, b"NREG_TRANS", value)
    with pytest.raises(InputError, match=r"NiftyReg, not a displacement field; .* reg_transform -ref FIXED -def IT"):
        read_transform(path)


def test_what_says_whose_it_is_is_not_read_as_anothers(tmp_path):
    path = field(tmp_path / "y.nii", MOVED, 1007, b"Mapping")
    with pytest.raises(InputError, match="which is SPM's, not itk's"):
        read_transform(path, convention="itk")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("TransformParameters.0.txt", '(Transform "EulerTransform")\n(NumberOfParameters 6)\n', "elastix.*transformix"),
        ("a.xfm", "MNI Transform File\n\nTransform_Type = Linear;\n", "MNI.*lta_convert --inmni a.xfm"),
        ("register.dat", "bert\n1.0\n1.0\n0.15\n1 0 0 0\n", "register.dat.*lta_convert --inreg register.dat"),
        ("a.aff12.1D", "# 3dAllineate matrices (DICOM-to-DICOM, row-by-row):\n 1 0 0 0\n", "3dAllineate.*nitransforms"),
        ("warp.m3z", "\x1f\x8b\x08", "a morph of FreeSurfer.*mri_warp_convert --inm3z warp.m3z"),
        ("warp.nrrd", "NRRD0004\n", "NRRD.*SimpleITK"),
        ("warp.npy", "\x93NUMPY", "NumPy"),
    ],
)
def test_others_are_named_with_what_converts_them(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=f"^-t: .*{message}") as refusal:
        read_transform(tmp_path / name)
    assert "\n" not in str(refusal.value)


def test_x5_is_named(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.attrs["Format"] = "X5"
        file.create_group("TransformGroup").create_group("0")
    with pytest.raises(InputError, match="it is X5, the format of nitransforms"):
        read_transform(tmp_path / "a.h5")


class TestBounds:
    @pytest.mark.parametrize("length", [-20, 0, 10**6])
    def test_a_matlab_file_whose_names_have_no_length_ends(self, tmp_path, length):
        (tmp_path / "a.mat").write_bytes(struct.pack("<5i", 0, 0, 1, 0, length) + bytes(40))
        with pytest.raises(InputError, match=r"-t: .* cannot be read as an affine of ANTs"):
            read_transform(tmp_path / "a.mat")

    @pytest.mark.parametrize(
        ("program", "reason"),
        [
            ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "the process that reads it ended unexpectedly"),
            ("import time; time.sleep(60)", "reading it took more than"),
            ("import os; os._exit(0)", "the process that reads it ended unexpectedly"),
        ],
    )
    def test_an_hdf5_library_that_crashes_or_hangs_does_it_elsewhere(self, tmp_path, monkeypatch, program, reason):
        (tmp_path / "reader.py").write_text(program)
        (tmp_path / "a.h5").write_bytes(itk_h5.MAGIC)
        monkeypatch.setattr(itk_h5, "READER", tmp_path / "reader.py")
        monkeypatch.setattr(reading_process, "PATIENCE", 2 if "sleep" in program else 60)
        with pytest.raises(InputError, match=rf"-t: .* cannot be read as a composite transform of ITK \({reason}"):
            read_transform(tmp_path / "a.h5")

    def test_more_numbers_than_the_file_can_hold(self, tmp_path):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            part = file.create_group("TransformGroup").create_group("0")
            part.create_dataset("TransformType", data=[b"AffineTransform_double_3_3"])
            part.create_dataset("TransformFixedParameters", data=np.zeros(3))
            part.create_dataset("TransformParameters", shape=(10**12,), chunks=(1024,), dtype="f8")
        with pytest.raises(InputError, match="1000000000000 numbers of type float64 cannot be what it holds"):
            read_transform(tmp_path / "a.h5")

    @pytest.mark.parametrize("name", ["a.txt", "a.mat", "a.lta", "a.nii.gz", "a.h5"])
    @pytest.mark.skipif(sys.platform == "win32", reason="no named pipes")
    def test_a_pipe_or_a_folder_is_no_file(self, tmp_path, name):
        os.mkfifo(tmp_path / name)
        with pytest.raises(InputError, match="is not a file but a pipe"):
            read_transform(tmp_path / name)
        with pytest.raises(InputError, match="is not a file but a folder"):
            read_transform(tmp_path)

    def test_an_affine_beyond_measure(self, tmp_path):
        for numbers, fault in (("9 0 0 0", "stretches by 1 to 9"), ("1 0 0 1e7", "shifts by 1e.07 mm")):
            (tmp_path / "a.txt").write_text(f"{numbers}\n0 1 0 0\n0 0 1 0\n0 0 0 1\n")
            with pytest.raises(InputError, match=fault):
                read_transform(tmp_path / "a.txt")

    def test_a_displacement_beyond_measure(self, tmp_path):
        with pytest.raises(InputError, match=r"moves by 1e.30 mm, expected 83886 mm at most"):
            read_transform(field(tmp_path / "a.nii", np.full((*SHAPE, 3), 1e30), 1007))

    @pytest.mark.parametrize("size", ["Infinity", "1e400", "[" * 20000, '"x"', "-3"])
    def test_a_damaged_card_is_a_damaged_file(self, tmp_path, size):
        metadata = (
            f'# rpnet transform {{"version":1,"convention":"itk","start":{{"shape":[{size},3,3],"affine":[]}}}}\n'
        )
        (tmp_path / "a.txt").write_text(metadata + "1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n")
        with pytest.raises(InputError, match=r"^-t: .* holds invalid metadata") as refusal:
            read_transform(tmp_path / "a.txt")
        assert "\n" not in str(refusal.value)


def test_links_as_ants_writes_them():
    assert Link.parse("[0GenericAffine.mat,1]") == Link(Path("0GenericAffine.mat"), inverse=True)
    assert Link.parse("[ a b.mat , 0 ]") == Link(Path("a b.mat"))
    assert Link.parse("a.mat,inverse") == Link(Path("a.mat"), inverse=True)
