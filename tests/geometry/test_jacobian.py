"""The Jacobian determinant of a transform: closed forms on any grid, NumPy and SimpleITK as references."""

import numpy as np
import pytest
import SimpleITK as sitk

from runtime.errors import InputError
from runtime.geometry.flow import identity, jacobian_determinant
from runtime.geometry.grid import Grid
from runtime.geometry.jacobian import folded_share, jacobian_of_displacement, sd_log_jacobian
from runtime.geometry.transform import AffineTransform, SpatialTransform

TURN = np.array([[0.96, -0.28, 0], [0.28 * 0.8, 0.96 * 0.8, -0.6], [0.28 * 0.6, 0.96 * 0.6, 0.8]])
GRIDS = {
    "RAS": np.diag([1.5, 1.0, 2.0]),
    "LPS": np.diag([-1.5, -1.0, 2.0]),
    "LIA": np.array([[-1.5, 0, 0], [0, 0, 2.0], [0, -1.0, 0]]),
    "oblique": TURN @ np.diag([0.9, 1.0, 2.5]),
    "sheared": np.array([[1.0, 0.3, 0], [0, 1.0, 0.2], [0, 0, 2.0]]),
}


def grid(name: str, shape=(14, 11, 9)) -> Grid:
    affine = np.eye(4)
    affine[:3, :3] = GRIDS[name]
    affine[:3, 3] = (-8, 5, 3)
    return Grid(shape, affine)


def places(where: Grid) -> np.ndarray:
    return where.to_physical(np.moveaxis(identity(where.shape), 0, -1))


def waves(points: np.ndarray) -> np.ndarray:
    """A displacement with a closed form everywhere."""
    return np.sin(points @ np.array([[0.2, 0.1, 0.0], [0.05, 0.3, 0.1], [0.1, 0.0, 0.25]])) * [2.0, 1.5, 2.5]


@pytest.mark.parametrize("name", GRIDS)
def test_an_affine_changes_volume_by_its_determinant_everywhere(name):
    matrix = np.array([[1.1, 0.1, 0, 4], [-0.1, 0.9, 0.05, -6], [0.02, 0.1, 1.3, 3], [0, 0, 0, 1.0]])
    displacement = AffineTransform(matrix).displacement(grid(name))
    determinant = jacobian_of_displacement(displacement, grid(name))
    assert determinant == pytest.approx(np.full(grid(name).shape, np.linalg.det(matrix)), abs=1e-5)
    assert determinant.dtype == np.float32


@pytest.mark.parametrize("name", GRIDS)
def test_it_is_the_definition_with_numpys_differences(name):
    where = grid(name)
    displacement = waves(places(where)).astype(np.float32)
    slopes = np.stack(np.gradient(displacement.astype(np.float64), axis=(0, 1, 2)), -1)
    expected = np.linalg.det(np.eye(3) + slopes @ np.linalg.inv(where.affine[:3, :3]))
    assert jacobian_of_displacement(displacement, where) == pytest.approx(expected, abs=1e-4)
    in_file_order = np.asfortranarray(displacement)
    assert np.array_equal(jacobian_of_displacement(in_file_order, where), jacobian_of_displacement(displacement, where))


@pytest.mark.parametrize("name", ["RAS", "LIA", "oblique"])
def test_itk_agrees(name):
    """Its filter ignores the axes' directions, so it gets the displacement along the grid's own axes."""
    where = grid(name)
    displacement = waves(places(where)).astype(np.float32)
    along_axes = (displacement @ where.directions).astype(np.float32)
    field = sitk.GetImageFromArray(np.ascontiguousarray(along_axes.transpose(2, 1, 0, 3)), isVector=True)
    field.SetSpacing(where.spacing)
    itk = sitk.GetArrayFromImage(sitk.DisplacementFieldJacobianDeterminant(field)).T
    inner = (slice(1, -1),) * 3  # at the border ITK uses other differences
    assert jacobian_of_displacement(displacement, where)[inner] == pytest.approx(itk[inner], abs=1e-4)


def test_of_a_flow_it_is_what_the_loop_counts_folds_with():
    """In voxels or in mm, a flow folds in the same places; an affine before it multiplies the determinant."""
    where = grid("oblique")
    flow = np.random.default_rng(1).normal(0, 0.6, (3, *where.shape)).astype(np.float32)
    affine = np.diag([1.2, 0.9, 1.1, 1.0])
    determinant = jacobian_of_displacement(SpatialTransform(affine, flow, where).displacement(where), where)
    assert determinant / np.linalg.det(affine) == pytest.approx(jacobian_determinant(flow), abs=1e-4)
    assert folded_share(determinant) == np.mean(jacobian_determinant(flow) <= 0) > 0.01


def test_along_an_axis_of_one_voxel_nothing_changes():
    where = grid("RAS", (6, 5, 1))
    displacement = np.zeros((6, 5, 1, 3), np.float32)
    displacement[..., 0] = 0.25 * places(where)[..., 0]
    assert jacobian_of_displacement(displacement, where) == pytest.approx(np.full((6, 5, 1), 1.25), abs=1e-6)


def test_roughness_and_folds_within_a_mask():
    determinant = np.array([np.e, 1 / np.e, -3.0, 0.0]).reshape(4, 1, 1)
    mask = np.array([1, 1, 0, 0]).reshape(4, 1, 1)
    assert sd_log_jacobian(determinant, mask) == pytest.approx(1.0)
    assert sd_log_jacobian(determinant) == pytest.approx(1.0)  # folded voxels have no logarithm
    assert np.isnan(sd_log_jacobian(-determinant, mask))
    assert folded_share(determinant) == 0.5 and folded_share(determinant, mask) == 0
    with pytest.raises(InputError, match=r"mask: got shape \(4, 1, 1\) with 0 voxels"):
        folded_share(determinant, np.zeros((4, 1, 1)))
    with pytest.raises(InputError, match="displacement: got shape"):
        jacobian_of_displacement(np.zeros((4, 4, 4, 3)), grid("RAS"))
