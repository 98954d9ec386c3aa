"""Compact transform files: other tools read them, everywhere within the bound, and they are small."""

import nibabel as nib
import numpy as np
import pytest

from runtime.errors import InputError
from runtime.geometry.grid import Grid
from runtime.geometry.transform import AffineTransform, Chain, from_displacement
from runtime.transforms import Space, read_transform, verify_transform, write_transform, write_verified
from tests.transforms.round_trip_cases import (
    AFFINES,
    COMPACT_SHARE,
    FIXED,
    MOVING,
    Case,
    bent,
    registration,
    voxels_of,
    write_images,
)
from tests.transforms.round_trip_tools import AFFINE_FILES, APPLY, MODULES, written

STEP = 2.0**-5  # mm
BOUND_MM = np.sqrt(3) / 2 * STEP + 1e-4  # three components, each off by half a step; single precision
FIELDS = [key for key in APPLY if key[1] not in AFFINE_FILES]
START, END = Space(FIXED["oblique"]), Space(MOVING["oblique"])
pytestmark = [
    pytest.mark.filterwarnings("ignore:Incorrect intent:UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    return {place: write_images(folder, place) for place in FIXED}


@pytest.mark.parametrize("place", FIXED)
@pytest.mark.parametrize("key", FIELDS, ids="-".join)
def test_a_tool_reads_a_compact_file_within_the_bound(tmp_path, images, key, place):
    """The map "registration" scales by up to 1.1 after the field of a composite, whose step allows for it."""
    pytest.importorskip(MODULES[key[2]])
    for case in (Case(place, known, *images[place]) for known in ("rotation A", "bent", "registration")):
        places, image = APPLY[key](written(tmp_path, key, case, compact=True), case)
        assert 0.001 < case.miss(places) < BOUND_MM or (key[0], case.map) == ("h5", "rotation A")  # its field is 0
        assert case.difference(image) < COMPACT_SHARE


@pytest.mark.parametrize("convention", ["itk", "freesurfer", "fsl", "learn2reg"])
def test_every_voxel_is_within_the_bound(tmp_path, convention):
    path, points = tmp_path / "warp.nii.gz", START.grid.to_physical(voxels_of(START.grid))
    write_transform(path, registration(), convention, START, END, compact=True)
    found = read_transform(path, "-t", convention, START.grid, END.grid).transform.points(points)
    error = np.linalg.norm(found - registration().points(points), axis=1)
    assert STEP / 2 < error.max() < BOUND_MM


@pytest.mark.parametrize(("convention", "unit_mm"), [("itk", 1), ("freesurfer", 1), ("fsl", 1), ("learn2reg", 1.8)])
def test_the_numbers_are_multiples_of_a_power_of_two(tmp_path, convention, unit_mm):
    """Which is what makes them compress; in voxels of up to 1.8 mm the step is half as large."""
    path = tmp_path / "warp.nii.gz"
    write_transform(path, registration(), convention, START, END, compact=True)
    image = nib.load(path)
    step = STEP if unit_mm == 1 else STEP / 2
    steps = image.get_fdata() / step
    assert image.get_data_dtype() == np.float32 and image.header.get_slope_inter() == (None, None)
    assert np.array_equal(steps, np.rint(steps)) and (steps % 2 == 1).any()


@pytest.mark.parametrize("suffix", [".nii.gz", ".h5"])
def test_a_compact_file_is_small(tmp_path, suffix):
    grid = Grid((48, 56, 40), np.diag((1.5, 1.5, 1.5, 1)))
    points = grid.to_physical(voxels_of(grid))
    displacement = (bent(points) - points).reshape(*grid.shape, 3).astype(np.float32)
    where, transform = Space(grid), from_displacement(displacement, grid)
    convention = "h5" if suffix == ".h5" else "itk"
    for compact in (False, True):
        write_transform(tmp_path / f"{compact}{suffix}", transform, convention, where, where, compact=compact)
    plain, small = ((tmp_path / f"{compact}{suffix}").stat().st_size for compact in (False, True))
    assert plain > 0.8 * displacement.nbytes and small < 0.3 * plain


class TestVerification:
    def test_the_error_is_measured(self, tmp_path):
        error = write_verified(tmp_path / "warp.nii.gz", registration(), "itk", START, END, compact=True)
        assert STEP / 2 < error < BOUND_MM

    @pytest.mark.parametrize(("shift", "seen"), [(0.002, False), (0.058, True)])
    def test_more_than_the_tolerance_is_noticed(self, tmp_path, shift, seen):
        path, by = tmp_path / "warp.nii.gz", np.eye(4)
        by[0, 3] = shift
        write_transform(path, registration(), "itk", START, END, compact=True)
        other = Chain((registration(), AffineTransform(by)))
        if seen:
            with pytest.raises(InputError, match=r"differs by 0.0\d+ mm from the transform, expected 0.03 mm"):
                verify_transform(path, "itk", other, START, END, compact=True)
        else:
            assert verify_transform(path, "itk", other, START, END, compact=True) < 0.03

    def test_a_file_that_is_to_be_exact_may_not_be_compact(self, tmp_path):
        write_transform(tmp_path / "warp.nii.gz", registration(), "itk", START, END, compact=True)
        with pytest.raises(InputError, match=r"differs by 0.02\d+ mm from the transform, expected 0.01 mm"):
            verify_transform(tmp_path / "warp.nii.gz", "itk", registration(), START, END)

    @pytest.mark.parametrize(("name", "convention"), [("a.txt", "ras"), ("a.mat", "itk"), ("a.h5", "h5")])
    def test_affines_are_never_rounded(self, tmp_path, name, convention):
        affine = AffineTransform(AFFINES["affine"])
        assert write_verified(tmp_path / name, affine, convention, START, END, compact=True) < 1e-6
