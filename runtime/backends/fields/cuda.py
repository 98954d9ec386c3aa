"""Field operations between engine calls on a CUDA GPU, on top of `kernels.cu`.

All work is sent to the device's stream. Only operations that return numbers or host arrays wait for it: `float` of a
score, `total`, the folded fraction, the extremes, and copies to the host.
"""

import contextlib
import math
from collections.abc import Callable
from typing import Any, cast

import numpy as np

from ...errors import InputError
from ...images.similarity import LNCC_EPSILON, LNCC_WINDOW, OF_SUMS, SIMILARITIES
from ...types import Array, Shape
from ..cuda.device import THREADS, Device, Slot
from ..cuda.gpu import on_gpu
from ..cuda.layout import is_wide, layout_of
from ..cuda.memory import DeviceArray
from .cuda_smoothing import Smoother, filtered

RUN, SEGMENT = 8, 5 * LNCC_WINDOW - (LNCC_WINDOW - 1)  # as in kernels.cu
MOST_PARTIALS = 4096  # blocks that write partial sums; their number depends only on the shape, so sums are reproducible


class CudaFields:
    """Field operations on channels-last arrays in a device's memory. A flow is float32 (I, J, K, 3), contiguous.

    Images are float32, features float32 or float16. Arrays that an engine reads or writes, its input and its residual,
    may be channels-last or planar. All methods must be called within `threads()`.
    """

    name = "cuda"

    def __init__(self, device: Device) -> None:
        self._device = device

    def threads(self) -> contextlib.AbstractContextManager:
        """Make the device current in the calling thread."""
        return self._device.current()

    def clock(self) -> Device:
        """Return the object whose ``mark()`` and ``seconds(start, stop)`` measure device time."""
        return self._device

    def zero(self, shape: Shape) -> DeviceArray:
        """Return the zero flow (I, J, K, 3)."""
        return self._device.zeros((*shape, 3))

    def fill_fixed(self, buffer: DeviceArray, fixed_features: DeviceArray) -> None:
        """Write fixed features (I, J, K, C) into the second half of an estimator's input (I, J, K, 2C)."""
        channels = fixed_features.shape[-1]
        carry(fixed_features, buffer.channels(channels, 2 * channels))

    def warp_into(self, buffer: DeviceArray, moving_features: DeviceArray, flow: DeviceArray) -> DeviceArray:
        """Warp features (I, J, K, C) into the first half of `buffer` (I, J, K, 2C) and return the buffer."""
        channels = moving_features.shape[-1]
        half = buffer.channels(0, channels)
        kernel, width = _kernel("warp_features", moving_features.dtype, is_wide(moving_features))
        work = moving_features.size // width
        layout = (*layout_of(half), int(width > 1 and is_wide(half)))
        self._device.launch(kernel, work, moving_features, flow, half, *_sizes(flow), channels, *layout)
        return buffer

    def warp(self, image: DeviceArray, flow: DeviceArray) -> DeviceArray:
        """Return ``image(x + s flow(x / s))`` for an image (I, J, K), zeros outside; the flow's grid may be coarser."""
        out = self._device.empty(image.shape)
        coarse = () if flow.shape[:3] == image.shape else _sizes(flow)
        kernel = "warp_image_coarse" if coarse else "warp_image"
        self._device.launch(kernel, _runs(_sizes(image)), image, flow, *coarse, out, *image.shape)
        return out

    def compose(self, flow: DeviceArray, residual: DeviceArray) -> DeviceArray:
        """Return ``flow(x + residual(x)) + residual(x)``."""
        out = self._device.empty(flow.shape)
        self._device.launch("compose", flow.size // 3, flow, residual, *layout_of(residual), out, *_sizes(flow))
        return out

    def upsample(self, flow: DeviceArray, scale: int = 2) -> DeviceArray:
        """Return the same displacement on a grid `scale` times finer, with values multiplied by `scale`."""
        shape = cast(Shape, tuple(scale * size for size in flow.shape[:3]))
        out = self._device.empty((*shape, 3))
        self._device.launch("upsample", _runs(shape), flow, *_sizes(flow), out, *shape)
        return out

    def folded_share(self, flow: DeviceArray) -> float:
        """Return the fraction of voxels whose Jacobian determinant is <= 0; waits for the device."""
        voxels = flow.size // 3
        partial = self._partial("folded", voxels, 1, flow, after=_sizes(flow))
        return _read(_finish(partial, self._device.slot()), self._device)[0] / voxels

    def extremes(self, image: DeviceArray) -> tuple[float, float]:
        """Return the minimum and maximum of a contiguous float32 array, NaN if any is NaN or Inf; waits for them."""
        partial = self._partial("extremes", image.size, 2, image, np.int64(image.size))
        slot = self._device.slot()
        self._device.launch_blocks("finish_extremes", 1, partial, partial.shape[1], slot)
        below, above = _read(slot, self._device)[:2]
        return -below, above  # the kernel computes maxima only, so the minimum comes as the maximum of -f

    def scorer(self, fixed: DeviceArray, similarity: str, count: float | None = None) -> "Scorer":
        """Return a scorer of warped moving images against a fixed image, whose own sums are computed once.

        Args:
            fixed: image (I, J, K).
            similarity: name of the similarity.
            count: number of voxels to average over, if all others add nothing: both images are 0 there, or for local
                correlation in their whole windows; None: all voxels.
        """
        return Scorer(self, fixed, similarity, count)

    def without(self, image: DeviceArray, hole: DeviceArray) -> DeviceArray:
        """Return the image with 0 wherever `hole` is above 0; both (I, J, K)."""
        out = self._device.empty(image.shape)
        self._device.launch("without", image.size, image, hole, out, np.int64(image.size))
        return out

    def near(self, image: DeviceArray) -> DeviceArray:
        """Return an image (>= 0) that is above 0 where the window of local correlation holds a voxel above 0."""
        return filtered(self._device, image, self._device.upload(np.ones(LNCC_WINDOW, np.float32)))

    def total(self, image: DeviceArray) -> float:
        """Return the sum of an image's voxels; waits for the device."""
        partial = self._partial("image_sums", image.size, 2, image, np.int64(image.size))
        return _read(_finish(partial, self._device.slot()), self._device)[0]

    def halve(self, image: DeviceArray) -> DeviceArray:
        """Return an image (I, J, K) of even sizes on the next coarser level's grid: means of 2x2x2 voxels."""
        out = self._device.empty(tuple(size // 2 for size in image.shape))
        self._device.launch("halve", out.size, image, out, *out.shape)
        return out

    def smoother(self, fixed: DeviceArray, sigma: float) -> "Smoother":
        """Return a smoother of residuals where `fixed`, on their grid, has no edges; shares work between residuals."""
        return Smoother(self._device, fixed, sigma)

    def to_device(self, array: Any) -> DeviceArray:
        """Return an image as float32 in device memory: a host array is copied, a GPU array is wrapped without a copy.

        Raises:
            InputError: a GPU array is not contiguous float32, or is on another GPU.
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
        """Copy to the host, in the layout used outside the loop: image (I, J, K), flow (3, I, J, K); waits for it."""
        host = self._device.download(array)
        return np.moveaxis(host, -1, 0) if host.ndim == 4 else host

    def close(self) -> None:
        """Return the device's memory to the driver; arrays still in use return theirs once they are gone."""
        self._device.close()

    def _partial(self, kernel: str, work: int, sums: int, *arguments: Any, after: tuple = ()) -> DeviceArray:
        """Run a kernel that writes partial sums, and return them as a float64 array (sums, blocks).

        Args:
            kernel: name of the kernel.
            work: number of work items, which determines the number of blocks.
            sums: number of sums.
            arguments: the kernel's arguments before the partial sums.
            after: its arguments after them.
        """
        blocks = min(max(1, -(-work // THREADS)), MOST_PARTIALS)
        partial = self._device.empty((sums, blocks), np.float64)
        self._device.launch_blocks(kernel, blocks, *arguments, partial, *after)
        return partial


def carry(source: DeviceArray, target: DeviceArray) -> None:
    """Copy features (I, J, K, C) to an array of the same shape and dtype; either may be channels-last or planar."""
    kernel, width = _kernel("carry", source.dtype, is_wide(source) or is_wide(target))
    sides = [argument for array in (source, target) for argument in (array, *layout_of(array), int(is_wide(array)))]
    voxels, channels = np.int64(math.prod(source.shape[:3])), source.shape[3]
    source.device.launch(kernel, source.size // width, *sides, voxels, channels)


class Scorer:
    """The similarity at image size between a fixed image (I, J, K) and a moving image warped by a flow of any level.

    Args:
        fields: the field operations to use.
        fixed: the image.
        similarity: name of the similarity.
        count: as for `CudaFields.scorer`.

    Raises:
        InputError: the similarity is unknown.
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

    def __call__(self, moving: DeviceArray, flow: DeviceArray) -> "PendingScore":
        """Return the similarity for a flow (i, j, k, 3) on the image's grid or a whole factor coarser.

        It is NaN where it is undefined.
        """
        if self._similarity == "lncc":
            return self._lncc(moving, flow)
        shape = _sizes(self._fixed)
        coarse = () if flow.shape[:3] == shape else _sizes(flow)
        kernel = "score_sums_coarse" if coarse else "score_sums"
        images = (self._fixed, moving, flow, *coarse)
        partial = self._fields._partial(kernel, _runs(shape), 3, *images, after=shape)
        slot, size = _finish(partial, self._device.slot(), self._sums), self._count
        finish = OF_SUMS[self._similarity]
        return PendingScore(self._device, slot, lambda m, mm, mf, f, ff: finish(size, f, ff, m, mm, mf))

    def _lncc(self, moving: DeviceArray, flow: DeviceArray) -> "PendingScore":
        shape, device, count = self._fixed.shape, self._device, self._count
        size_i, size_j, size_k = shape
        planes, warped = device.empty((5, *shape)), self._fields.warp(moving, flow)
        device.launch("lncc_planes", size_i * -(-size_j // SEGMENT) * size_k, self._fixed, warped, planes, *shape)
        work = -(-size_i // SEGMENT) * size_j * size_k
        partial = self._fields._partial("lncc_sums", work, 1, planes, float(LNCC_EPSILON), after=shape)
        return PendingScore(device, _finish(partial, device.slot()), lambda total, *_: total / count)


class PendingScore:
    """A similarity that the device may still be computing; ``float()`` waits for it."""

    def __init__(self, device: Device, slot: Slot, finish: Callable[..., float]) -> None:
        self._device, self._slot, self._finish, self._mark = device, slot, finish, device.mark()
        self._value: float | None = None

    def __float__(self) -> float:
        if self._value is None:
            self._device.wait(self._mark)
            self._value = self._finish(*map(float, self._slot.values[:5]))
            del self._slot, self._mark, self._finish  # releases the slot for reuse
        return self._value


def _finish(partial: DeviceArray, out: Any, known: DeviceArray | None = None) -> Any:
    """Add partial sums up into `out`, an array or a slot, append the numbers `known`, and return `out`."""
    sums, blocks = partial.shape
    others = (known, known.size) if known else (partial, 0)
    partial.device.launch_blocks("finish_sums", 1, partial, blocks, sums, *others, out)
    return out


def _read(slot: Slot, device: Device) -> list[float]:
    device.wait(device.mark())
    return slot.values.tolist()


def _sizes(array: DeviceArray) -> Shape:
    return cast(Shape, array.shape[:3])


def _runs(shape: Shape) -> int:
    """Return the number of work items of kernels whose threads process RUN voxels along J each."""
    return shape[0] * -(-shape[1] // RUN) * shape[2]


def _kernel(name: str, dtype: np.dtype, wide: bool) -> tuple[str, int]:
    """Return the name of a kernel's variant for a dtype, and the number of channels that each thread processes."""
    kind, width = ("half", 8) if dtype == np.float16 else ("float", 4)
    return (f"{name}_{kind}{width}", width) if wide else (f"{name}_{kind}", 1)
