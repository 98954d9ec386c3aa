"""Inverses of transforms: maps with a known inverse, folds, and SimpleITK's inverse field as a reference."""

import numba
import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter

from runtime.geometry.flow import identity
from runtime.geometry.grid import Grid
from runtime.geometry.inverse import invert_displacement
from runtime.geometry.jacobian import folded_share, jacobian_of_displacement
from runtime.geometry.transform import (
    TOLERANCE_MM,
    AffineTransform,
    Chain,
    NumericalInverse,
    SpatialTransform,
    from_displacement,
)
from runtime.host.kernels import on_threads

SHAPE = (26, 22, 24)
AFFINE = np.array([[1.1, 0.1, 0, 4], [-0.1, 0.9, 0.05, -6], [0.02, 0.1, 1.05, 3], [0, 0, 0, 1.0]])
AXES = {
    "RAS": np.diag([1.5, 1.0, 2.0]),
    "LIA": np.array([[-1.5, 0, 0], [0, 0, 2.0], [0, -1.0, 0]]),
    "oblique": np.array([[0.96, -0.28, 0], [0.224, 0.768, -0.6], [0.168, 0.576, 0.8]]) @ np.diag([1.5, 1.0, 2.0]),
}


def grid(name: str = "oblique", shape=SHAPE) -> Grid:
    """A grid centred on the origin of space."""
    affine = np.eye(4)
    affine[:3, :3] = AXES[name]
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(shape, affine)


def places(where: Grid) -> np.ndarray:
    return where.to_physical(np.moveaxis(identity(where.shape), 0, -1))


def smooth_flow(size: float, sigma: float = 3.0, shape=SHAPE) -> np.ndarray:
    """A random flow whose components have a standard deviation of `size` voxels; it folds if that is large."""
    noise = np.random.default_rng(3).normal(size=(3, *shape))
    flow = np.stack([gaussian_filter(component, sigma) for component in noise])
    return (size * flow / flow.std()).astype(np.float32)


def smooth(size: float = 0.7) -> SpatialTransform:
    return SpatialTransform(AFFINE, smooth_flow(size), grid())


def turn(degrees: float, axis: int = 2) -> np.ndarray:
    matrix, angle = np.eye(4), np.radians(degrees)
    a, b = (axis + 1) % 3, (axis + 2) % 3
    matrix[a, a] = matrix[b, b] = np.cos(angle)
    matrix[b, a], matrix[a, b] = np.sin(angle), -np.sin(angle)
    return matrix


def length(vectors: np.ndarray) -> np.ndarray:
    return np.linalg.norm(vectors, axis=-1)


@pytest.mark.parametrize("name", AXES)
def test_what_the_transform_takes_away_its_inverse_brings_back(name):
    transform = SpatialTransform(AFFINE, smooth_flow(0.7), grid(name))
    points = np.random.default_rng(0).uniform(-25, 25, (2000, 3))
    found, residual = NumericalInverse(transform).solve(transform.points(points))
    assert residual.max() <= TOLERANCE_MM
    assert found == pytest.approx(points, abs=20 * TOLERANCE_MM), "volume shrinks to a tenth at most"
    assert residual == pytest.approx(length(transform.points(found) - transform.points(points)), abs=1e-6)


@pytest.mark.parametrize("matrix", [turn(40) @ AFFINE, turn(170, 0), np.diag([1.6, 0.7, 1.2, 1.0])])
def test_an_affine_kept_in_a_field_is_inverted_exactly(matrix):
    """Other tools keep the affine within the field: large rotations and scales are no small displacements."""
    where = grid()
    transform = from_displacement(AffineTransform(matrix).displacement(where), where)
    inner = places(where)[2:-2, 2:-2, 2:-2].reshape(-1, 3)
    goals = AffineTransform(matrix).points(inner)
    found, residual = transform.inverse().solve(goals)
    assert residual.max() <= TOLERANCE_MM
    assert found == pytest.approx(inner, abs=5 * TOLERANCE_MM)


def test_a_rotation_and_a_bend_in_one_field():
    where = grid()
    both = Chain((SpatialTransform(np.eye(4), smooth_flow(0.5), where), AffineTransform(turn(60))))
    transform = from_displacement(both.displacement(where), where)
    inner = places(where)[3:-3, 3:-3, 3:-3].reshape(-1, 3)
    found, residual = transform.inverse().solve(transform.points(inner))
    assert residual.max() <= TOLERANCE_MM
    assert found == pytest.approx(inner, abs=20 * TOLERANCE_MM)


def test_a_diffeomorphism_whose_inverse_is_known():
    """x -> x (1 + a |x|^2)^p along rays has an inverse in closed form for p = 1/2: radii r sqrt(1 + a r^2)."""
    where = Grid((41, 41, 41), np.array([[1, 0, 0, -20], [0, 1, 0, -20], [0, 0, 1, -20], [0, 0, 0, 1.0]]))
    a, points = 1e-3, places(where)
    forward = points * np.sqrt(1 + a * length(points)[..., None] ** 2)
    transform = from_displacement((forward - points).astype(np.float32), where)
    inside = length(points) < 18
    squares = length(points)[..., None] ** 2
    radius_squared = (np.sqrt(1 + 4 * a * squares) - 1) / (2 * a)
    expected = points * np.sqrt(radius_squared / np.maximum(squares, 1e-9))
    inversion = invert_displacement(transform, where)
    found = points + inversion.displacement
    assert length(found - expected)[inside].max() < 0.01, "apart only by what lies between the field's voxels"
    assert inversion.unresolved_share == 0 and inversion.residual_mm["max"] <= TOLERANCE_MM


def test_beyond_the_field_the_inverse_goes_on():
    transform = smooth()
    far = np.array([[200.0, 0, 0], [0, -300, 40], [90, 90, 90.0]])
    found, residual = transform.inverse().solve(far)
    assert residual.max() <= TOLERANCE_MM
    assert transform.points(found) == pytest.approx(far, abs=2 * TOLERANCE_MM)


def test_an_inversion_states_its_residuals():
    transform, target = smooth(), grid("LIA", (20, 28, 18))
    inversion = invert_displacement(transform, target)
    found = places(target) + inversion.displacement
    residual = length(transform.points(found.reshape(-1, 3)) - places(target).reshape(-1, 3))
    assert residual.max() == pytest.approx(inversion.residual_mm["max"], abs=1e-4)
    assert inversion.residual_mm["mean"] <= inversion.residual_mm["percentile_95"] <= inversion.residual_mm["max"]
    assert inversion.unresolved_share == 0 and inversion.tolerance == TOLERANCE_MM
    assert inversion.displacement.shape == (*target.shape, 3) and inversion.displacement.dtype == np.float32
    assert inversion.displacement.T.flags.c_contiguous, "the order of files"


def test_a_folded_field_is_inverted_as_far_as_it_goes():
    """Every point has a preimage, but where the field folds not all are found; their share is reported."""
    where = grid()
    transform = SpatialTransform(np.eye(4), smooth_flow(8.0, sigma=2.0), where)
    determinant = jacobian_of_displacement(transform.displacement(where), where)
    assert folded_share(determinant) > 0.3
    inversion = invert_displacement(transform, where)
    found = places(where) + inversion.displacement
    residual = length(transform.points(found.reshape(-1, 3)) - places(where).reshape(-1, 3))
    assert np.mean(residual > TOLERANCE_MM + 1e-4) == pytest.approx(inversion.unresolved_share, abs=0.005)
    assert 0 < inversion.unresolved_share < 0.05
    assert np.isfinite(found).all()


def test_where_a_fold_leaves_a_choice_the_upright_original_is_taken():
    """x - 3 sin(x) / 2 maps three points to each target near 0; at the middle one the map reverses orientation."""
    where = Grid((201, 2, 2), np.array([[0.1, 0, 0, -10], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]))
    displacement = np.zeros((*where.shape, 3), np.float32)
    displacement[..., 0] = -1.5 * np.sin(places(where)[..., 0])
    goals = np.array([[x, 0, 0] for x in (-0.2, -0.05, 0.05, 0.2)])
    found, residual = from_displacement(displacement, where).inverse().solve(goals)
    assert residual.max() <= TOLERANCE_MM
    assert (1 - 1.5 * np.cos(found[:, 0]) > 0).all()


def test_other_transforms_have_inverses_too():
    bend, move = smooth(), AffineTransform(AFFINE)
    chain = Chain((move, bend, AffineTransform(turn(20))))
    points = np.random.default_rng(1).uniform(-15, 15, (50, 3))
    assert chain.inverse().points(chain.points(points)) == pytest.approx(points, abs=20 * TOLERANCE_MM)
    assert chain.inverse().inverse().points(points) == pytest.approx(chain.points(points))
    assert bend.inverse().inverse() is bend
    target = grid("RAS", (9, 8, 7))
    inversion = invert_displacement(chain, target)
    assert inversion.residual_mm["max"] < 5 * TOLERANCE_MM
    exact = invert_displacement(move, target)
    assert exact.displacement == pytest.approx(move.inverse().displacement(target), abs=1e-5)
    assert exact.residual_mm["max"] < 1e-9 and exact.unresolved_share == 0
    assert chain.inverse().displacement(target) == pytest.approx(inversion.displacement, abs=1e-4)


def test_the_number_of_threads_changes_no_bit():
    transform, target = smooth(3.0), grid("RAS", (30, 40, 50))
    results = []
    for threads in (1, numba.get_num_threads()):
        with on_threads(threads):
            results.append(invert_displacement(transform, target))
    assert np.array_equal(*(result.displacement for result in results))
    assert results[0].residual_mm == results[1].residual_mm


def test_points_that_are_no_numbers_stay_none():
    transform = smooth()
    found, residual = transform.inverse().solve(np.array([[np.nan, 0, 0], [1.0, 2.0, 3.0]]))
    assert np.isnan(found[0]).any() and not residual[0] <= TOLERANCE_MM
    assert residual[1] <= TOLERANCE_MM
    assert np.isnan(transform.points(np.array([[np.nan, 0, 0]]))).any()
    assert transform.inverse().solve(np.empty((0, 3)))[0].shape == (0, 3)


def test_itk_inverts_the_same_field():
    """SimpleITK's inverse field agrees where both stay inside; our residual is a thousand times smaller."""
    where = Grid((30, 30, 30), np.diag([-1.0, -1, 1, 1]))  # ITK's own frame, LPS, as the identity
    transform = SpatialTransform(np.eye(4), smooth_flow(0.5, 4.0, where.shape), where)
    displacement = transform.displacement(where)
    lps = np.ascontiguousarray((displacement * np.float32([-1, -1, 1])).transpose(2, 1, 0, 3)).astype(np.float64)
    field = sitk.InvertDisplacementField(
        sitk.GetImageFromArray(lps, isVector=True),
        maximumNumberOfIterations=100,
        maxErrorToleranceThreshold=1e-3,
        meanErrorToleranceThreshold=1e-4,
        enforceBoundaryCondition=False,
    )
    itk = sitk.GetArrayFromImage(field).transpose(2, 1, 0, 3) * [-1, -1, 1]
    inner = (slice(4, -4),) * 3
    ours = invert_displacement(transform, where).displacement
    assert length(ours - itk)[inner].max() < 0.05
    assert length(ours)[inner].mean() > 0.5
