"""Voxel grids, and the working grid of the network."""

import nibabel as nib
import numpy as np
import pytest

from runtime.errors import InputError
from runtime.geometry.grid import Grid, closest_ras, plan_working_grid, reorient, reorient_array

ROTATION = np.array([[0.96, -0.28, 0.0], [0.28, 0.96, 0.0], [0.0, 0.0, 1.0]])  # 16 degrees about S
COLUMNS = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}


def make(shape=(40, 50, 30), axes="RAS", spacing=(1.0, 1.0, 1.0), linear=None, origin=(7.0, -11.0, 13.0)) -> Grid:
    affine = np.eye(4)
    directions = np.array([COLUMNS[letter] for letter in axes], float).T
    affine[:3, :3] = (np.eye(3) if linear is None else linear) @ directions @ np.diag(spacing)
    affine[:3, 3] = origin
    return Grid(shape, affine)


def box(grid: Grid, first, last) -> np.ndarray:
    mask = np.zeros(grid.shape, bool)
    mask[tuple(slice(a, b + 1) for a, b in zip(first, last, strict=True))] = True
    return mask


def test_spacing_is_the_distance_of_neighbouring_voxels():
    grid = make(spacing=(1.0, 2.0, 3.5), linear=ROTATION, axes="LIA")
    voxel = grid.to_physical(np.array([3.0, 4.0, 5.0]))
    for axis, step in enumerate(np.eye(3)):
        neighbour = grid.to_physical(np.array([3.0, 4.0, 5.0]) + step)
        assert np.linalg.norm(neighbour - voxel) == pytest.approx(grid.spacing[axis])


def test_voxel_map_goes_through_space_and_the_physical_map():
    one, other = make(linear=ROTATION), make(axes="PIR", spacing=(2.0, 1.0, 0.5))
    shift = np.eye(4)
    shift[:3, 3] = 6, -4, 3
    voxel = np.array([5.0, 6.0, 7.0])
    expected = other.to_voxels(one.to_physical(voxel) + np.array([6, -4, 3]))
    assert one.voxel_map(other, shift) @ (*voxel, 1) == pytest.approx([*expected, 1])


def test_equal_means_exactly_and_close_allows_for_rounding():
    grid = make()
    nudged = Grid(grid.shape, grid.affine + np.array([[0, 0, 0, 1e-4]] + 3 * [[0, 0, 0, 0]]))
    assert grid == make() and hash(grid) == hash(make())
    assert grid != nudged and grid.close(nudged) and not grid.close(nudged, tolerance_mm=1e-5)
    assert not grid.close(make(shape=(40, 50, 31)))


def test_an_affine_cannot_be_changed_behind_a_grids_back():
    with pytest.raises(ValueError, match="read-only"):
        make().affine[0, 0] = 2


@pytest.mark.parametrize(
    ("affine", "fault"),
    [
        (np.diag([1, 1, 0, 1.0]), "singular"),
        (np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]), "singular"),
        (np.diag([1, np.nan, 1, 1.0]), "not finite"),
        (np.diag([1, 1, 1, 2.0]), "last row"),
        (np.eye(3), "4x4"),
    ],
)
def test_what_cannot_be_a_grid_is_refused(affine, fault):
    with pytest.raises(InputError, match=fault):
        Grid((4, 4, 4), affine)


def test_tiny_and_huge_voxels_are_not_singular():
    assert Grid((4, 4, 4), np.diag([1e-4, 1e-4, 1e-4, 1])).spacing == pytest.approx((1e-4,) * 3)
    assert Grid((4, 4, 4), np.diag([0.5, 0.5, 500, 1])).spacing == pytest.approx((0.5, 0.5, 500))


def test_empty_shapes_are_refused():
    with pytest.raises(InputError, match="three sizes"):
        Grid((4, 0, 4), np.eye(4))


@pytest.mark.parametrize("axes", ["RAS", "LPS", "LIA", "PIR", "ASL", "SRP"])
def test_closest_ras_agrees_with_nibabel(axes):
    grid = make(axes=axes, linear=ROTATION, spacing=(1.0, 1.5, 2.0))
    data = np.random.default_rng(0).random(grid.shape)
    expected = nib.as_closest_canonical(nib.Nifti1Image(data, grid.affine))
    order = closest_ras(grid.affine)
    assert np.array_equal(reorient_array(data, *order), expected.get_fdata())
    assert reorient(grid, *order).affine == pytest.approx(expected.affine)


@pytest.mark.parametrize("axes", ["RAS", "LPS", "LIA", "PIR", "ASL"])
@pytest.mark.parametrize("spacing", [1.0, 1.008])
def test_the_working_voxels_are_fixed_voxels_where_spacing_allows(axes, spacing):
    grid = make(axes=axes, linear=ROTATION, spacing=(spacing,) * 3)
    mask = box(grid, (12, 10, 5), (30, 33, 22))
    working = plan_working_grid(grid, mask, 1.0)
    steps = working.voxel_map(grid)[:3, :3]
    assert np.abs(steps).sum(axis=0) == pytest.approx(1) and np.abs(steps).max(axis=0) == pytest.approx(1)
    assert working.voxel_map(grid)[:3, 3] == pytest.approx(np.rint(working.voxel_map(grid)[:3, 3]), abs=1e-9)
    assert np.all(np.diag(working.affine) > 0), "axes in the order R, A, S"


def test_no_fixed_voxels_where_the_spacing_is_more_than_one_percent_off():
    grid = make(spacing=(1.02, 1.02, 1.02))
    working = plan_working_grid(grid, box(grid, (12, 10, 5), (30, 33, 22)), 1.0)
    assert working.spacing == pytest.approx((1, 1, 1))


def sheared() -> Grid:
    return make(linear=np.array([[1, 0.2, 0], [0, 0.98, 0.3], [0.0, 0, 0.95]]), spacing=(0.5, 0.5, 2.4))


@pytest.mark.parametrize(
    "grid",
    [
        make(),
        make(axes="LIA", linear=ROTATION),
        make(spacing=(0.5, 0.5, 5.0), axes="PSR"),
        sheared(),
        make(shape=(7, 5, 3), spacing=(2.0, 2.0, 2.0)),
    ],
    ids=["ras", "oblique", "thick", "shear", "tiny"],
)
@pytest.mark.parametrize("spacing", [1.0, 2.5])
def test_the_working_grid_holds_the_foreground_and_its_margin(grid, spacing):
    first, last = np.array(grid.shape) // 3, np.array(grid.shape) * 2 // 3
    mask = box(grid, first, last)
    working = plan_working_grid(grid, mask, spacing, margin_mm=3.0)
    assert all(size % 8 == 0 and size >= 16 for size in working.shape)
    assert working.orthogonal and working.spacing == pytest.approx((spacing,) * 3, rel=0.01)
    assert np.linalg.det(working.affine[:3, :3]) > 0
    voxels = working.to_voxels(grid.to_physical(np.argwhere(mask).astype(float)))
    assert voxels.min() >= 0 and np.all(voxels <= np.array(working.shape) - 1)
    border = working.to_voxels(grid.corners)
    for axis in range(3):  # the margin is there, or the image ends
        assert voxels[:, axis].min() >= min(3.0 / spacing, voxels[:, axis].min() - border[:, axis].min()) - 1e-6
        room = working.shape[axis] - 1 - voxels[:, axis].max()
        assert room >= min(3.0 / spacing, border[:, axis].max() - voxels[:, axis].max()) - 1 - 1e-6


def test_a_sheared_grid_gets_the_nearest_rotation():
    """The polar factor is the rotation closest to the sheared axes."""
    grid = sheared()
    working = plan_working_grid(grid, np.ones(grid.shape, bool), 1.0)
    rotation = working.affine[:3, :3]
    best = np.linalg.norm(rotation - grid.directions)
    for axis in range(3):
        for angle in (-0.01, 0.01):
            a, b = (axis + 1) % 3, (axis + 2) % 3
            turn = np.eye(3)
            turn[a, a] = turn[b, b] = np.cos(angle)
            turn[b, a], turn[a, b] = np.sin(angle), -np.sin(angle)
            assert np.linalg.norm(turn @ rotation - grid.directions) > best


def test_the_margin_ends_at_the_border_and_rounding_may_go_beyond():
    grid = make(shape=(40, 48, 30))
    working = plan_working_grid(grid, np.ones(grid.shape, bool), 1.0)
    assert working.shape == (40, 48, 32)
    assert grid.to_voxels(working.to_physical(np.zeros(3))) == pytest.approx([0, 0, -1])


def test_an_empty_foreground_is_refused():
    with pytest.raises(InputError, match="foreground: is empty"):
        plan_working_grid(make(), np.zeros(make().shape, bool), 1.0)


def test_a_foreground_of_another_grid_is_refused():
    with pytest.raises(InputError, match="expected \\(40, 50, 30\\)"):
        plan_working_grid(make(), np.ones((4, 4, 4), bool), 1.0)


def test_a_foreground_smaller_than_what_the_network_sees_is_refused():
    """Forty voxels of a hundredth of a millimetre: most likely a header in another unit."""
    tiny = Grid((40, 40, 40), np.diag((0.01, 0.01, 0.01, 1.0)))
    with pytest.raises(InputError, match=r"^--fixed: its foreground spans 0\.4 mm at most, expected several voxels "):
        plan_working_grid(tiny, np.ones(tiny.shape, bool), spacing=1.0)
