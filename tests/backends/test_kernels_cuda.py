"""CUDA kernels beyond `test_fields`: grids, layouts, float16, sums, and compilation for every GPU architecture.

They run on a GPU where tests run on one, else on the CPU, compiled from the same source with its barriers as they are.
"""

import math
import re

import numpy as np
import pytest

from runtime.errors import InputError
from runtime.geometry import flow as definition
from runtime.images.similarity import LNCC_WINDOW, SIMILARITIES
from tests.backends.host_gpu.gpu import KERNELS, REAL, open_host_device, stand_in

SHAPE = (6, 19, 11)
CAPABILITIES = [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (12, 0)]


@pytest.fixture
def device():
    return open_host_device()


@pytest.fixture
def fields(device):
    from runtime.backends.fields.cuda import CudaFields

    return CudaFields(device)


def image(shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).random(shape, np.float32).astype(dtype)


def flow(shape, spread=2.5, seed=1):
    return np.random.default_rng(seed).normal(0, spread, (*shape, 3)).astype(np.float32)


def smooth(shape, seed):
    return definition.resize(image((5, 5, 5), seed), shape)


def first(array):
    return np.moveaxis(array, -1, 0)


def planar(device, array):
    """Return a device array in planar memory."""
    return device.upload(np.ascontiguousarray(first(array))).moveaxis(0, -1)


def amid_nan(device, array, before=1):
    """Return a device array with NaN before and after it in memory; `before` also sets its 16-byte alignment."""
    memory = np.full(array.size + before + 64, np.nan, array.dtype)
    memory[before : before + array.size] = array.reshape(-1)
    there = device.upload(memory)
    pointer = there.pointer + before * array.itemsize
    return type(there)(device, pointer, array.shape, array.dtype, owner=there.owner)


def kernel_names():
    return re.findall(r'^extern "C" __global__ void (\w+)\(', KERNELS.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("capability", CAPABILITIES, ids=str)
def test_every_kernel_is_compiled_for_every_gpu(capability):
    pytest.importorskip("cuda.bindings.nvrtc", reason="needs cuda-python")
    from runtime.backends.cuda.nvrtc import compile_kernels

    cubin = compile_kernels(capability)
    assert cubin.startswith(b"\x7fELF")
    assert len(kernel_names()) == 27
    assert all(b"\0.text." + name.encode() + b"\0" in cubin for name in kernel_names())


def test_host_and_kernels_agree_on_constants():
    from runtime.backends.fields import cuda as fields_cuda

    source = KERNELS.read_text(encoding="utf-8")
    assert f"const int RUN = {fields_cuda.RUN};" in source
    assert f"const int WINDOW = {LNCC_WINDOW}, RADIUS = WINDOW / 2;" in source
    assert "const int SEGMENT = 5 * WINDOW - 2 * RADIUS;" in source
    assert fields_cuda.SEGMENT == 5 * LNCC_WINDOW - 2 * (LNCC_WINDOW // 2)
    assert "atomic" not in source.replace("No kernel uses atomics", "")


# ------------------------------------------------------------------------------------------------------------- float16


def test_every_half_is_carried_as_it_is(device):
    from runtime.backends.fields.cuda import carry

    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).reshape(16, 16, 32, 8)
    for source in (device.upload(halves), planar(device, halves)):
        target = device.empty(halves.shape, np.float16)
        carry(source, target)
        np.testing.assert_array_equal(device.download(target), halves)


def test_halves_are_rounded_to_the_nearest_and_halfway_cases_to_even(device, fields):
    """Half a voxel between two float16: their mean is often halfway between two float16, or subnormal."""
    bits = np.random.default_rng(0).integers(0, 0x7C00, (40, 25, 2, 8), np.uint16)
    bits[:, :, 1] = np.where(bits[:, :, 1] & 1, bits[:, :, 0] + 1, bits[:, :, 1])  # many neighbours
    bits[0, :, :] &= 0x3FF  # subnormal
    halves = np.minimum(bits, 0x7BFF).view(np.float16)
    half = np.float32(0.5)
    means = (half * halves[:, :, 0].astype(np.float32) + half * halves[:, :, 1].astype(np.float32)).astype(np.float16)
    u = np.zeros((40, 25, 2, 3), np.float32)
    u[:, :, 0, 2] = 0.5
    buffer = fields.warp_into(device.empty((40, 25, 2, 16), np.float16), device.upload(halves), device.upload(u))
    np.testing.assert_array_equal(device.download(buffer)[:, :, 0, :8], means)


@pytest.mark.parametrize("channels", [1, 3, 8, 12, 16, 32])
@pytest.mark.parametrize("layout", ["channels-last", "planar"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_estimator_input_in_every_precision_and_layout(device, fields, dtype, layout, channels):
    moving, fixed = image((*SHAPE, channels), 1, dtype), image((*SHAPE, channels), 2, dtype)
    u, empty = flow(SHAPE), np.full((*SHAPE, 2 * channels), -7, dtype)
    buffer = planar(device, empty) if layout == "planar" else device.upload(empty)
    fields.warp_into(buffer, device.upload(moving), device.upload(u))
    assert np.all(device.download(buffer)[..., channels:] == -7)
    fields.fill_fixed(buffer, device.upload(fixed))
    found, expected = device.download(buffer), definition.warp(first(moving).astype(np.float32), first(u))
    np.testing.assert_allclose(first(found)[:channels], expected, rtol=0, atol=5e-6 + np.finfo(dtype).eps / 2)
    np.testing.assert_array_equal(found[..., channels:], fixed)


@pytest.mark.parametrize("before", range(9))
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_channels_that_begin_anywhere_in_memory(device, fields, dtype, before):
    """16-byte loads are used only where alignment allows them; the result is the same, bit for bit."""
    from runtime.backends.fields.cuda import carry

    moving, u = image((*SHAPE, 8), 1, dtype), device.upload(flow(SHAPE))
    expected = device.download(fields.warp_into(device.zeros((*SHAPE, 16), dtype), device.upload(moving), u))[..., :8]
    buffer = amid_nan(device, np.full((*SHAPE, 16), -7, dtype), before)
    fields.warp_into(buffer, amid_nan(device, moving, before), u)
    np.testing.assert_array_equal(device.download(buffer.channels(0, 16))[..., :8], expected)
    whole = device.upload(np.full((*SHAPE, 24), -7, dtype))
    carry(amid_nan(device, moving, before), whole.channels(before, before + 8))
    found = device.download(whole)
    np.testing.assert_array_equal(found[..., before : before + 8], moving)
    assert np.all(np.delete(found, slice(before, before + 8), -1) == -7)


@pytest.mark.parametrize("channels", [1, 5, 8, 24])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_carry_between_layouts(device, dtype, channels):
    from runtime.backends.fields.cuda import carry

    array = image((*SHAPE, channels), 3, dtype)
    for source in (device.upload(array), planar(device, array)):
        for target in (device.zeros(array.shape, dtype), planar(device, np.zeros_like(array))):
            carry(source, target)
            np.testing.assert_array_equal(device.download(target), array)


def test_voxels_with_gaps_are_refused(device):
    from runtime.backends.fields.cuda import carry

    array = device.upload(image((4, 6, 5, 8)))
    gaps = type(array)(device, array.pointer, (4, 5, 5, 8), np.float32, array.strides, array.owner)
    with pytest.raises(ValueError, match="voxels with gaps"):
        carry(gaps, device.zeros(gaps.shape))


# --------------------------------------------------------------------------------------------------- grids and blocks


def everything(fields, device):
    """Return the result of every operation, on arrays with NaN before and after them in memory."""
    fixed, moving = amid_nan(device, smooth((24, 32, 16), 1)), amid_nan(device, smooth((24, 32, 16), 2))
    fine, coarse = amid_nan(device, flow((24, 32, 16))), amid_nan(device, flow((12, 16, 8), 1.0))
    found = {
        "warp": fields.warp(moving, fine),
        "warp, coarse": fields.warp(moving, coarse),
        "compose": fields.compose(fine, amid_nan(device, flow((24, 32, 16), 1, 5))),
        "upsample": fields.upsample(coarse),
        "halve": fields.halve(fixed),
        "smooth": fields.smoother(fixed, 1.5)(fine),
        "without": fields.without(fixed, moving),
        "near": fields.near(fixed),
    }
    for dtype in (np.float16, np.float32):
        for channels in (8, 3):
            features = amid_nan(device, image((12, 16, 8, channels), 4, dtype), 8)
            buffer = device.zeros((12, 16, 8, 2 * channels), dtype)
            fields.fill_fixed(buffer, features)
            found[f"warp_into, {channels} x {np.dtype(dtype)}"] = fields.warp_into(buffer, features, coarse)
    found = {name: device.download(array) for name, array in found.items()}
    for similarity in SIMILARITIES:
        scorer = fields.scorer(fixed, similarity)
        found[similarity], found[f"{similarity}, coarse"] = float(scorer(moving, fine)), float(scorer(moving, coarse))
    found |= {"total": fields.total(moving)}
    return {**found, "extremes": fields.extremes(moving), "folded": fields.folded_share(fine)}


@pytest.fixture(scope="module")
def expected():
    from runtime.backends.fields.cuda import CudaFields

    device = open_host_device()
    return everything(CudaFields(device), device)


def same(found, expected):
    """Check that arrays agree bit for bit, and sums up to the order of summation."""
    for name, value in expected.items():
        assert np.all(np.isfinite(value)), name
        np.testing.assert_allclose(found[name], value, rtol=0, atol=0 if np.ndim(value) else 1e-12, err_msg=name)


@pytest.mark.parametrize("blocks", [1, 3])
def test_any_number_of_blocks_does_all_of_the_work(device, fields, expected, monkeypatch, blocks):
    monkeypatch.setattr("runtime.backends.cuda.device.MOST_BLOCKS", blocks)
    monkeypatch.setattr("runtime.backends.fields.cuda.MOST_PARTIALS", blocks)
    same(everything(fields, device), expected)


@pytest.mark.parametrize("threads", [1, 32, 512, 1024])
def test_any_size_of_blocks_does_all_of_the_work(device, fields, expected, monkeypatch, threads):
    if REAL and threads > 256:
        pytest.skip("more registers than a GPU has for a block")
    monkeypatch.setattr("runtime.backends.cuda.device.THREADS", threads)
    same(everything(fields, device), expected)


def test_blocks_without_work_leave_nothing_behind(device, fields, expected):
    """More blocks than voxels: the partial sums of blocks without work are zeros."""
    fixed = device.upload(image((1, 2, 3)))
    partial = device.zeros((3, 40), np.float64)
    device.launch_blocks("score_sums", 40, fixed, fixed, fields.zero((1, 2, 3)), partial, 1, 2, 3)
    np.testing.assert_allclose(device.download(partial).sum(axis=1)[0], image((1, 2, 3)).sum(), rtol=1e-6)
    assert not device.download(partial)[:, 1:].any()


@pytest.mark.parametrize("far", [1e9, -1e9, 3e38, -3e38, 7.5, -7.5])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_far_outside_there_is_nothing(device, fields, dtype, far):
    u = device.upload(np.full((4, 5, 6, 3), far, np.float32))
    for channels in (3, 8):
        features = amid_nan(device, image((4, 5, 6, channels), 1, dtype))
        buffer = fields.warp_into(device.zeros((4, 5, 6, 2 * channels), dtype), features, u)
        assert np.all(device.download(buffer) == 0)
    assert np.all(device.download(fields.warp(amid_nan(device, image((4, 5, 6))), u)) == 0)
    inner = amid_nan(device, flow((4, 5, 6)))
    np.testing.assert_array_equal(device.download(fields.compose(inner, u)), np.float32(far))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_voxel_sent_nowhere_is_nan_and_its_neighbours_are_not(device, fields, dtype, bad):
    u = flow((5, 6, 7), 0.5)
    u[2, 3, 4, 1] = bad
    for channels in (3, 8):
        features = amid_nan(device, image((5, 6, 7, channels), 1, dtype))
        buffer = fields.warp_into(device.zeros((5, 6, 7, 2 * channels), dtype), features, device.upload(u))
        lost = np.isnan(device.download(buffer)[..., :channels]).all(-1)
        assert np.argwhere(lost).tolist() == [[2, 3, 4]]


@pytest.mark.parametrize("scale", [1, 3, 5, 8])
def test_upsampling_puts_corners_on_corners_exactly(device, fields, scale):
    coarse = flow((7, 11, 13))
    fine = device.download(fields.upsample(device.upload(coarse), scale))
    corners = np.ix_((0, -1), (0, -1), (0, -1))
    np.testing.assert_array_equal(fine[corners], np.float32(scale) * coarse[corners])


# ---------------------------------------------------------------------------------------------------- scores and sums


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("scale", [1, 2, 4, 8])
def test_scores_are_those_of_the_definitions(device, fields, similarity, scale):
    shape = (24, 40, 48)
    fixed, moving = smooth(shape, 1), smooth(shape, 2)
    coarse = flow(tuple(size // scale for size in shape), 0.5)
    warped = definition.warp(moving.astype(np.float64), definition.upsample(first(coarse).astype(np.float64), scale))
    score = fields.scorer(device.upload(fixed), similarity)(device.upload(moving), device.upload(coarse))
    assert float(score) == pytest.approx(SIMILARITIES[similarity](fixed, warped), abs=1e-6)


@pytest.mark.parametrize("shape", [(1, 1, 40), (50, 1, 1), (1, 90, 2), (3, 38, 37), (80, 5, 9)])
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_scores_of_thin_images(device, fields, similarity, shape):
    """Sizes near those of the window and of the segment over which one thread slides it."""
    fixed, moving = image(shape, 1), image(shape, 2)
    score = fields.scorer(device.upload(fixed), similarity)(device.upload(moving), fields.zero(shape))
    assert float(score) == pytest.approx(SIMILARITIES[similarity](fixed, moving), abs=1e-6)


@pytest.mark.parametrize("offset", [0.0, 10.0, 1000.0])
def test_local_correlation_does_not_suffer_from_brightness(device, fields, offset):
    """With a mean of 1000, plain sums of squares would lose all digits of a variance of 0.1."""
    shape = (20, 21, 22)
    fixed, moving = smooth(shape, 1) + np.float32(offset), smooth(shape, 2) + np.float32(offset)
    score = fields.scorer(device.upload(fixed), "lncc")(device.upload(moving), fields.zero(shape))
    assert float(score) == pytest.approx(SIMILARITIES["lncc"](fixed, moving), abs=2e-6)


def test_sums_are_as_exact_as_double(device, fields):
    """Numbers whose sum a float holds to a few digits only, in an order that would lose even those."""
    generator = np.random.default_rng(0)
    numbers = (generator.random(100_000) * 10.0 ** generator.integers(-6, 6, 100_000)).astype(np.float32)
    partial = fields._partial("image_sums", 2000, 2, device.upload(numbers), np.int64(numbers.size))
    found, wide = device.download(partial).sum(axis=1), numbers.astype(np.float64)
    assert found == pytest.approx([math.fsum(wide), math.fsum(wide * wide)], rel=1e-13)


@pytest.mark.parametrize("constant", [0.0, 0.3, 0.1, 7e-5, 12345.678])
def test_a_large_constant_image_has_no_correlation(device, fields, constant):
    """The rounding error of its variance counts as zero."""
    shape = (60, 64, 50)
    flat, other = device.upload(np.full(shape, constant, np.float32)), device.upload(image(shape))
    still = fields.zero(shape)
    assert math.isnan(fields.scorer(flat, "ncc")(other, still))
    assert math.isnan(fields.scorer(other, "ncc")(flat, still))


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_a_score_has_the_same_bits_every_time(device, fields, similarity):
    fixed, moving = device.upload(image((40, 24, 32), 1)), device.upload(image((40, 24, 32), 2))
    coarse = device.upload(flow((20, 12, 16)))
    scorer = fields.scorer(fixed, similarity)
    scores = [scorer(moving, coarse) for _ in range(4)] + [fields.scorer(fixed, similarity)(moving, coarse)]
    assert len(set(map(float, scores))) == 1


def test_only_asking_for_a_score_waits(device, fields):
    if REAL:
        pytest.skip("counts calls of the stand-in")
    fixed, moving = device.upload(image(SHAPE, 1)), device.upload(image(SHAPE, 2))
    u, features = device.upload(flow(SHAPE)), device.upload(image((*SHAPE, 8)))
    waits = [b"cuEventSynchronize", b"cuStreamSynchronize", b"cuCtxSynchronize", b"cuMemcpyDtoHAsync_v2"]

    def waited():
        return [stand_in().host_gpu_calls(name) for name in waits]

    before, free = waited(), len(device.free_slots)
    scores = [fields.scorer(fixed, similarity)(moving, u) for similarity in SIMILARITIES]
    fields.warp_into(device.zeros((*SHAPE, 16)), features, fields.compose(fields.upsample(u, 1), u))
    assert waited() == before
    assert len(device.free_slots) == free - len(scores)
    once = [float(score) for score in scores]
    after = waited()
    assert sum(after) == sum(before) + len(scores)
    assert [float(score) for score in scores] == once
    assert waited() == after
    assert len(device.free_slots) == free


def test_scores_nobody_asks_for_give_their_place_back(device, fields):
    fixed, still = device.upload(image(SHAPE)), fields.zero(SHAPE)
    scorer, free = fields.scorer(fixed, "ncc"), len(device.free_slots)
    for _ in range(2 * free):
        scorer(fixed, still)
    assert len(device.free_slots) == free
    assert float(scorer(fixed, still)) == pytest.approx(1, abs=1e-12)


# ------------------------------------------------------------------------------------------------- arrays of others


class Foreign:
    """An array with the interface of torch, cupy, numba and pycuda arrays."""

    def __init__(self, array, **changes):
        self._owner = array
        self.__cuda_array_interface__ = {**array.__cuda_array_interface__, "stream": None, **changes}


def test_a_gpus_array_is_read_where_it_is(device, fields):
    array = device.upload(image(SHAPE))
    found = fields.to_device(Foreign(array))
    assert found.pointer == array.pointer
    assert fields.to_device(array) is array
    np.testing.assert_array_equal(fields.to_host(found), image(SHAPE))


def test_a_gpus_array_of_another_kind_is_refused(device, fields):
    array = device.upload(image(SHAPE))
    with pytest.raises(InputError, match=r"image on the GPU: got float64 .* expected contiguous float32"):
        fields.to_device(Foreign(array, typestr="<f8"))
    with pytest.raises(InputError, match="image on the GPU: got float32 with strides"):
        fields.to_device(Foreign(array, strides=array.moveaxis(0, 2).strides))


def test_a_host_array_is_copied_as_float32(fields):
    for array in (image(SHAPE).astype(np.float64), image(SHAPE)[:, ::2], image(SHAPE).T):
        found = fields.to_device(array)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(fields.to_host(found), array.astype(np.float32))


def test_traffic_is_what_arrays_hold():
    from runtime.backends.fields.cuda_traffic import traffic

    shape, voxels = (160, 192, 160), 160 * 192 * 160
    assert traffic("warp_into", shape, 8, np.float16) == voxels * (16 + 16 + 12)
    assert traffic("score", shape, scale=1) == voxels * 20
    assert traffic("score", shape, scale=2) == voxels * 8 + voxels // 8 * 12
    assert traffic("smooth", shape) == voxels * (2 * 12 + 2 * 4)
