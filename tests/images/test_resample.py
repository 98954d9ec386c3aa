"""Resampling, against the NumPy reference and closed forms."""

import numba
import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from runtime.errors import InputError
from runtime.geometry.flow import sample
from runtime.geometry.grid import Grid
from runtime.host.kernels import on_threads
from runtime.images.resampling.resample import resample, resample_series, resample_through, smooth

RNG = np.random.default_rng(5)


def turned(shape, degrees=(10.0, -7.0, 5.0), spacing=(1.0, 1.2, 0.9), origin=(-8.0, 3.0, 11.0)) -> Grid:
    """An oblique grid."""
    affine = np.eye(4)
    for axis, angle in enumerate(np.radians(degrees)):
        a, b = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[b, a], turn[a, b] = np.sin(angle), -np.sin(angle)
        affine[:3, :3] = turn @ affine[:3, :3]
    affine[:3, :3] = affine[:3, :3] @ np.diag(spacing)
    affine[:3, 3] = origin
    return Grid(shape, affine)


SOURCE = turned((14, 11, 13))
TARGET = turned((12, 16, 9), degrees=(-4.0, 12.0, 8.0), spacing=(1.1, 1.0, 1.3), origin=(-9.0, 1.0, 12.0))
PHYSICAL = np.array([[1.1, 0.1, 0, 1], [-0.05, 0.95, 0.1, -2], [0, 0.1, 1.0, 0.5], [0, 0, 0, 1]])


def image(grid: Grid, dtype=np.float32) -> np.ndarray:
    return RNG.integers(1, 200, grid.shape).astype(dtype)


def places(grid: Grid) -> np.ndarray:
    """The positions of all voxels, (I, J, K, 3), RAS mm."""
    return grid.to_physical(np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1).astype(float))


def through(physical: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ physical[:3, :3].T + physical[:3, 3]


def definition(values: np.ndarray, source: Grid, points: np.ndarray) -> np.ndarray:
    return sample(values, np.moveaxis(source.to_voxels(points), -1, 0))


def nearest_definition(values: np.ndarray, source: Grid, points: np.ndarray, outside: float) -> np.ndarray:
    index = np.floor(source.to_voxels(points) + 0.5).astype(int)
    inside = np.all((index >= 0) & (index < source.shape), axis=-1)
    i, j, k = np.moveaxis(np.where(inside[..., None], index, 0), -1, 0)
    return np.where(inside, values[i, j, k], outside)


def test_linear_resampling_is_the_definition():
    values = image(SOURCE)
    expected = definition(values, SOURCE, through(PHYSICAL, places(TARGET)))
    result = resample(values, SOURCE, TARGET, PHYSICAL)
    assert result == pytest.approx(expected, abs=1e-3) and result.dtype == np.float32
    assert 0.2 < np.mean(expected > 0) < 0.98, "the case has voxels inside and outside"


def test_a_field_is_the_definition_and_one_interpolation():
    values = image(SOURCE)
    displacement = RNG.normal(0, 2, (*TARGET.shape, 3)).astype(np.float32)
    expected = definition(values, SOURCE, places(TARGET) + displacement)
    assert resample_through(values, SOURCE, displacement, TARGET) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32])
def test_nearest_takes_the_voxel_that_holds_the_point(dtype):
    values = image(SOURCE, dtype)
    expected = nearest_definition(values, SOURCE, through(PHYSICAL, places(TARGET)), 0)
    result = resample(values, SOURCE, TARGET, PHYSICAL, order="nearest")
    assert np.array_equal(result, expected) and result.dtype == dtype
    displacement = RNG.normal(0, 2, (*TARGET.shape, 3)).astype(np.float32)
    expected = nearest_definition(values, SOURCE, places(TARGET) + displacement, 0)
    assert np.array_equal(resample_through(values, SOURCE, displacement, TARGET, "nearest"), expected)


def test_an_affine_written_as_a_field_gives_the_same():
    values = image(SOURCE)
    displacement = (through(PHYSICAL, places(TARGET)) - places(TARGET)).astype(np.float32)
    expected = resample(values, SOURCE, TARGET, PHYSICAL)
    assert resample_through(values, SOURCE, displacement, TARGET) == pytest.approx(expected, abs=1e-2)


def test_what_is_outside_counts_as_told():
    """Outside a CT is air, not zero: resampling commutes with adding a constant to image and outside value."""
    values = image(SOURCE)
    displacement = RNG.normal(0, 2, (*TARGET.shape, 3)).astype(np.float32)
    air = resample(values - 1000, SOURCE, TARGET, PHYSICAL, outside=-1000)
    assert air == pytest.approx(resample(values, SOURCE, TARGET, PHYSICAL) - 1000, abs=1e-3)
    air = resample_through(values - 1000, SOURCE, displacement, TARGET, outside=-1000)
    assert air == pytest.approx(resample_through(values, SOURCE, displacement, TARGET) - 1000, abs=1e-3)
    labels = resample(image(SOURCE, np.int16), SOURCE, TARGET, PHYSICAL, order="nearest", outside=-1)
    assert np.array_equal(labels == -1, resample(values, SOURCE, TARGET, PHYSICAL, order="nearest") == 0)


def test_whole_voxel_moves_copy_exactly():
    """Flips, permutations, crops and padding of the same lattice change no bit, whatever the rounding of the affine."""
    values = RNG.random(SOURCE.shape, dtype=np.float32)
    crop = SOURCE.crop((2, -3, 1), (8, 17, 9))
    expected = np.zeros(crop.shape, np.float32)
    expected[:, 3:14] = values[2:10, :, 1:10]
    assert np.array_equal(resample(values, SOURCE, crop), expected)
    rounded = Grid(crop.shape, crop.affine.astype(np.float32) * (1 + 1e-7))
    assert np.array_equal(resample(values, SOURCE, rounded), expected)
    flipped = SOURCE.affine @ np.array([[0, -1, 0, 13], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    result = resample(values, SOURCE, Grid((11, 14, 13), flipped))
    assert np.array_equal(result, values[::-1].transpose(1, 0, 2))


def test_memory_order_and_type_do_not_matter():
    values = image(SOURCE)
    expected = resample(values, SOURCE, TARGET, PHYSICAL)
    assert np.array_equal(resample(np.asfortranarray(values), SOURCE, TARGET, PHYSICAL), expected)
    assert np.array_equal(resample(values.astype(np.int16), SOURCE, TARGET, PHYSICAL), expected)


def test_displacements_that_are_not_finite_or_far_away_give_the_outside():
    values = image(SOURCE)
    displacement = np.zeros((*TARGET.shape, 3), np.float32)
    displacement[0, 0, 0], displacement[1, 1, 1], displacement[2, 2, 2] = np.nan, np.inf, 1e30
    for order in ("linear", "nearest"):
        result = resample_through(values, SOURCE, displacement, TARGET, order, outside=-7)
        assert result[0, 0, 0] == result[1, 1, 1] == result[2, 2, 2] == -7
        assert np.isfinite(result).all()


def wave(period_mm: float, grid: Grid) -> np.ndarray:
    return np.cos(2 * np.pi * places(grid)[..., 0] / period_mm).astype(np.float32)


def test_coarse_targets_do_not_alias():
    """A wave too fine for a grid of 4 mm disappears on it instead of turning into another; a slow one stays."""
    source = Grid((96, 8, 8), np.diag([1.0, 1, 1, 1]))
    target = Grid((22, 8, 8), np.array([[4.0, 0, 0, 4], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))
    inner = (slice(2, -2), slice(1, -1), slice(1, -1))
    fine = wave(4.0, source)
    assert np.abs(resample(fine, source, target, order="nearest")[inner]).max() > 0.9
    assert np.abs(resample(fine, source, target)[inner]).max() < 0.1
    zero = np.zeros((*target.shape, 3), np.float32)
    assert np.abs(resample_through(fine, source, zero, target)[inner]).max() < 0.1
    slow = resample(wave(48.0, source), source, target)[inner]
    assert slow == pytest.approx(wave(48.0, target)[inner], abs=0.05)


def test_targets_of_like_spacing_are_not_smoothed():
    source = Grid((40, 6, 6), np.eye(4))
    target = Grid((20, 6, 6), np.diag([1.4, 1, 1, 1]))
    values = image(source)
    assert resample(values, source, target) == pytest.approx(definition(values, source, places(target)), abs=1e-3)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_smoothing_spreads_a_point_as_a_gaussian(axis):
    values = np.zeros((25, 25, 25), np.float32)
    values[12, 12, 12] = 1
    sigma = [0.0, 0.0, 0.0]
    sigma[axis] = 2.0
    line = np.moveaxis(smooth(values, tuple(sigma)), axis, 0)[:, 12, 12]
    distance = np.arange(25) - 12
    assert np.sum(line) == pytest.approx(1)
    assert np.sqrt(np.sum(line * distance**2)) == pytest.approx(2.0, rel=0.02)


def test_smoothing_keeps_a_constant_up_to_the_border():
    assert smooth(np.full((5, 6, 1), 3.0, np.float32), (2.0, 1.0, 4.0)) == pytest.approx(np.full((5, 6, 1), 3.0))


def test_wrong_shapes_and_orders_are_refused():
    with pytest.raises(InputError, match="order: got 'lanczos'"):
        resample(image(SOURCE), SOURCE, TARGET, order="lanczos")
    with pytest.raises(InputError, match="image: holds float32, expected the integers"):
        resample(image(SOURCE), SOURCE, TARGET, order="smooth")
    with pytest.raises(InputError, match="image: got shape"):
        resample(image(TARGET), SOURCE, TARGET)
    with pytest.raises(InputError, match="displacement: got shape"):
        resample_through(image(SOURCE), SOURCE, np.zeros((*SOURCE.shape, 3), np.float32), TARGET)


def voxels_at(points: np.ndarray) -> np.ndarray:
    return np.moveaxis(SOURCE.to_voxels(points), -1, 0)


def inside(voxels: np.ndarray) -> np.ndarray:
    return np.all([(v >= 0) & (v <= size - 1) for v, size in zip(voxels, SOURCE.shape, strict=True)], axis=0)


@pytest.mark.parametrize("bent", [False, True])
def test_cubic_is_scipys_spline(bent):
    values = image(SOURCE)
    displacement = RNG.normal(0, 1.5, (*TARGET.shape, 3)).astype(np.float32)
    points = places(TARGET) + displacement if bent else through(PHYSICAL, places(TARGET))
    expected = map_coordinates(values.astype(np.float64), voxels_at(points), order=3, mode="mirror")
    there = inside(voxels_at(points))
    assert 0.2 < there.mean() < 0.98, "the case has voxels inside and outside"
    if bent:
        result = resample_through(values, SOURCE, displacement, TARGET, "cubic", outside=-5)
    else:
        result = resample(values, SOURCE, TARGET, PHYSICAL, "cubic", outside=-5)
    assert result[there] == pytest.approx(expected[there], abs=2e-3) and result.dtype == np.float32
    far = np.any([(v <= -1) | (v >= n) for v, n in zip(voxels_at(points), SOURCE.shape, strict=True)], axis=0)
    assert (result[far] == -5).all()


@pytest.mark.parametrize("shape", [(1, 2, 3), (4, 1, 2), (30, 2, 1)])
def test_cubic_copes_with_axes_of_few_voxels(shape):
    source = Grid(shape, np.eye(4))
    values = image(source)
    target = Grid(shape, source.affine + np.array([[0, 0, 0, 0.4], [0, 0, 0, 0.3], [0, 0, 0, 0.2], [0, 0, 0, 0]]))
    points = np.moveaxis(places(target), -1, 0)
    expected = map_coordinates(values.astype(np.float64), points, order=3, mode="mirror")
    there = np.all([p <= n - 1 for p, n in zip(points, shape, strict=True)], axis=0)
    assert resample(values, source, target, order="cubic")[there] == pytest.approx(expected[there], abs=2e-3)


def test_a_smooth_image_is_restored_better_by_cubic_than_by_linear():
    source = Grid((24, 24, 24), np.eye(4))
    target = Grid((20, 20, 20), source.crop((1.5, 1.3, 1.7), (20, 20, 20)).affine)
    truth = wave(7.0, target)
    cubic, linear = (resample(wave(7.0, source), source, target, order=order) for order in ("cubic", "linear"))
    assert np.abs(cubic - truth).max() < 0.2 * np.abs(linear - truth).max()


def votes_definition(labels: np.ndarray, voxels: np.ndarray, sigma: float) -> np.ndarray:
    """The Gaussian sum of every label over the whole image, and the label with the largest."""
    names = np.unique(labels)
    away = places(Grid(labels.shape, np.eye(4)))[..., None, :] - voxels
    weights = np.exp(-0.5 * (away**2).sum(axis=-1) / sigma**2)
    sums = [np.where(labels[..., None] == name, weights, 0).sum(axis=(0, 1, 2)) for name in names]
    return names[np.argmax(sums, axis=0)]


def test_smooth_labels_go_to_the_label_with_most_votes():
    coarse = np.random.default_rng(8).integers(1, 5, (6, 6, 6)).astype(np.int16) * 1000
    labels = coarse.repeat(3, 0).repeat(3, 1).repeat(3, 2)
    source, inner = Grid(labels.shape, np.eye(4)), Grid((9, 9, 9), np.eye(4)).crop((4, 4, 4), (9, 9, 9))
    displacement = np.random.default_rng(9).uniform(-1.2, 1.2, (*inner.shape, 3)).astype(np.float32)
    result = resample_through(labels, source, displacement, inner, "smooth")
    expected = votes_definition(labels, (places(inner) + displacement).reshape(-1, 3), 0.7).reshape(inner.shape)
    assert np.mean(result == expected) > 0.99, "only voxels beyond 2.5 standard deviations are not heard"
    assert result.dtype == labels.dtype and set(np.unique(result)) <= set(np.unique(labels))
    nearest = resample_through(labels, source, displacement, inner, "nearest")
    assert 0.005 < np.mean(result != nearest) < 0.3


def ball(radius: float, grid: Grid, centre=(0.0, 0.0, 0.0)) -> np.ndarray:
    return (np.linalg.norm(places(grid) - centre, axis=-1) < radius).astype(np.uint8)


def cube(size: int, spacing: float) -> Grid:
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = -spacing * (size - 1) / 2
    return Grid((size, size, size), affine)


def test_smooth_labels_make_a_ball_rounder_than_the_nearest_voxels():
    source, fine = cube(15, 2.0), cube(60, 0.45)
    coarse, truth = ball(9.3, source), ball(9.3, fine)
    wrong = [np.sum(resample(coarse, source, fine, order=order) != truth) for order in ("smooth", "nearest")]
    assert wrong[0] < 0.85 * wrong[1]


def test_smooth_labels_keep_a_sheet_of_one_voxel_and_hear_all_voxels_of_a_coarser_target():
    sheet = np.zeros((11, 11, 11), np.int32)
    sheet[:, 5] = 7
    source = Grid(sheet.shape, np.eye(4))
    still = np.zeros((*sheet.shape, 3), np.float32)
    assert np.array_equal(resample_through(sheet, source, still, source, "smooth"), sheet)
    checks = np.indices((24, 24, 24)).sum(axis=0) % 2 * 9
    checks[np.indices((24, 24, 24))[0] % 4 == 0] = 9  # five of eight voxels
    coarse = Grid((4, 4, 4), np.diag([4.0, 4, 4, 1]) + np.array([3 * [0] + [5.5]] * 3 + [[0] * 4]))
    votes = resample(checks.astype(np.int32), Grid(checks.shape, np.eye(4)), coarse, order="smooth")
    assert (votes == 9).all()


@pytest.mark.parametrize("order", ["cubic", "smooth"])
def test_wide_orders_give_the_outside_beyond_the_image_and_copy_whole_voxel_moves(order):
    values = image(SOURCE, np.int32)
    displacement = np.zeros((*TARGET.shape, 3), np.float32)
    displacement[0, 0, 0], displacement[1, 1, 1], displacement[2, 2, 2] = np.nan, np.inf, 1e30
    result = resample_through(values, SOURCE, displacement, TARGET, order, outside=-7)
    assert result[0, 0, 0] == result[1, 1, 1] == result[2, 2, 2] == -7
    assert np.isfinite(result).all()
    crop = SOURCE.crop((2, -3, 1), (8, 17, 9))
    expected = np.zeros(crop.shape)
    expected[:, 3:14] = values[2:10, :, 1:10]
    assert np.array_equal(resample(values, SOURCE, crop, order=order), expected)


@pytest.mark.parametrize("order", ["linear", "cubic"])
def test_nan_outside_is_outside_alone(order):
    """Positions within the image, up to its outermost voxels, have its values; those beyond have none."""
    source = Grid((9, 8, 7), np.eye(4))
    values, target = image(source), Grid((17, 15, 13), np.diag([0.5, 0.5, 0.5, 1.0]))
    whole = target.crop((-2, -2, -2), tuple(size + 4 for size in target.shape))
    still = np.zeros((*whole.shape, 3), np.float32)
    within = np.zeros(whole.shape, bool)
    within[(slice(2, -2),) * 3] = True
    for result, expected in (
        (resample(values, source, whole, order=order, outside=np.nan), resample(values, source, target, order=order)),
        (
            resample_through(values, source, still, whole, order, np.nan),
            resample_through(values, source, still[2:-2, 2:-2, 2:-2], target, order),
        ),
    ):
        assert np.isfinite(result[within]).all() and np.isnan(result[0]).all()
        assert result[within].reshape(target.shape) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("order", ["linear", "cubic", "nearest", "smooth"])
def test_a_series_is_its_volumes_one_by_one(order):
    series = RNG.integers(0, 5, (*SOURCE.shape, 3)).astype(np.int16)
    displacement = RNG.normal(0, 1, (*TARGET.shape, 3)).astype(np.float32)
    result = resample_series(series, SOURCE, displacement, TARGET, order)
    assert result.shape == (*TARGET.shape, 3) and result.flags.f_contiguous
    for number in range(3):
        volume = resample_through(series[..., number], SOURCE, displacement, TARGET, order)
        assert np.array_equal(result[..., number], volume) and result.dtype == volume.dtype
    with pytest.raises(InputError, match="series: got shape"):
        resample_series(series[..., 0], SOURCE, displacement, TARGET)


@pytest.mark.parametrize(("order", "dtype"), [("linear", np.float32), ("cubic", np.float32), ("smooth", np.int32)])
def test_the_number_of_threads_changes_no_bit(order, dtype):
    source = Grid((40, 41, 42), np.eye(4))
    values, target = image(source, dtype), cube(45, 0.9)
    displacement = RNG.normal(20, 5, (*target.shape, 3)).astype(np.float32)
    results = []
    for threads in (1, numba.get_num_threads()):
        with on_threads(threads):
            results.append(resample_through(values, source, displacement, target, order))
    assert np.array_equal(*results)


@pytest.mark.parametrize("beyond", [0.25, 0.5, 0.75, 1.0])
def test_linear_goes_over_into_the_outside_within_a_voxel(beyond):
    """ITK instead repeats the outermost voxel for half a voxel and then stops at once (docs/guide/transforms.md)."""
    image, place = np.full((6, 6, 6), 100, np.float32), np.eye(4)
    place[0, 3] = -beyond
    found = resample(image, Grid(image.shape, np.eye(4)), Grid((1, 6, 6), place), outside=20)
    assert found == pytest.approx(np.full((1, 6, 6), 100 - beyond * 80), abs=1e-4)
