"""Values of `--affine`: steps by name, and any transform that `apply` reads."""

import numpy as np
import pytest

from runtime.errors import InputError
from runtime.geometry.transform import AffineTransform, from_displacement
from runtime.images.volume import Source
from runtime.registration.affine.choice import best_fit, read_choice
from runtime.transforms import Space, write_transform
from tests import scans

MATRIX = np.array([[0.98, 0.1, 0, 2], [-0.1, 1.02, 0, -3], [0, 0.05, 1, 1.5], [0, 0, 0, 1]])
FIXED = Source(grid=scans.grid((20, 24, 18), (2, 2, 2), scans.OBLIQUE), sha256="a" * 64)
MOVING = Source(grid=scans.grid((24, 22, 26), (1.5, 2, 2), axes="LPS"), sha256="b" * 64)
PLACES = FIXED.grid.to_physical(np.argwhere(np.ones(FIXED.grid.shape)).astype(float))
SIDES = Space.of(FIXED), Space.of(MOVING)


def taken(text, convention="auto", fixed=FIXED, moving=MOVING):
    return read_choice(str(text), convention).given(fixed, moving, PLACES)


FILES = [("ras", "affine.txt"), ("itk", "init.mat"), ("itk", "init.tfm"), ("itk", "init.txt"), ("freesurfer", "x.lta")]
FILES += [("fsl", "flirt.mat"), ("h5", "affine.h5"), ("itk", "affine_field.nii.gz"), ("fsl", "warp.nii.gz")]


@pytest.mark.parametrize(("convention", "name"), FILES)
def test_whatever_apply_reads_is_the_same_matrix(tmp_path, convention, name):
    path = tmp_path / name
    write_transform(path, AffineTransform(MATRIX), convention, *SIDES)
    matrix, facts = taken(path, "fsl" if name == "flirt.mat" else "auto")
    np.testing.assert_allclose(matrix, MATRIX, atol=1e-4)
    assert facts["found"] is False and facts["matrix"] == matrix.tolist()


def test_its_inverse_may_be_meant(tmp_path):
    write_transform(tmp_path / "back.mat", AffineTransform(np.linalg.inv(MATRIX)), "itk", None, None)
    np.testing.assert_allclose(taken(f"{tmp_path / 'back.mat'},inverse")[0], MATRIX, atol=1e-9)


def test_of_a_field_that_bends_the_best_affine_is_taken_and_said(tmp_path):
    bump = np.exp(-np.sum((PLACES - scans.CENTRE) ** 2, axis=1) / 60).reshape(FIXED.grid.shape)
    displacement = AffineTransform(MATRIX).displacement(FIXED.grid).copy()
    displacement[..., 0] += 3 * bump
    path = tmp_path / "bent.nii.gz"
    write_transform(path, from_displacement(displacement, FIXED.grid), "itk", *SIDES)
    matrix, facts = taken(path)
    there = AffineTransform(MATRIX).points(PLACES) + np.outer(3 * bump.ravel(), (1, 0, 0))
    left = there - AffineTransform(matrix).points(PLACES)
    assert np.abs(np.hstack([PLACES, np.ones((len(PLACES), 1))]).T @ left).max() < 0.1 * len(PLACES)  # least squares
    assert f"deviates by up to {np.linalg.norm(left, axis=1).max():.1f} mm" in facts["note"]


def test_the_best_fit_of_an_affine_is_itself():
    matrix, left = best_fit(AffineTransform(MATRIX), PLACES)
    np.testing.assert_allclose(matrix, MATRIX, atol=1e-9)
    assert left < 1e-9


def test_one_that_leads_the_other_way_is_refused_with_the_one_that_is_right(tmp_path):
    path = tmp_path / "warp.nii.gz"
    write_transform(path, AffineTransform(MATRIX), "itk", *SIDES)
    with pytest.raises(InputError, match=r"--affine .*warp\.nii\.gz maps .* use --affine .*\.nii\.gz,inverse"):
        taken(path, fixed=MOVING, moving=FIXED)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("absent.mat", None, "expected auto, affine, rigid, none or an existing transform file"),
        ("words.txt", "not a matrix", r"--affine: .*words\.txt"),
        ("start.mat", "1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n", "name its convention: fsl or ras"),
        ("large.txt", "20 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n", r"--affine: .* stretches by 1 to 20, expected 0\.2"),
    ],
)
def test_what_is_none_is_refused_before_any_scan_is_read(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        read_choice(str(tmp_path / name))


def test_none_is_the_headers():
    assert np.array_equal(taken("none")[0], np.eye(4))
