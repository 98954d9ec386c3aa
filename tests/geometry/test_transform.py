"""Transforms: the formula and the compiled displacement."""

import numpy as np
import pytest

from runtime.errors import InputError
from runtime.geometry import transform as transforms
from runtime.geometry.flow import identity, sample
from runtime.geometry.grid import Grid
from runtime.geometry.transform import AffineTransform, Chain, SpatialTransform, from_displacement
from runtime.images.resampling.resample import resample_through

COLUMNS = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}
TURN = np.array([[0.96, -0.28, 0], [0.28 * 0.8, 0.96 * 0.8, -0.6], [0.28 * 0.6, 0.96 * 0.6, 0.8]])
FIXED = {"RAS": ("RAS", np.eye(3)), "LPS": ("LPS", np.eye(3)), "LIA": ("LIA", np.eye(3)), "oblique": ("RAS", TURN)}


def grid(name: str, shape=(24, 28, 20), spacing=(1.5, 1.0, 2.0)) -> Grid:
    """A grid centred on the origin of space."""
    axes, turn = FIXED[name]
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.array([COLUMNS[letter] for letter in axes], float).T @ np.diag(spacing)
    affine[:3, 3] = np.array([2.0, -3.0, 4.0]) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(shape, affine)


def places(where: Grid) -> np.ndarray:
    return where.to_physical(np.moveaxis(identity(where.shape), 0, -1))


def bumps(points: np.ndarray) -> np.ndarray:
    """An image without symmetry, with a closed form at every point of space."""
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


def definition(transform: SpatialTransform, points: np.ndarray) -> np.ndarray:
    """The formula in NumPy, as the reference."""
    voxels = transform.grid.to_voxels(points)
    inside = np.clip(voxels, 0, np.array(transform.grid.shape) - 1)
    moved = transform.grid.to_physical(voxels + sample(transform.flow.astype(np.float64), inside.T).T)
    return moved @ transform.affine[:3, :3].T + transform.affine[:3, 3]


def test_the_kernels_are_the_definition_inside_and_outside_the_working_grid():
    transform, fixed = example(), grid("LIA")
    points = places(fixed).reshape(-1, 3)
    voxels = transform.grid.to_voxels(points)
    inside = np.all((voxels >= 0) & (voxels <= np.array(transform.grid.shape) - 1), axis=1)
    assert 0.05 < inside.mean() < 0.95
    expected = definition(transform, points)
    assert transform.points(points) == pytest.approx(expected, abs=1e-4)
    displacement = transform.displacement(fixed)
    assert displacement.reshape(-1, 3) == pytest.approx(expected - points, abs=1e-4)
    assert displacement.dtype == np.float32


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (1, 2, 3, 0), (3, 2, 1, 0), (0, 3, 1, 2), (2, 3, 1, 0)])
def test_the_order_of_a_flow_in_memory_does_not_matter(order):
    transform, fixed = example(), grid("LIA")
    ordered = np.ascontiguousarray(transform.flow.transpose(order)).transpose(np.argsort(order))
    other = SpatialTransform(transform.affine, ordered, transform.grid)
    points = places(fixed).reshape(-1, 3)
    assert other.points(points) == pytest.approx(transform.points(points), abs=1e-5)
    assert other.displacement(fixed) == pytest.approx(transform.displacement(fixed), abs=1e-5)
    assert np.shares_memory(other.lattice.flow, ordered) == (order[3] == 0), "channels-last flows are not copied"


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("name", FIXED)
def test_a_displacement_becomes_a_transform_and_a_displacement_again(name, order):
    fixed = grid(name)
    displacement = np.random.default_rng(4).normal(0, 9, (*fixed.shape, 3)).astype(np.float32, order=order)
    transform = from_displacement(displacement, fixed)
    assert transform.displacement(fixed) == pytest.approx(displacement, abs=1e-4)
    voxels = np.random.default_rng(5).uniform(0, np.array(fixed.shape) - 1, (40, 3))
    points = fixed.to_physical(voxels)
    expected = points + sample(np.moveaxis(displacement, -1, 0), voxels.T).T
    assert transform.points(points) == pytest.approx(expected, abs=1e-4)


def test_displacements_that_are_none_are_refused():
    fixed = grid("RAS", (4, 5, 6))
    with pytest.raises(InputError, match=r"displacement: got shape \(4, 5, 6\)"):
        from_displacement(np.zeros(fixed.shape), fixed)
    with pytest.raises(InputError, match="displacement: has NaN or Inf"):
        from_displacement(np.resize([np.inf, -np.inf], (*fixed.shape, 3)), fixed)
    with pytest.raises(InputError, match=r"points: got shape \(3,\), expected \(N, 3\)"):
        example().points(np.zeros(3))


def test_a_chain_goes_through_its_links_in_order(monkeypatch):
    """A grid is mapped in slabs; their boundaries make no difference."""
    turn, fixed = AffineTransform(example().affine), grid("LIA", (9, 8, 7))
    points = places(fixed).reshape(-1, 3)
    expected = definition(example(), turn.points(points))
    chain = Chain((turn, example()))
    assert chain.points(points) == pytest.approx(expected, abs=1e-4)
    whole = chain.displacement(fixed)
    assert whole.reshape(-1, 3) == pytest.approx(expected - points, abs=1e-4)
    assert whole.dtype == np.float32 and whole.T.flags.c_contiguous, "the order of files"
    monkeypatch.setattr(transforms, "SLAB", 3 * 9 * 8)
    assert np.array_equal(chain.displacement(fixed), whole)
    other_way = Chain((example(), turn)).points(points)
    assert np.abs(other_way - expected).max() > 1


def test_affines_in_a_chain_become_part_of_the_fields_beside_them():
    """One field among affines is sampled once, and a numerical inverse stays a single link."""
    bend, turn = example(), AffineTransform(example().affine)
    points = np.random.default_rng(6).uniform(-20, 20, (30, 3))
    chain = Chain((turn, Chain((turn, bend)), turn))
    assert len(chain.merged) == 1
    expected = turn.points(definition(bend, turn.points(turn.points(points))))
    assert chain.points(points) == pytest.approx(expected, abs=1e-4)
    assert len(chain.inverse().merged) == 1
    assert len(Chain((bend, turn, bend.inverse())).merged) == 2
    assert len(Chain((turn, turn.inverse())).merged) == 1


def test_an_affine_has_a_displacement_on_any_grid():
    affine, fixed = AffineTransform(example().affine), grid("oblique", (5, 6, 7))
    assert affine.displacement(fixed) == pytest.approx(
        affine.points(places(fixed).reshape(-1, 3)).reshape(*fixed.shape, 3) - places(fixed), abs=1e-5
    )
    assert affine.points([[0.0, 0.0, 0.0]])[0] == pytest.approx(affine.matrix[:3, 3])


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


def test_sampling_the_moving_image_at_the_moved_points_is_resampling_through_the_displacement():
    transform, fixed, moving = example(), grid("RAS"), grid("oblique")
    values = bumps(places(moving)).astype(np.float32)
    points = transform.points(places(fixed).reshape(-1, 3)).reshape(*fixed.shape, 3)
    expected = sample(values, np.moveaxis(moving.to_voxels(points), -1, 0))
    assert resample_through(values, moving, transform.displacement(fixed), fixed) == pytest.approx(expected, abs=1e-2)
