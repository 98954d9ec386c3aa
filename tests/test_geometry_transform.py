"""Transforms: the formula, the compiled displacement, and the signs and frames of other tools' files."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from runtime.geometry.errors import InputError
from runtime.geometry.flow import identity, sample
from runtime.geometry.grid import Grid
from runtime.geometry.transform import (
    SpatialTransform,
    read_affine,
    read_itk_displacement,
    write_affine,
    write_itk_displacement,
)
from runtime.geometry.volume import write_volume
from runtime.resample import resample_through

SHIFT = np.array([6.0, -4.0, 3.0])  # mm, RAS
COLUMNS = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}
TURN = np.array([[0.96, -0.28, 0], [0.28 * 0.8, 0.96 * 0.8, -0.6], [0.28 * 0.6, 0.96 * 0.6, 0.8]])
FIXED = {"RAS": ("RAS", np.eye(3)), "LPS": ("LPS", np.eye(3)), "LIA": ("LIA", np.eye(3)), "oblique": ("RAS", TURN)}


def grid(name: str, shape=(24, 28, 20), spacing=(1.5, 1.0, 2.0)) -> Grid:
    """A grid about the origin of space."""
    axes, turn = FIXED[name]
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.array([COLUMNS[letter] for letter in axes], float).T @ np.diag(spacing)
    affine[:3, 3] = np.array([2.0, -3.0, 4.0]) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(shape, affine)


def places(where: Grid) -> np.ndarray:
    return where.to_physical(np.moveaxis(identity(where.shape), 0, -1))


def bumps(points: np.ndarray) -> np.ndarray:
    """An image without any symmetry, known at every point of space."""
    centres = np.array([[2, -3, 4], [9, 1, 8], [-4, -9, -2], [3, 6, 0.0]])
    distance = np.linalg.norm(points[..., None, :] - centres, axis=-1)
    return np.exp(-((distance / 5) ** 2)) @ np.array([60.0, 100.0, 80.0, 40.0])


def example() -> SpatialTransform:
    rng = np.random.default_rng(2)
    affine = np.array([[1.1, 0.1, 0, 4], [-0.1, 0.9, 0.05, -6], [0.02, 0.1, 1.05, 3], [0, 0, 0, 1.0]])
    return SpatialTransform(affine, rng.normal(0, 2, (3, 8, 16, 8)).astype(np.float32), grid("oblique", (8, 16, 8)))


def test_the_formula_at_the_working_voxels():
    """y = affine( W( w + flow(w) ) ) where w is a voxel of the working grid."""
    transform = example()
    voxel = np.array([3, 5, 2])
    moved = transform.grid.to_physical(voxel + transform.flow[:, 3, 5, 2])
    expected = (transform.affine @ [*moved, 1])[:3]
    assert transform.points(transform.grid.to_physical(voxel)[None])[0] == pytest.approx(expected, abs=1e-5)


def test_the_displacement_kernel_is_the_definition_inside_and_outside_the_working_grid():
    transform, fixed = example(), grid("LIA")
    points = places(fixed).reshape(-1, 3)
    voxels = transform.grid.to_voxels(points)
    inside = np.all((voxels >= 0) & (voxels <= np.array(transform.grid.shape) - 1), axis=1)
    assert 0.05 < inside.mean() < 0.95
    displacement = transform.displacement(fixed)
    assert displacement.reshape(-1, 3) == pytest.approx(transform.points(points) - points, abs=1e-4)
    assert displacement.dtype == np.float32


def test_beyond_the_working_grid_the_flow_goes_on_as_at_its_border():
    transform = example()
    border = np.array([[7.0, 9.0, 3.0]])
    far = border + np.array([[40.0, 0, 0]])
    ends = [transform.points(transform.grid.to_physical(place)) for place in (border, far)]
    straight = transform.grid.to_physical(far) - transform.grid.to_physical(border)
    assert ends[1] - ends[0] == pytest.approx(straight @ transform.affine[:3, :3].T, abs=1e-4)


def test_without_a_flow_it_is_the_affine():
    transform = example()
    still = SpatialTransform(transform.affine, np.zeros_like(transform.flow), transform.grid)
    fixed = grid("oblique")
    expected = places(fixed) @ still.affine[:3, :3].T + still.affine[:3, 3] - places(fixed)
    assert still.displacement(fixed) == pytest.approx(expected, abs=1e-4)


def test_a_flow_of_another_shape_is_refused():
    transform = example()
    with pytest.raises(InputError, match="flow: got shape"):
        SpatialTransform(transform.affine, transform.flow[:, 1:], transform.grid)
    with pytest.raises(InputError, match="affine: is singular"):
        SpatialTransform(np.zeros((4, 4)) + np.diag([0, 0, 0, 1]), transform.flow, transform.grid)


@pytest.mark.parametrize("name", FIXED)
def test_itk_moves_points_as_we_do(tmp_path, name):
    """A known shift, read back as a transform of SimpleITK: the signs of LPS and the axes of the file."""
    fixed = grid(name)
    field = np.broadcast_to(SHIFT, (*fixed.shape, 3)).astype(np.float32)
    write_itk_displacement(tmp_path / "warp.nii.gz", field, fixed)
    loaded = sitk.ReadImage(str(tmp_path / "warp.nii.gz"), sitk.sitkVectorFloat64)
    transform = sitk.DisplacementFieldTransform(loaded)
    for point in (fixed.to_physical(np.array(fixed.shape) / 2), fixed.to_physical(np.array([3.0, 4.0, 5.0]))):
        lps = point * (-1, -1, 1)
        moved = np.array(transform.TransformPoint(lps)) * (-1, -1, 1)
        assert moved == pytest.approx(point + SHIFT, abs=1e-3)


@pytest.mark.parametrize("name", FIXED)
def test_itk_resamples_as_we_do(tmp_path, name):
    """The moving image is the fixed one moved by the shift; SimpleITK and our own code bring it back through the file.

    With a sign or an axis wrong the result would be off by several millimetres.
    """
    fixed, moving = grid(name, spacing=(1.4, 1.0, 1.2)), grid("LPS", (44, 44, 44), (1.0, 1.0, 1.0))
    write_volume(tmp_path / "fixed.nii.gz", bumps(places(fixed)).astype(np.float32), fixed)
    moved = bumps(places(moving) - SHIFT).astype(np.float32)
    write_volume(tmp_path / "moving.nii.gz", moved, moving)
    transform = SpatialTransform(np.eye(4), np.zeros((3, 4, 4, 4), np.float32), Grid((4, 4, 4), np.eye(4)))
    transform.affine[:3, 3] = SHIFT
    field = transform.displacement(fixed)
    write_itk_displacement(tmp_path / "warp.nii.gz", field, fixed)

    itk_field = sitk.DisplacementFieldTransform(sitk.ReadImage(str(tmp_path / "warp.nii.gz"), sitk.sitkVectorFloat64))
    images = [sitk.ReadImage(str(tmp_path / f"{name}.nii.gz"), sitk.sitkFloat32) for name in ("moving", "fixed")]
    itk = sitk.GetArrayFromImage(sitk.Resample(*images, itk_field, sitk.sitkLinear, 0.0)).T
    ours = resample_through(moved, moving, field, fixed)
    inner = (slice(4, -4),) * 3
    assert itk[inner] == pytest.approx(ours[inner], abs=0.05)
    assert ours[inner] == pytest.approx(bumps(places(fixed))[inner], abs=2.5)
    assert np.abs(bumps(places(fixed) + 2 * SHIFT * (1, 0, 0))[inner] - ours[inner]).max() > 25


def test_itk_agrees_on_a_bent_transform(tmp_path):
    transform, fixed = example(), grid("oblique")
    field = transform.displacement(fixed)
    write_itk_displacement(tmp_path / "warp.nii.gz", field, fixed)
    itk = sitk.DisplacementFieldTransform(sitk.ReadImage(str(tmp_path / "warp.nii.gz"), sitk.sitkVectorFloat64))
    for voxel in ((3, 4, 5), (12, 20, 9), (20, 7, 16)):
        point = fixed.to_physical(np.array(voxel, float))
        moved = np.array(itk.TransformPoint(point * (-1, -1, 1))) * (-1, -1, 1)
        assert moved == pytest.approx(transform.points(point[None])[0], abs=1e-3)


def test_the_file_is_what_ants_expects(tmp_path):
    fixed = grid("LIA")
    field = np.random.default_rng(0).normal(size=(*fixed.shape, 3)).astype(np.float32)
    write_itk_displacement(tmp_path / "warp.nii.gz", field, fixed, codes=(2, 1))
    image = nib.load(tmp_path / "warp.nii.gz")
    assert image.shape == (*fixed.shape, 1, 3) and image.get_data_dtype() == np.float32
    assert int(image.header["intent_code"]) == 1007
    assert np.array_equal(image.get_fdata()[..., 0, :], field * [-1, -1, 1])
    assert image.affine == pytest.approx(fixed.affine, abs=1e-5)
    again, where = read_itk_displacement(tmp_path / "warp.nii.gz")
    assert np.array_equal(again, field) and where.close(fixed, 1e-4)


def test_other_files_are_no_displacement(tmp_path):
    write_volume(tmp_path / "a.nii.gz", np.zeros((4, 4, 4), np.float32), Grid((4, 4, 4), np.eye(4)))
    with pytest.raises(InputError, match=r"--warp: .* intent 0, expected a displacement field"):
        read_itk_displacement(tmp_path / "a.nii.gz", "--warp")
    with pytest.raises(InputError, match="cannot be read"):
        read_itk_displacement(tmp_path / "missing.nii.gz")
    with pytest.raises(InputError, match="displacement: got shape"):
        write_itk_displacement(tmp_path / "b.nii.gz", np.zeros((4, 4, 4)), Grid((4, 4, 4), np.eye(4)))


def test_an_affine_survives_its_text_file_exactly(tmp_path):
    matrix = example().affine / 3 + np.diag([0, 0, 0, 2 / 3])
    write_affine(tmp_path / "affine.txt", matrix)
    assert np.array_equal(read_affine(tmp_path / "affine.txt", "--affine"), matrix)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("1 0 0 0\n0 1 0 0\n0 0 1 0\n", "expected a 4x4 matrix"),
        ("1 0 0 0\n0 1 0 0\n0 0 0 0\n0 0 0 1\n", "singular"),
        ("1 0 0 0\n0 1 0 nan\n0 0 1 0\n0 0 0 1\n", "not finite"),
        ("1 0 0 0\n0 1 0 0\n0 0 1 0\n1 0 0 1\n", "last row"),
        ("#Insight Transform File V1.0\nTransform: AffineTransform\n", "no text file of four rows"),
    ],
)
def test_affine_files_that_are_none_are_refused(tmp_path, content, fault):
    (tmp_path / "affine.txt").write_text(content)
    with pytest.raises(InputError, match=fault) as refusal:
        read_affine(tmp_path / "affine.txt", "--affine")
    assert str(refusal.value).startswith("--affine: ") and "\n" not in str(refusal.value)
    with pytest.raises(InputError, match="does not exist"):
        read_affine(tmp_path / "none.txt", "--affine")


def test_sampling_the_moving_image_at_the_moved_points_is_resampling_through_the_displacement():
    transform, fixed, moving = example(), grid("RAS"), grid("oblique")
    values = bumps(places(moving)).astype(np.float32)
    points = transform.points(places(fixed).reshape(-1, 3)).reshape(*fixed.shape, 3)
    expected = sample(values, np.moveaxis(moving.to_voxels(points), -1, 0))
    assert resample_through(values, moving, transform.displacement(fixed), fixed) == pytest.approx(expected, abs=1e-2)
