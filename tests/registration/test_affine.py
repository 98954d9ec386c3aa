"""The affine initialisation: known maps are recovered, whatever the headers say, with the same bits in every run."""

import functools
import itertools

import numba
import numpy as np
import pytest

from runtime.errors import InputError
from runtime.geometry.flow import sample
from runtime.geometry.grid import Grid
from runtime.images.intensity import PercentileRule
from runtime.images.mni152 import mni152_file
from runtime.images.resampling.resample import resample
from runtime.images.volume import read_volume
from runtime.registration.affine.align import FixedPyramid, align
from runtime.registration.affine.detail import ascend_detail, detail, weighted_by_agreement
from runtime.registration.affine.gauss_newton import AFFINE, ascend
from runtime.registration.affine.kernels import MOMENTS, SUMS, block_means, correlation_moments, normal_equations
from runtime.registration.affine.limits import LIMITS, Limits
from runtime.registration.affine.pyramid import Level, LevelImage, build_levels, cropped_to_foreground, longest_edge
from runtime.registration.affine.rotations import nearest_orientation, orientations

COLUMNS = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}


def rotation(degrees) -> np.ndarray:
    """(4, 4), about the x, then y, then z axis."""
    matrix = np.eye(4)
    for axis, angle in enumerate(np.radians(degrees)):
        a, b = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(4)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[b, a], turn[a, b] = np.sin(angle), -np.sin(angle)
        matrix = turn @ matrix
    return matrix


def shifted(matrix, shift) -> np.ndarray:
    matrix = np.array(matrix, dtype=float)
    matrix[:3, 3] += shift
    return matrix


def grid(axes="RAS", shape=(48, 54, 46), spacing=(4.0, 4.0, 4.0), move=None) -> Grid:
    """A grid about the origin, its header moved by a matrix."""
    affine = np.eye(4)
    affine[:3, :3] = np.array([COLUMNS[letter] for letter in axes], float).T @ np.diag(spacing)
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(shape, affine if move is None else move @ affine)


def head(points: np.ndarray, top: float = 65.0, fine: float = 1.0) -> np.ndarray:
    """A head of 140 x 170 x 130 mm with bright and dark parts and no symmetry, in [0, 1], at RAS points.

    Above z = 0 it ends at `top`, with the same things inside; its folds are `fine` times as fine.
    """
    x, y, z = np.moveaxis(points, -1, 0)
    height = np.where(z > 0, top, 65)
    skin = 1 / (1 + np.exp(np.clip(12 * ((x / 70) ** 2 + (y / 85) ** 2 + (z / height) ** 2 - 1), -40, 40)))
    a, b, c = fine * x, fine * y, fine * z
    folds = np.sin(a / 9) * np.cos(b / 11) + np.cos(c / 8 + a / 20)
    blobs = [((30, 20, 10), 18, -0.5), ((-35, 30, -5), 22, 0.3), ((5, -45, 20), 20, 0.35), ((-10, 10, 40), 15, -0.4)]
    inner = sum(size * np.exp(-np.sum((points - centre) ** 2, -1) / width**2) for centre, width, size in blobs)
    return np.clip(skin * (0.55 + 0.08 * folds + inner), 0, 1)


def scan(where: Grid, truth=None, **shape) -> np.ndarray:
    """The head on a grid, moved by `truth` (4, 4): what is at x is found at truth x."""
    inverse = np.linalg.inv(np.eye(4) if truth is None else truth)
    voxels = np.stack(np.meshgrid(*map(np.arange, where.shape), indexing="ij"), -1).astype(float)
    points = where.to_physical(voxels) @ inverse[:3, :3].T + inverse[:3, 3]
    return head(points, **shape).astype(np.float32)


def largest_error(found, truth) -> float:
    """Over a box as large as the head, mm."""
    corners = np.array([(*corner, 1.0) for corner in itertools.product((-60, 60), (-75, 75), (-55, 55))])
    return float(np.linalg.norm((corners @ (found - truth).T)[:, :3], axis=1).max())


TRUTH = shifted(rotation((6, -9, 12)) @ np.diag([1.08, 0.95, 1.12, 1]), (9, -14, 6))
TRUTH[0, 1] += 0.06
FIXED = grid()
MOVING = grid("LIA", (60, 50, 56), (3.3, 4.0, 3.7))


def test_a_known_affine_is_found():
    found = align(scan(FIXED), FIXED, scan(MOVING, TRUTH), MOVING)
    assert largest_error(found.matrix, TRUTH) < 0.5
    assert found.similarity_after > 0.99 > found.similarity_before and found.note is None


@pytest.mark.parametrize("angles", [(30, 0, 0), (0, -30, 0), (0, 0, 30), (25, -25, 25), (-30, 30, -30), (75, -75, 0)])
def test_headers_that_are_far_off_do_not_matter(angles):
    """The same scan with its header rotated about each axis and shifted by 50 mm; the last one needs the search."""
    wrong = shifted(rotation(angles), (50, -50, 50))
    found = align(scan(FIXED), FIXED, scan(MOVING, TRUTH), Grid(MOVING.shape, wrong @ MOVING.affine))
    assert largest_error(np.linalg.inv(wrong) @ found.matrix, TRUTH) < 0.5


def test_the_order_of_the_voxels_does_not_matter():
    """LIA, PIR and LPS files of one head have the same voxels at the same positions, and give the same affine."""
    fixed, ras = scan(FIXED), grid("RAS", (50, 56, 47))
    moving = scan(ras, TRUTH)
    expected = align(fixed, FIXED, moving, ras).matrix
    for axes, order in {"LIA": (0, 2, 1), "PIR": (1, 2, 0), "LPS": (0, 1, 2)}.items():
        where = grid(axes, tuple(ras.shape[axis] for axis in order))
        data = moving.transpose(order)[tuple(slice(None, None, 1 if letter in "RAS" else -1) for letter in axes)]
        assert np.array_equal(data, scan(where, TRUTH))
        assert largest_error(align(fixed, FIXED, data, where).matrix, expected) < 1e-6


def test_the_inverse_is_found_from_the_other_side():
    found = align(scan(MOVING, TRUTH), MOVING, scan(FIXED), FIXED)
    assert largest_error(found.matrix @ TRUTH, np.eye(4)) < 0.7


def test_equal_input_gives_equal_bits_on_any_number_of_threads():
    images = scan(FIXED), FIXED, scan(MOVING, TRUTH), MOVING
    expected = align(*images).matrix
    assert np.array_equal(align(*images).matrix, expected)
    before = numba.get_num_threads()
    try:
        numba.set_num_threads(1)
        assert np.array_equal(align(*images).matrix, expected)
    finally:
        numba.set_num_threads(before)


def test_an_image_on_itself_stays_where_it_is():
    image = scan(FIXED)
    found = align(image, FIXED, image, FIXED)
    assert largest_error(found.matrix, np.eye(4)) < 1e-3 and found.similarity_after == pytest.approx(1)


@pytest.mark.parametrize("part", [slice(0, 30), slice(18, 46), slice(13, 36)], ids=["bottom", "top", "slab"])
@pytest.mark.parametrize("cut", ["fixed", "moving"])
def test_a_scan_that_shows_only_a_part_fits_into_a_whole_one(part, cut):
    """What lies beyond a cut face is unknown, not empty: the part is not stretched to fill the whole."""
    truth = shifted(rotation((6, -9, 12)), (9, -14, 6))
    where = FIXED.crop((0, 0, part.start), (48, 54, part.stop - part.start))
    if cut == "fixed":
        found = align(scan(where), where, scan(MOVING, truth), MOVING).matrix
    else:
        found = np.linalg.inv(align(scan(MOVING, truth), MOVING, scan(where), where).matrix)
    assert largest_error(found, truth) < 1.5


def test_the_result_is_never_worse_than_the_simple_starts():
    """Two images that have little in common."""
    rng = np.random.default_rng(4)
    moving = scan(MOVING, TRUTH) * (0.5 + rng.random(MOVING.shape, dtype=np.float32))
    moving[rng.random(MOVING.shape) < 0.3] = 0
    other = shifted(np.diag([0.7, 1.3, 0.8, 1]), (20, 10, -30))
    found = align(scan(FIXED, other) ** 2, FIXED, moving, MOVING)
    stages = {stage.name: stage.similarity for stage in found.stages}
    assert found.detail_after >= found.detail_before and found.similarity_after >= found.similarity_before
    assert stages["rigid"] >= stages["rotation search"] >= max(stages["centres of mass"], stages["headers"])


TALL = 75.0  # mm: the head as it looks when more was left above it than the 65 mm of the other


@pytest.mark.parametrize("truth", [np.eye(4), shifted(rotation((6, -9, 12)), (9, -14, 6))], ids=["aligned", "turned"])
def test_an_outline_that_disagrees_with_the_inside_does_not_drive_it(truth):
    """One head has 10 mm more above it: whole images fit best when it is squeezed. Voxels are 4 mm wide."""
    fixed, moving = scan(FIXED, fine=2.5), scan(MOVING, truth, top=TALL, fine=2.5)
    image = cropped_to_foreground(fixed, FIXED, "fixed")
    both = image, cropped_to_foreground(moving, MOVING, "moving")
    whole = Level(*(build_levels(one, longest_edge(image))[-1] for one in both))
    assert largest_error(ascend(whole, truth, AFFINE)[0], truth) > 7
    found = align(fixed, FIXED, moving, MOVING)
    assert largest_error(found.matrix, truth) < 2.5
    assert found.similarity_after < whole.similarity(ascend(whole, truth, AFFINE)[0])


def volume(data: np.ndarray, cut=()) -> LevelImage:
    """Voxels of 1 mm; `cut` are the (axis, side) of the faces that cut the object off."""
    faces = np.zeros((3, 2), dtype=bool)
    for face in cut:
        faces[face] = True
    return LevelImage(data.astype(np.float32), Grid(data.shape, np.eye(4)), faces)


def texture(seed: int = 2) -> np.ndarray:
    """(20, 22, 24), values from 0.3 to 0.7 in a border of zeros, 3 voxels wide."""
    return np.pad(0.3 + 0.4 * np.random.default_rng(seed).random((14, 16, 18)), 3)


def test_detail_is_the_same_at_any_brightness_and_contrast():
    """A scale, and a slope of brightness across the image, change it little; a shift of one half, hardly."""
    expected = detail(volume(texture()), 1.0).data
    inside = texture() > 0
    slope = np.linspace(0.8, 1.2, 20)[:, None, None]
    for other in (0.6 * texture(), slope * texture(), np.where(inside, texture() / 2 + 0.3, 0)):
        found = detail(volume(other), 1.0).data
        assert np.corrcoef(found[inside], expected[inside])[0, 1] > 0.99
    assert not expected[~inside].any()
    assert not detail(volume(np.where(inside, 0.6, 0)), 1.0).data.round(3).any()  # an outline alone is no detail


def test_detail_beside_a_cut_face_is_left_out_and_elsewhere_that_of_the_whole():
    """Half an image has the whole one's detail wherever it has any."""
    whole, part = volume(texture()), volume(texture()[:, :, :12], [(2, 1)])
    found = detail(part, 1.0)
    size = found.grid.shape[2]
    assert size < 12 and found.grid.shape[:2] == whole.grid.shape[:2]
    assert found.data[:, :, : size - 1] == pytest.approx(detail(whole, 1.0).data[:, :, : size - 1], abs=0.1)


def test_details_that_are_not_alike_move_nothing():
    """The images have inverse contrast: maximising the correlation of details would separate the outlines."""
    fixed = volume(np.random.default_rng(3).standard_normal((16, 16, 16)))
    start = shifted(np.eye(4), (0.4, 0, 0))
    assert ascend_detail([Level(fixed, volume(-fixed.data))], start, AFFINE) is start
    assert largest_error(ascend_detail([Level(fixed, fixed)], start, AFFINE), np.eye(4)) < 0.1


def test_places_that_disagree_get_no_weight():
    """The moving detail is the fixed one, but negative in one half."""
    fixed = volume(np.random.default_rng(3).standard_normal((30, 16, 16)))
    sign = np.where(np.arange(30) < 15, 1, -1)[:, None, None]
    found = weighted_by_agreement(Level(fixed, volume(fixed.data * sign)), np.eye(4)).fixed.data
    assert found[:6] == pytest.approx(fixed.data[:6], rel=0.06)
    assert not found[24:].any()


@pytest.mark.slow
def test_an_implausible_affine_falls_back_to_rigid():
    """A head enlarged three times fills a volume that no subject has."""
    where = grid(shape=(72, 78, 70), spacing=(8.0, 8.0, 8.0))
    found = align(scan(FIXED), FIXED, scan(where, np.diag([3.0, 3, 3, 1])), where)
    assert "implausible" in found.note
    assert found.matrix[:3, :3] @ found.matrix[:3, :3].T == pytest.approx(np.eye(3), abs=1e-9)


def test_images_without_anything_to_align_are_refused():
    image = scan(FIXED)
    with pytest.raises(InputError, match="moving: is empty"):
        align(image, FIXED, np.zeros(FIXED.shape, np.float32), FIXED)
    with pytest.raises(InputError, match="fixed: is constant"):
        align(np.ones(FIXED.shape, np.float32), FIXED, image, FIXED)
    with pytest.raises(InputError, match="moving: got shape"):
        align(image, FIXED, image[1:], FIXED)


def test_images_that_correlate_nowhere_are_refused():
    """Dark centre against bright centre, over the whole field of view: no rotation and no shift helps."""
    radius = np.linalg.norm(np.indices((12, 12, 12)) - 5.5, axis=0)
    corner = (0.9 * (radius / radius.max()) ** 4).astype(np.float32)
    where = Grid((12, 12, 12), np.diag([4.0, 4, 4, 1]))
    with pytest.raises(InputError, match="do not correlate from any start"):
        align(corner + np.float32(0.1), where, 1 - corner, where)


@functools.cache
def brain() -> tuple[np.ndarray, Grid]:
    """The MNI152 brain at 3 mm: rotated by 180 degrees, its outline matches itself nearly as well."""
    volume = read_volume(mni152_file("t1"), "template")
    where = Grid((64, 76, 62), np.diag([3.0, 3, 3, 1]) + np.pad([[-96], [-130], [-76], [0]], ((0, 0), (3, 0))))
    return PercentileRule().normalise(resample(volume.data, volume.grid, where), "template"), where


class TestRotatedHeaders:
    """A scan whose header names its axes wrongly shows the head rotated by right angles."""

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("degrees", "expected"),
        [
            ((180, 0, 0), "anterior is posterior, superior is inferior"),
            ((0, 180, 0), "right is left, superior is inferior"),
            ((0, 0, 180), "right is left, anterior is posterior"),
            ((90, 0, 90), "is"),
        ],
    )
    def test_the_same_map_is_found_and_reported(self, degrees, expected):
        wrong, (fixed, where) = rotation(degrees), brain()
        near = shifted(rotation((6, -5, 4)) @ np.diag([1.05, 0.95, 1.06, 1]), (9, -14, 6))
        lies = Grid((56, 60, 52), np.diag([3.5, 3.8, 3.9, 1]) + np.pad([[-95], [-130], [-85], [0]], ((0, 0), (3, 0))))
        moving = resample(fixed, where, lies, np.linalg.inv(near))
        found = align(fixed, where, moving, Grid(lies.shape, wrong @ lies.affine))
        assert largest_error(found.matrix, wrong @ near) < 2.5
        assert "rotated relative to its header" in found.note and expected in found.note

    def test_correct_headers_give_no_warning(self):
        found = align(scan(FIXED), FIXED, scan(MOVING, TRUTH), MOVING)
        assert found.note is None and not found.may_be_rotated

    def test_a_mirrored_scan_is_not_mirrored_back(self):
        """Images do not distinguish left from right: none of the 24 orientations has a negative determinant."""
        mirrored = Grid(MOVING.shape, np.diag([-1.0, 1, 1, 1]) @ MOVING.affine)
        found = align(scan(FIXED), FIXED, scan(MOVING, TRUTH), mirrored)
        assert np.linalg.det(found.matrix[:3, :3]) > 0

    def test_the_orientations_are_the_rotations_of_a_cube(self):
        turns = np.array(orientations())
        assert len({tuple(turn.ravel()) for turn in turns}) == 24 and np.array_equal(turns[0], np.eye(3))
        assert np.allclose(np.linalg.det(turns), 1)
        tilted = [rotation((9, -8, 7)) @ np.pad(turn, (0, 1)) for turn in turns]
        assert np.array_equal([nearest_orientation(matrix) for matrix in tilted], turns)


@pytest.mark.slow
def test_every_level_has_the_object_in_the_same_place():
    """Blocks of an odd number of voxels, of an even one, and none: the centre of mass stays within rounding."""
    where = grid("PIR", (92, 210, 150), (2.2, 0.75, 1.1))
    image = cropped_to_foreground(scan(where), where, "fixed")
    levels = build_levels(image, longest_edge(image))
    spacings = [np.mean(level.grid.spacing) for level in levels]
    assert spacings[0] > 1.5 * spacings[1] > 2.5 * spacings[2] and not image.cut.any()
    for level in levels:
        assert level.centre == pytest.approx(image.centre, abs=0.05)


def small_case():
    rng = np.random.default_rng(9)
    fixed, moving = rng.random((7, 6, 8), dtype=np.float32), rng.random((9, 8, 7), dtype=np.float32)
    matrix = rotation((8, 5, -6)) @ np.diag([1.05, 0.9, 0.8, 1])
    matrix[:3, 3] = 0.4, 0.9, -1.3
    return fixed, moving, matrix


@pytest.mark.parametrize("known", [False, True])
def test_the_kernels_sums_are_those_of_the_written_out_jacobian(known):
    """Derivatives of the moving value with respect to the twelve matrix entries, by NumPy, at every voxel."""
    fixed, moving, matrix = small_case()
    last = np.array(moving.shape) - 1.0
    low, high = (np.zeros(3), last) if known else (np.full(3, -np.inf), np.full(3, np.inf))
    centre, scale = np.array([3.0, 2.5, 3.5]), np.array([3.5, 3.0, 4.0])
    slices, moments = np.zeros((7, SUMS)), np.zeros((7, MOMENTS))
    normal_equations(fixed, moving, matrix, low, high, centre, scale, slices)
    correlation_moments(fixed, moving, matrix, low, high, moments)

    index = np.stack(np.meshgrid(*map(np.arange, fixed.shape), indexing="ij"), -1).reshape(-1, 3).astype(float)
    place = index @ matrix[:3, :3].T + matrix[:3, 3]
    inside = np.all((place >= 0) & (place <= last), axis=1)
    assert 0.2 < inside.mean() < 0.9
    step = 1e-3
    gradient = [sample(moving.astype(float), (place + step * e).T) for e in np.eye(3)]
    gradient = (np.array(gradient) - sample(moving.astype(float), place.T)) / step * inside
    value = sample(moving.astype(float), place.T) * inside
    seen = inside.astype(float) if known else np.ones(len(place))
    f = fixed.reshape(-1) * seen
    basis = np.concatenate([(index - centre) / scale, np.ones((len(index), 1))], axis=1).T
    jacobian = (gradient[:, None] * basis[None]).reshape(12, -1)

    total = slices.sum(axis=0)
    expected = [seen.sum(), f.sum(), value.sum(), f @ f, value @ value, f @ value]
    assert total[:MOMENTS] == pytest.approx(expected, rel=1e-5)
    assert moments.sum(axis=0) == pytest.approx(expected, rel=1e-5)
    assert total[MOMENTS : MOMENTS + 36].reshape(3, 12) == pytest.approx(
        np.stack([jacobian.sum(1), jacobian @ f, jacobian @ value]), abs=1e-2
    )
    pairs = [
        np.sum(gradient[a] * gradient[b] * basis[p] * basis[q])
        for a, b in itertools.combinations_with_replacement(range(3), 2)
        for p, q in itertools.combinations_with_replacement(range(4), 2)
    ]
    assert total[MOMENTS + 36 :] == pytest.approx(np.array(pairs), abs=2e-2)


def test_block_means_are_means_of_blocks():
    image = np.random.default_rng(1).random((7, 9, 8), dtype=np.float32)
    result = np.empty((3, 3, 2), np.float32)
    block_means(image, (2, 3, 4), result)
    expected = image[:6].reshape(3, 2, 3, 3, 2, 4).mean(axis=(1, 3, 5))
    assert result == pytest.approx(expected, abs=1e-6)


class TestSteps:
    """`--affine rigid`, `affine`, and how much an affine may change a volume."""

    def aligned(self, truth, kind, limits=LIMITS):
        return FixedPyramid(scan(FIXED), FIXED).pair_with(scan(MOVING, truth), MOVING).align(kind, limits)

    def test_rigid_is_a_rotation_and_a_shift_that_are_found(self):
        truth = shifted(rotation((6, -9, 12)), (9, -14, 6))
        found = self.aligned(truth, "rigid")
        assert found.used == "rigid" and largest_error(found.matrix, truth) < 0.5
        np.testing.assert_allclose(found.matrix[:3, :3] @ found.matrix[:3, :3].T, np.eye(3), atol=1e-12)

    def test_rigid_stays_rigid_where_sizes_differ(self):
        found = self.aligned(TRUTH, "rigid")
        assert found.used == "rigid" and np.linalg.det(found.matrix[:3, :3]) == pytest.approx(1)

    def test_affine_is_not_given_up_for_headers_that_are_right(self):
        assert self.aligned(np.eye(4), "affine").used == "affine"

    @pytest.mark.slow
    def test_a_child_and_an_adult_need_wider_limits(self):
        """0.6 of the size, 0.22 of the volume: refused by name, replaced by auto with a note, found when allowed."""
        small = np.diag((0.6, 0.6, 0.6, 1))
        with pytest.raises(InputError, match=r"--affine: .*volume factor 0\.2.*expected 0\.3 to 3.*--volume-factor"):
            self.aligned(small, "affine")
        assert "--volume-factor" in self.aligned(small, "auto").note
        found = self.aligned(small, "auto", Limits(0.1, 3))
        assert found.note is None and largest_error(found.matrix, small) < 1

    def test_limits_of_one_direction_follow_those_of_the_volume(self):
        assert Limits().stretch == (0.5, 2.0)
        assert Limits(0.3 / 8, 24).stretch == pytest.approx((0.25, 4.0))

    @pytest.mark.parametrize("limits", [(0, 3), (1.2, 3), (0.3, 0.9), (0.3, float("nan"))])
    def test_limits_that_allow_nothing_are_refused(self, limits):
        with pytest.raises(InputError, match=r"--volume-factor: got .*, expected a number above 0 and below 1"):
            Limits(*limits)


@pytest.mark.slow
def test_a_lesion_in_a_hole_pulls_at_nothing():
    """A bright ball at the rim, large enough to influence the result; the content of the hole changes no bit."""
    moving = scan(MOVING, TRUTH)
    voxels = np.stack(np.meshgrid(*map(np.arange, MOVING.shape), indexing="ij"), -1).astype(float)
    hole = np.linalg.norm(MOVING.to_physical(voxels) - (30, 45, 20), axis=-1) < 28
    pyramid = FixedPyramid(scan(FIXED), FIXED)
    found = [pyramid.align(np.where(hole, np.float32(value), moving), MOVING, hole).matrix for value in (0, 0)]
    assert largest_error(found[0], TRUTH) < 0.7 and np.array_equal(*found)
    spoilt = pyramid.align(np.where(hole, np.float32(1), moving), MOVING).matrix
    assert largest_error(spoilt, TRUTH) > 2 * largest_error(found[0], TRUTH)
