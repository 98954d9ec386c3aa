"""Field operations on a CUDA GPU: everything between engine calls, over `kernels.cu`.

All is sent to the device's stream and nothing waits for it, but what gives numbers: `float` of a score, the folded
share, the extremes, and arrays brought to the host.
"""

import contextlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ...errors import InputError
from ...geometry.smoothing import EDGE, LEAST, gaussian_weights
from ...images.similarity import LNCC_EPSILON, LNCC_WINDOW, OF_SUMS, SIMILARITIES
from ...types import Array
from ..cuda.device import THREADS, Device, Slot
from ..cuda.gpu import on_gpu
from ..cuda.layout import is_wide, layout_of
from ..cuda.memory import DeviceArray

RUN, SEGMENT = 8, 5 * LNCC_WINDOW - (LNCC_WINDOW - 1)  # as in kernels.cu
MOST_PARTIALS = 4096  # blocks that write partial sums; they follow from the shape alone, and with them the sums' bits

# Bytes that must cross the memory bus at least, per voxel of the image: C channels of b bytes, a flow coarser by s.
TRAFFIC: dict[str, Callable[[int, int, int], float]] = {
    "warp_into": lambda C, b, s: 2 * C * b + 12,
    "carry": lambda C, b, s: 2 * C * b,
    "compose": lambda C, b, s: 36,
    "upsample": lambda C, b, s: 12 + 12 / s**3,
    "warp": lambda C, b, s: 20,
    "score": lambda C, b, s: 8 + 12 / s**3,
    "score lncc": lambda C, b, s: 56 + 12 / s**3,
    "folded_share": lambda C, b, s: 12,
    "extremes": lambda C, b, s: 4,
    "scorer": lambda C, b, s: 4,
    "halve": lambda C, b, s: 36,
    "smooth": lambda C, b, s: 32,
}


def traffic(verb: str, shape: tuple[int, int, int], channels: int = 1, dtype: Any = np.float32, scale: int = 1) -> int:
    """Least bytes a verb reads and writes in the device's memory, each voxel once.

    Args:
        verb: of `CudaFields`; "score" is a scorer's call, "smooth" a smoother's.
        shape: (I, J, K) of the grid that is written, or the image's for scores.
        channels, dtype: of the features that are warped or carried.
        scale: the flow is coarser by this ("upsample", "score").
    """
    return round(TRAFFIC[verb](channels, np.dtype(dtype).itemsize, scale) * math.prod(shape))


class CudaFields:
    """Field operations on channels-last arrays in a device's memory. A flow is float32 (I, J, K, 3), contiguous.

    Images are float32, features float32 or float16. What an engine reads or writes, its input and its residual, may be
    channels-last or planar. Call all of it within `threads()`.
    """

    name = "cuda"

    def __init__(self, device: Device) -> None:
        self._device = device

    def threads(self) -> contextlib.AbstractContextManager:
        """Makes the device the calling thread's."""
        return self._device.current()

    def clock(self) -> Device:
        """Has ``mark()`` and ``seconds(start, stop)``, in the device's own time."""
        return self._device

    def zero(self, shape: tuple[int, int, int]) -> DeviceArray:
        """The flow that moves nothing, (I, J, K, 3)."""
        return self._device.zeros((*shape, 3))

    def fill_fixed(self, buffer: DeviceArray, fixed_features: DeviceArray) -> None:
        """Writes fixed features (I, J, K, C) into the second half of an estimator's input (I, J, K, 2C)."""
        channels = fixed_features.shape[-1]
        carry(fixed_features, buffer.channels(channels, 2 * channels))

    def warp_into(self, buffer: DeviceArray, moving_features: DeviceArray, flow: DeviceArray) -> DeviceArray:
        """Warps features (I, J, K, C) into the first half of `buffer` (I, J, K, 2C) and returns the buffer."""
        channels = moving_features.shape[-1]
        half = buffer.channels(0, channels)
        kernel, width = _kernel("warp_features", moving_features.dtype, is_wide(moving_features))
        work = moving_features.size // width
        layout = (*layout_of(half), int(width > 1 and is_wide(half)))
        self._device.launch(kernel, work, moving_features, flow, half, *_sizes(flow), channels, *layout)
        return buffer

    def warp(self, image: DeviceArray, flow: DeviceArray) -> DeviceArray:
        """``image(x + s flow(x / s))`` of an image (I, J, K), zeros outside; the flow's grid may be s times coarser."""
        out = self._device.empty(image.shape)
        coarse = () if flow.shape[:3] == image.shape else _sizes(flow)
        kernel = "warp_image_coarse" if coarse else "warp_image"
        self._device.launch(kernel, _runs(image.shape), image, flow, *coarse, out, *image.shape)
        return out

    def compose(self, flow: DeviceArray, residual: DeviceArray) -> DeviceArray:
        """``flow(x + residual(x)) + residual(x)``."""
        out = self._device.empty(flow.shape)
        self._device.launch("compose", flow.size // 3, flow, residual, *layout_of(residual), out, *_sizes(flow))
        return out

    def upsample(self, flow: DeviceArray, scale: int = 2) -> DeviceArray:
        """The same displacement on a grid `scale` times finer, values multiplied by `scale`."""
        shape = tuple(scale * size for size in flow.shape[:3])
        out = self._device.empty((*shape, 3))
        self._device.launch("upsample", _runs(shape), flow, *_sizes(flow), out, *shape)
        return out

    def folded_share(self, flow: DeviceArray) -> float:
        """Share of voxels whose Jacobian determinant is <= 0, in [0, 1]. Waits for it."""
        voxels = flow.size // 3
        partial = self._partial("folded", voxels, 1, flow, after=_sizes(flow))
        return _read(_finish(partial, self._device.slot()), self._device)[0] / voxels

    def extremes(self, image: DeviceArray) -> tuple[float, float]:
        """Smallest and largest number of a contiguous float32 array, NaN if any is NaN or Inf. Waits for them."""
        partial = self._partial("extremes", image.size, 2, image, np.int64(image.size))
        slot = self._device.slot()
        self._device.launch_blocks("finish_extremes", 1, partial, partial.shape[1], slot)
        below, above = _read(slot, self._device)[:2]
        return -below, above

    def scorer(self, fixed: DeviceArray, similarity: str, count: float | None = None) -> "Scorer":
        """Similarity of warped moving images with one fixed image, whose own sums are taken once.

        `count`: of the voxels that count, where both images are 0 at the others; None: all do.
        """
        return Scorer(self, fixed, similarity, count)

    def without(self, image: DeviceArray, hole: DeviceArray) -> DeviceArray:
        """An image that is 0 where `hole` is above 0; both (I, J, K)."""
        out = self._device.empty(image.shape)
        self._device.launch("without", image.size, image, hole, out, np.int64(image.size))
        return out

    def total(self, image: DeviceArray) -> float:
        """Sum of an image's voxels. Waits for it."""
        partial = self._partial("image_sums", image.size, 2, image, np.int64(image.size))
        return _read(_finish(partial, self._device.slot()), self._device)[0]

    def halve(self, image: DeviceArray) -> DeviceArray:
        """An image (I, J, K) of even sizes on the next coarser level's grid: means of 2x2x2 voxels."""
        out = self._device.empty(tuple(size // 2 for size in image.shape))
        self._device.launch("halve", out.size, image, out, *out.shape)
        return out

    def smoother(self, fixed: DeviceArray, sigma: float) -> "Smoother":
        """Smooths residuals on the grid of `fixed` where that has no edges; what depends on it alone is made once."""
        return Smoother(self._device, fixed, sigma)

    def to_device(self, array: Any) -> DeviceArray:
        """An image as float32 in the device's memory: a host array is copied there, a GPU's array stays where it is.

        Raises:
            InputError: a GPU's array that is not contiguous float32, or of another GPU.
        """
        if not on_gpu(array):
            return self._device.upload(np.asarray(array, np.float32))
        found = self._device.wrap(array)
        if found.dtype != np.float32 or not found.contiguous:
            raise InputError(
                f"image on the GPU: got {found.dtype} with strides {found.element_strides} for {found.shape}, "
                "expected contiguous float32; convert it first"
            )
        return found

    def to_host(self, array: DeviceArray) -> Array:
        """An array as everything outside the loop knows it: an image (I, J, K), a flow (3, I, J, K). Waits for it."""
        host = self._device.download(array)
        return np.moveaxis(host, -1, 0) if host.ndim == 4 else host

    def close(self) -> None:
        """Gives the device's memory back; arrays that are still in use give theirs back with them."""
        self._device.close()

    def _partial(self, kernel: str, work: int, sums: int, *arguments: Any, after: tuple = ()) -> DeviceArray:
        """Runs a kernel of so many pieces of work that leaves partial sums (sums, blocks), float64, its last argument
        but `after`."""
        blocks = min(max(1, -(-work // THREADS)), MOST_PARTIALS)
        partial = self._device.empty((sums, blocks), np.float64)
        self._device.launch_blocks(kernel, blocks, *arguments, partial, *after)
        return partial


def carry(source: DeviceArray, target: DeviceArray) -> None:
    """Copies features (I, J, K, C) to an array of their shape and dtype; either may be channels-last or planar."""
    kernel, width = _kernel("carry", source.dtype, is_wide(source) or is_wide(target))
    sides = [argument for array in (source, target) for argument in (array, *layout_of(array), int(is_wide(array)))]
    voxels, channels = np.int64(math.prod(source.shape[:3])), source.shape[3]
    source.device.launch(kernel, source.size // width, *sides, voxels, channels)


class Scorer:
    """Similarity at image size between a fixed image (I, J, K) and a moving image warped by a flow of any level.

    Raises:
        InputError: an unknown similarity.
    """

    def __init__(self, fields: CudaFields, fixed: DeviceArray, similarity: str, count: float | None = None) -> None:
        if similarity not in SIMILARITIES:
            raise InputError(f"similarity: got {similarity!r}, expected one of {', '.join(SIMILARITIES)}")
        self._fields, self._device, self._fixed, self._similarity = fields, fields.clock(), fixed, similarity
        self._count = fixed.size if count is None else count
        if similarity != "lncc":
            partial = fields._partial("image_sums", fixed.size, 2, fixed, np.int64(fixed.size))
            self._sums = self._device.empty((2,), np.float64)
            _finish(partial, self._sums)

    def __call__(self, moving: DeviceArray, flow: DeviceArray) -> "Score":
        """Similarity for a flow (i, j, k, 3) on the image's grid or one coarser by a whole factor; NaN if undefined."""
        if self._similarity == "lncc":
            return self._lncc(moving, flow)
        shape = self._fixed.shape
        coarse = () if flow.shape[:3] == shape else _sizes(flow)
        kernel = "score_sums_coarse" if coarse else "score_sums"
        images = (self._fixed, moving, flow, *coarse)
        partial = self._fields._partial(kernel, _runs(shape), 3, *images, after=shape)
        slot, size = _finish(partial, self._device.slot(), self._sums), self._count
        finish = OF_SUMS[self._similarity]
        return Score(self._device, slot, lambda m, mm, mf, f, ff: finish(size, f, ff, m, mm, mf))

    def _lncc(self, moving: DeviceArray, flow: DeviceArray) -> "Score":
        shape, device = self._fixed.shape, self._device
        size_i, size_j, size_k = shape
        planes, warped = device.empty((5, *shape)), self._fields.warp(moving, flow)
        device.launch("lncc_planes", size_i * -(-size_j // SEGMENT) * size_k, self._fixed, warped, planes, *shape)
        work = -(-size_i // SEGMENT) * size_j * size_k
        partial = self._fields._partial("lncc_sums", work, 1, planes, float(LNCC_EPSILON), after=shape)
        return Score(device, _finish(partial, device.slot()), lambda total, *_: total / warped.size)


class Smoother:
    """Smooths residual flows on a level's grid where the fixed image has no edges.

    Args:
        device: where it works.
        fixed: the image (I, J, K) on that grid.
        sigma: voxels, above 0.
    """

    def __init__(self, device: Device, fixed: DeviceArray, sigma: float) -> None:
        self._device, self._weights = device, device.upload(gaussian_weights(sigma))
        self._trusted = device.empty(fixed.shape)
        device.launch("confidences", fixed.size, fixed, self._trusted, *fixed.shape, float(EDGE))
        self._around = self._gaussian(self._trusted)

    def __call__(self, residual: DeviceArray) -> DeviceArray:
        """The smoothed residual, (I, J, K, 3), contiguous."""
        where, voxels = (residual, *layout_of(residual)), self._trusted.size
        trusted, out = self._device.empty(residual.shape), self._device.empty(residual.shape)
        self._device.launch("trusted_part", voxels, *where, self._trusted, trusted, np.int64(voxels))
        near = self._gaussian(trusted)
        known = (self._trusted, self._around, near)
        self._device.launch("fill_in", voxels, *where, *known, out, np.int64(voxels), float(LEAST))
        return out

    def _gaussian(self, array: DeviceArray) -> DeviceArray:
        """Filtered along the first three axes of (I, J, K, ...), contiguous."""
        for axis in range(3):
            out, inner = self._device.empty(array.shape), math.prod(array.shape[axis + 1 :])
            line = (array.shape[axis], np.int64(inner), np.int64(array.size))
            self._device.launch("gaussian", array.size, array, self._weights, self._weights.size // 2, out, *line)
            array = out
        return array


class Score:
    """A similarity on its way from the device; ``float()`` waits for it."""

    def __init__(self, device: Device, slot: Slot, finish: Callable[..., float]) -> None:
        self._device, self._slot, self._finish, self._mark = device, slot, finish, device.mark()
        self._value: float | None = None

    def __float__(self) -> float:
        if self._value is None:
            self._device.wait(self._mark)
            self._value = self._finish(*map(float, self._slot.values[:5]))
            self._slot = self._mark = self._finish = None
        return self._value


def _finish(partial: DeviceArray, out: Any, known: DeviceArray | None = None) -> Any:
    """Adds partial sums up into `out`, an array or a slot, with numbers known already behind them; gives `out`."""
    sums, blocks = partial.shape
    others = (known, known.size) if known else (partial, 0)
    partial.device.launch_blocks("finish_sums", 1, partial, blocks, sums, *others, out)
    return out


def _read(slot: Slot, device: Device) -> list[float]:
    device.wait(device.mark())
    return slot.values.tolist()


def _sizes(array: DeviceArray) -> tuple[int, int, int]:
    return array.shape[:3]


def _runs(shape: tuple[int, int, int]) -> int:
    """Pieces of work of kernels whose threads take RUN voxels along J."""
    return shape[0] * -(-shape[1] // RUN) * shape[2]


def _kernel(name: str, dtype: np.dtype, wide: bool) -> tuple[str, int]:
    """A kernel's form for arrays of a dtype, and how many channels one of its threads takes."""
    kind, width = ("half", 8) if dtype == np.float16 else ("float", 4)
    return (f"{name}_{kind}{width}", width) if wide else (f"{name}_{kind}", 1)
