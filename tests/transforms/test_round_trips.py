"""Round trips of transforms through other tools, in both directions, compared in mm and as images.

One test is one convention, tool and pair of grids; ``measurements/round_trips.py`` runs more maps and prints the table.
"""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from runtime.geometry.grid import Grid
from runtime.geometry.transform import AffineTransform, Chain
from runtime.images.resampling.resample import resample_through
from runtime.transforms import read_transform, write_transform
from tests.transforms.round_trip_cases import (
    AFFINES,
    FIXED,
    IMAGE_SHARE,
    POINTS_MM,
    Case,
    bumps,
    sampled,
    voxels_of,
    write_images,
)
from tests.transforms.round_trip_tools import APPLY, LPS, MODULES, WRITE, ants_applies_chain, holds, read_back, written

MAPS = ("shift R", "rotation A", "scale S", "bent", "registration")
pytestmark = [
    pytest.mark.filterwarnings("ignore:Incorrect intent:UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    return {place: write_images(folder, place) for place in FIXED}


def name(key) -> str:
    return "-".join(key)


@pytest.mark.parametrize("place", FIXED)
@pytest.mark.parametrize("key", APPLY, ids=name)
def test_a_tool_does_with_our_file_what_the_map_says(tmp_path, images, key, place):
    pytest.importorskip(MODULES[key[2]])
    for case in (Case(place, known, *images[place]) for known in MAPS):
        if holds(key[1], case):
            places, image = APPLY[key](written(tmp_path, key, case), case)
            assert case.miss(places) < POINTS_MM / 100
            assert case.difference(image) < IMAGE_SHARE / 10


@pytest.mark.parametrize("place", FIXED)
@pytest.mark.parametrize("key", WRITE, ids=name)
def test_we_do_with_a_tools_file_what_the_map_says(tmp_path, images, key, place):
    pytest.importorskip(MODULES[key[2]])
    for case in (Case(place, known, *images[place]) for known in MAPS):
        if holds(key[1], case):
            places, image = read_back(WRITE[key](tmp_path, case), key, case)
            assert case.miss(places) < POINTS_MM / 100
            assert case.difference(image) < IMAGE_SHARE / 10


def test_a_wrong_sign_would_be_seen(tmp_path, images):
    """The tolerances are meaningful: a file of one convention read as another has a large error."""
    pytest.importorskip("nitransforms")
    case = Case("LIA", "registration", *images["LIA"])
    places, image = APPLY["freesurfer", ".nii.gz", "nitransforms"](written(tmp_path, ("itk", ".nii.gz"), case), case)
    assert case.miss(places) > 5 and case.difference(image) > 0.1


def test_a_chain_goes_in_the_order_of_ants(tmp_path, images):
    """Listed from the reference to the scan: a point of the reference goes through the first, then the second."""
    pytest.importorskip("ants")
    case = Case("oblique", "bent", *images["oblique"])
    write_transform(tmp_path / "warp.nii.gz", case.transform, "itk", case.start, case.end)
    write_transform(tmp_path / "affine.mat", AffineTransform(AFFINES["affine"]), "itk", case.start, case.end)
    files = [tmp_path / "warp.nii.gz", tmp_path / "affine.mat"]
    chain = Chain(tuple(read_transform(path).transform for path in files))
    places, image = ants_applies_chain(files, case)
    assert places == pytest.approx(chain.points(case.points), abs=1e-3)
    assert np.abs(places - Chain(chain.links[::-1]).points(case.points)).max() > 0.3
    moving = case.moving_values.astype(np.float32)
    displacement = chain.displacement(case.start.grid)
    inner = (slice(4, -4),) * 3
    ours = resample_through(moving, case.end.grid, displacement, case.start.grid)
    assert image[inner] == pytest.approx(ours[inner], abs=0.01)


def test_learn2regs_evaluation_on_one_grid(tmp_path, images):
    """As the challenge warps: arrays only, moving[identity + field], both images on the fixed grid."""
    case = Case("oblique", "bent", *images["oblique"])
    path = tmp_path / "disp_0001_0002.nii.gz"
    write_transform(path, case.transform, "learn2reg", case.start, case.start)
    grid, field = case.start.grid, nib.load(path).get_fdata()
    moving = bumps(grid.to_physical(voxels_of(grid))).reshape(grid.shape)
    warped = sampled(moving, voxels_of(grid) + field.reshape(-1, 3))
    inside = sampled(moving, grid.to_voxels(case.points + case.displacement[tuple(case.voxels.T)]))
    assert warped.reshape(grid.shape)[tuple(case.voxels.T)] == pytest.approx(inside, abs=1e-3)


def test_nitransforms_reads_fsl_where_it_can(tmp_path):
    """It flips the first axis and nothing else, which is correct if both images share one RAS grid."""
    DenseFieldTransform = pytest.importorskip("nitransforms.nonlinear").DenseFieldTransform
    case = Case("RAS", "bent", *write_images(tmp_path, "RAS"))
    path = tmp_path / "warp.nii.gz"
    write_transform(path, case.transform, "fsl", case.start, case.start)
    assert case.miss(DenseFieldTransform.from_filename(path, fmt="fsl").map(case.points)) < 1e-3


class TestShearedGrids:
    """ITK's NIfTI reader refuses them; its composites hold any direction."""

    @pytest.fixture
    def case(self, tmp_path, monkeypatch):
        affine = FIXED["LIA"].affine.copy()
        affine[:3, 1] += 0.15 * affine[:3, 0]
        monkeypatch.setitem(FIXED, "LIA", Grid(FIXED["LIA"].shape, affine))
        return Case("LIA", "registration", *write_images(tmp_path, "LIA"))

    def test_itk_refuses_the_field(self, tmp_path, case):
        path = written(tmp_path, ("itk", ".nii.gz"), case)
        with pytest.raises(RuntimeError, match=r"orthonormal|orthogonal"):
            sitk.ReadImage(str(path))
        assert case.miss(read_transform(path).transform.points(case.points)) < 1e-3

    def test_itk_takes_the_composite(self, tmp_path, case):
        transform = sitk.ReadTransform(str(written(tmp_path, ("h5", ".h5"), case)))
        places = [np.array(transform.TransformPoint(point * LPS)) * LPS for point in case.points]
        assert case.miss(np.array(places)) < 1e-3
