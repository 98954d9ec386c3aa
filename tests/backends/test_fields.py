"""Field operations: every implementation against the NumPy reference in `runtime.geometry`.

The references are planar, (C, I, J, K), the implementations channels-last, (I, J, K, C); `last` and `first` convert.
Tests hand over host arrays and get such back; `GpuFields` copies them to a GPU (or the simulated one) and back.
"""

import numpy as np
import pytest

from runtime.backends.cuda.memory import DeviceArray
from runtime.backends.fields.cpu import NumbaFields
from runtime.backends.holes import Holes
from runtime.errors import InputError
from runtime.geometry import flow as definition
from runtime.geometry import smoothing
from runtime.images.similarity import SIMILARITIES

SHAPES = [(1, 1, 1), (2, 3, 4), (5, 1, 7), (16, 8, 24), (23, 41, 9)]


class GpuFields:
    """A GPU's field operations on host arrays, which keep their memory layout on the GPU."""

    name = "cuda"

    def __init__(self, _threads):
        from tests.backends.host_gpu.gpu import open_host_device

        self._device = open_host_device()
        from runtime.backends.fields.cuda import CudaFields

        self._fields = CudaFields(self._device)

    def __getattr__(self, operation):
        def call(*arguments):
            return self.host(getattr(self._fields, operation)(*map(self.gpu, arguments)))

        return call

    def gpu(self, value):
        if not isinstance(value, np.ndarray):
            return value
        order = np.argsort([-stride for stride in value.strides], kind="stable")
        memory = self._device.upload(value.transpose(order))
        return DeviceArray(self._device, memory.pointer, value.shape, value.dtype, value.strides, memory.owner)

    def host(self, value):
        return self._device.download(value) if isinstance(value, DeviceArray) else value

    def fill_fixed(self, buffer, features):
        there = self.gpu(buffer)
        self._fields.fill_fixed(there, self.gpu(features))
        buffer[...] = self.host(there)

    def warp_into(self, buffer, features, u):
        there = self.gpu(buffer)
        assert self._fields.warp_into(there, self.gpu(features), self.gpu(u)) is there
        buffer[...] = self.host(there)
        return buffer

    def scorer(self, fixed, similarity, count=None):
        scorer = self._fields.scorer(self.gpu(fixed), similarity, count)
        return lambda moving, u: float(scorer(self.gpu(moving), self.gpu(u)))

    def smoother(self, fixed, sigma):
        smoother = self._fields.smoother(self.gpu(fixed), sigma)
        return lambda residual: self.host(smoother(self.gpu(residual)))


IMPLEMENTATIONS = {"numba": NumbaFields, "cuda": GpuFields}


@pytest.fixture(params=IMPLEMENTATIONS)
def fields(request):
    return IMPLEMENTATIONS[request.param](2)


@pytest.fixture(params=SHAPES, ids=str)
def shape(request):
    return request.param


@pytest.fixture(params=["contiguous", "planar", "apart"])
def laid_out(request, fields):
    """Return a copy of a channels-last array in a memory layout of engines: contiguous, planar, or with gaps."""
    if request.param == "apart" and fields.name == "cuda":
        pytest.skip("no engine of a GPU leaves gaps")

    def contiguous(array):
        return array.copy()

    def planar(array):
        return last(first(array).copy())

    def apart(array):
        memory = np.zeros([size + 1 for size in array.shape], array.dtype)
        view = memory[tuple(slice(size) for size in array.shape)]
        view[:] = array
        return view

    return {"contiguous": contiguous, "planar": planar, "apart": apart}[request.param]


def last(array):
    return np.moveaxis(array, 0, -1)


def first(array):
    return np.moveaxis(array, -1, 0)


def image(shape, seed=0):
    return np.random.default_rng(seed).random(shape, np.float32)


def flow(shape, spread=2.5, seed=1):
    """Return a random flow whose target positions fall inside, on the border and outside."""
    return np.random.default_rng(seed).normal(0, spread, (*shape, 3)).astype(np.float32)


def test_warp(fields, shape):
    moving, u = image(shape), flow(shape)
    np.testing.assert_allclose(fields.warp(moving, u), definition.warp(moving, first(u)), atol=5e-6)


@pytest.mark.parametrize("channels", [1, 3, 6, 8, 16, 19, 32])
def test_warp_into_fills_its_half_and_leaves_the_fixed_half(fields, laid_out, channels):
    shape = (9, 12, 7)
    moving, fixed, u = image((*shape, channels), 1), image((*shape, channels), 2), flow(shape)
    buffer = laid_out(np.full((*shape, 2 * channels), -7, np.float32))
    fields.fill_fixed(buffer, fixed)
    assert fields.warp_into(buffer, moving, u) is buffer
    np.testing.assert_allclose(first(buffer)[:channels], definition.warp(first(moving), first(u)), atol=5e-6)
    np.testing.assert_array_equal(buffer[..., channels:], fixed)


def test_warp_into_stays_inside_its_half_on_every_shape(fields, laid_out, shape):
    moving, u = image((*shape, 8), 1), flow(shape)
    buffer = laid_out(np.full((*shape, 16), -7, np.float32))
    fields.warp_into(buffer, moving, u)
    np.testing.assert_allclose(first(buffer)[:8], definition.warp(first(moving), first(u)), atol=5e-6)
    assert np.all(buffer[..., 8:] == -7)


def test_compose(fields, shape, laid_out):
    inner, residual = flow(shape, seed=3), flow(shape, seed=4)
    expected = definition.compose(first(inner), first(residual))
    np.testing.assert_allclose(first(fields.compose(inner, laid_out(residual))), expected, atol=5e-5)


def test_compose_takes_a_residual_that_may_not_be_written_to(fields):
    inner, residual = flow((4, 5, 6), seed=3), flow((4, 5, 6), seed=4)
    expected = fields.compose(inner, residual)
    residual.flags.writeable = False
    np.testing.assert_array_equal(fields.compose(inner, residual), expected)


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_upsample(fields, shape, scale):
    coarse = flow(shape)
    expected = definition.upsample(first(coarse), scale)
    np.testing.assert_allclose(first(fields.upsample(coarse, scale)), expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("scale", [1, 2, 8])
def test_score_is_upsample_warp_and_similarity_in_one(fields, similarity, scale):
    """The reference computes the upsampled flow and the warped image in full, then the similarity of the images."""
    coarse_shape = (3, 2, 4)
    full = tuple(scale * size for size in coarse_shape)
    fixed, moving, coarse = image(full, 5), image(full, 6), flow(coarse_shape, 1.0)
    warped = definition.warp(moving, definition.upsample(first(coarse), scale))
    expected = SIMILARITIES[similarity](fixed, warped)
    assert fields.scorer(fixed, similarity)(moving, coarse) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("shape", [(41, 23, 30), (20, 4, 9), (7, 50, 3)])
def test_local_correlation_of_smooth_images(fields, shape):
    """Block and window borders: sizes below, at and above the block and the window."""
    fixed = definition.resize(image((4, 4, 4)), shape)
    moving = definition.resize(image((4, 4, 4), 9), shape)
    score = fields.scorer(fixed, "lncc")(moving, fields.zero(shape))
    assert score == pytest.approx(SIMILARITIES["lncc"](fixed, moving), rel=1e-6)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_score_does_not_depend_on_threads(similarity):
    fixed, moving, u = image((40, 24, 16), 1), image((40, 24, 16), 2), flow((20, 12, 8))
    scores = set()
    for threads in (1, 2, 1, 2):
        fields = NumbaFields(threads)
        with fields.threads():
            scores.add(fields.scorer(fixed, similarity)(moving, u))
    assert len(scores) == 1


def test_identical_images_have_the_largest_similarity(fields):
    fixed = image((16, 16, 16))
    still = fields.zero(fixed.shape)
    assert fields.scorer(fixed, "ncc")(fixed, still) == pytest.approx(1, abs=1e-12)
    assert fields.scorer(fixed, "mse")(fixed, still) == pytest.approx(0, abs=1e-12)
    assert fields.scorer(fixed, "lncc")(fixed, still) == pytest.approx(1, abs=1e-3)


def moved(hole, u):
    """Return the voxels that a warped hole reaches."""
    return definition.warp(hole, first(u)) > 0


@pytest.mark.parametrize("holed", [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("similarity", ["ncc", "mse"])
def test_a_score_beside_holes_is_that_of_the_other_voxels(fields, similarity, holed):
    """The moving image's hole moves with it; voxels in a hole are ignored."""
    shape = (16, 24, 8)
    fixed, moving, u = image(shape, 5), image(shape, 6), flow(shape, 1.0)
    hole_f, hole_m = np.zeros((2, *shape), np.float32)
    hole_f[3:8, 5:9, 2:6] = hole_m[9:14, 10:20, 1:4] = 1
    warped, known = definition.warp(moving, first(u)), np.full(shape, True)
    known &= ~((hole_f > 0) if holed[0] else np.full(shape, False))
    known &= ~(moved(hole_m, u) if holed[1] else np.full(shape, False))
    expected = SIMILARITIES[similarity](fixed[known], warped[known])
    holes = Holes(fields, *(hole if there else None for hole, there in zip((hole_f, hole_m), holed, strict=True)))
    assert float(holes.score(fixed, moving, similarity, u)) == pytest.approx(expected, abs=1e-6)
    fixed[hole_f > 0] = 7.0 if holed[0] else fixed[hole_f > 0]
    assert float(holes.score(fixed, moving, similarity, u)) == pytest.approx(expected, abs=1e-6)


def test_where_all_is_a_hole_there_is_no_score(fields):
    fixed, hole = image((8, 8, 8)), np.ones((8, 8, 8), np.float32)
    assert np.isnan(Holes(fields, hole, None).score(fixed, fixed, "ncc", fields.zero(fixed.shape)))


def test_local_correlation_sees_nothing_in_a_hole(fields):
    shape = (16, 8, 24)
    fixed, moving, hole = image(shape, 5), image(shape, 6), np.zeros(shape, np.float32)
    hole[4:9, 2:6, 7:15] = 1
    score = Holes(fields, hole, None).score(fixed, moving, "lncc", fields.zero(shape))
    assert float(score) == pytest.approx(SIMILARITIES["lncc"](fixed * (1 - hole), moving * (1 - hole)), rel=1e-5)


@pytest.mark.parametrize("depth", [1, 6, 13, 22])
def test_local_correlation_does_not_fall_with_the_size_of_a_hole(fields, depth):
    """An image with itself is 1 beside any hole; the average leaves out voxels whose whole window lies in the hole."""
    shape, u = (24, 16, 8), fields.zero((24, 16, 8))
    fixed, hole = image(shape, 5), np.zeros(shape, np.float32)
    hole[:depth] = 1
    assert float(Holes(fields, hole, None).score(fixed, fixed, "lncc", u)) == pytest.approx(1, abs=1e-3)
    moving, known = image(shape, 6), 24 - max(depth - 4, 0)  # planes with a known voxel within 4
    expected = SIMILARITIES["lncc"](fixed * (1 - hole), moving * (1 - hole)) * 24 / known
    assert float(Holes(fields, hole, None).score(fixed, moving, "lncc", u)) == pytest.approx(expected, rel=1e-5)


def test_what_is_near(fields):
    """A voxel reaches 4 voxels along each axis, also from the border, as the window of local correlation does."""
    dots = np.zeros((14, 12, 11), np.float32)
    dots[0, 5, 10] = dots[9, 11, 2] = 1
    expected = np.zeros(dots.shape, bool)
    expected[:5, 1:10, 6:] = expected[5:14, 7:, :7] = True
    np.testing.assert_array_equal(fields.near(dots) > 0, expected)
    assert not fields.near(np.zeros_like(dots)).any()


def test_a_constant_image_has_no_correlation(fields):
    fixed = image((8, 8, 8))
    for constant in (0.0, 0.3):
        flat = np.full_like(fixed, constant)
        assert np.isnan(fields.scorer(fixed, "ncc")(flat, fields.zero(fixed.shape)))
        assert np.isnan(fields.scorer(flat, "ncc")(fixed, fields.zero(fixed.shape)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("scale", [1, 2])
def test_a_flow_that_is_not_finite_never_gives_a_finite_score(fields, similarity, bad, scale):
    full = (8 * scale,) * 3
    fixed, moving = image(full, 1), image(full, 2)
    for place in ((3, 4, 5, 1), (0, 0, 0, 0), (7, 7, 7, 2)):
        u = flow((8, 8, 8), 0.5)
        u[place] = bad
        assert not np.isfinite(fields.scorer(fixed, similarity)(moving, u))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_so(fields, bad, laid_out):
    """A voxel with a NaN displacement is NaN in all channels of a warp and a composition; its neighbours are not."""
    shape = (5, 6, 7)
    u = flow(shape, 0.5)
    u[2, 3, 4, 1] = bad
    expected = np.zeros(shape, bool)
    expected[2, 3, 4] = True
    np.testing.assert_array_equal(np.isnan(fields.warp(image(shape), u)), expected)
    warped = fields.warp_into(laid_out(np.zeros((*shape, 16), np.float32)), image((*shape, 8)), u)
    np.testing.assert_array_equal(np.isnan(warped[..., :8]), np.repeat(expected[..., None], 8, -1))
    composed = fields.compose(flow(shape, 0.5, 2), laid_out(u))
    np.testing.assert_array_equal(np.isnan(composed), np.repeat(expected[..., None], 3, -1))


def test_a_flow_far_outside_gives_zeros(fields):
    moving, u = image((4, 5, 6)), np.full((4, 5, 6, 3), 1e9, np.float32)
    np.testing.assert_array_equal(fields.warp(moving, u), 0)
    np.testing.assert_array_equal(fields.warp(moving, -u), 0)


@pytest.mark.parametrize("size", [(2, 2, 2), (2, 9, 4), (13, 8, 11)])
def test_folded_share(fields, size):
    u = flow(size, 0.7)
    assert fields.folded_share(u) == definition.folded_share(first(u))
    assert fields.folded_share(fields.zero(size)) == 0


def test_what_is_flattened_counts_as_folded(fields):
    """All planes are mapped onto one: the determinant is exactly 0, whatever the distance."""
    for axis in range(3):
        u = np.zeros((6, 7, 8, 3), np.float32)
        u[..., axis] = 1000 - np.indices(u.shape[:3])[axis]
        assert fields.folded_share(u) == 1


def test_host_form_of_a_flow_is_planar_and_of_an_image_itself(fields):
    u, moving = flow((4, 5, 6)), image((4, 5, 6))
    host = fields.to_host(u)
    assert host.shape == (3, 4, 5, 6)
    np.testing.assert_array_equal(host, first(u))
    np.testing.assert_array_equal(fields.to_host(moving), moving)


def test_extremes(fields, shape):
    for array in (image(shape) - np.float32(0.4), flow(shape), np.full(shape, -3, np.float32)):
        assert fields.extremes(array) == (array.min(), array.max())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_extremes_are_nan_if_anything_is_not_finite(fields, bad):
    for place in (0, 77, 12 * 13 * 14 - 1):
        array = image((12, 13, 14))
        array.flat[place] = bad
        assert np.isnan(fields.extremes(array)).all()


def test_unknown_similarity_is_refused(fields):
    with pytest.raises(InputError, match="similarity: got 'mi', expected one of ncc, lncc, mse"):
        fields.scorer(image((4, 4, 4)), "mi")


def test_halving_is_the_mean_of_eight_voxels(fields, shape):
    fine = image(tuple(2 * size for size in shape))
    np.testing.assert_allclose(fields.halve(fine), smoothing.halve(fine), atol=2e-7)


@pytest.mark.parametrize("sigma", [0.3, 1.5, 5.0])
def test_smoothing_of_a_residual(fields, shape, laid_out, sigma):
    """Confidences near 0, near 1 and in between; sigmas whose Gaussian is wider than the grid."""
    fixed, residual = image(shape) ** 4, flow(shape)
    expected = smoothing.smooth_residual(first(residual), smoothing.confidence(fixed), sigma)
    found = fields.smoother(fixed, sigma)(laid_out(residual))
    assert found.flags.c_contiguous
    np.testing.assert_allclose(first(found), expected, atol=2e-6)


def test_smoothing_does_not_depend_on_threads():
    fixed, residual, found = image((40, 24, 16)), flow((40, 24, 16)), set()
    for threads in (1, 2, 1, 2):
        fields = NumbaFields(threads)
        with fields.threads():
            found.add(fields.smoother(fixed, 1.5)(residual).tobytes())
    assert len(found) == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_smoothing_leaves_what_is_not_finite_so(fields, bad):
    residual = flow((5, 6, 7), 0.5)
    residual[2, 3, 4, 1] = bad
    assert not np.isfinite(fields.smoother(image((5, 6, 7)), 1.5)(residual)[2, 3, 4, 1])
