"""Field operations between engine calls on the CPU, on top of `cpu_kernels`."""

import contextlib
import math

import numba
import numpy as np

from ...errors import InputError
from ...geometry.smoothing import gaussian_weights
from ...host.kernels import on_threads
from ...host.memory import ARRAYS
from ...images.resampling.resample import smooth
from ...images.similarity import LNCC_EPSILON, LNCC_WINDOW, OF_SUMS, SIMILARITIES
from ...types import Array, Shape
from . import cpu_kernels as kernels
from . import cpu_lncc, cpu_smoothing


class NumbaFields:
    """Field operations on channels-last, contiguous float32 arrays in host memory. A flow is an array (I, J, K, 3).

    Arrays that an engine reads or writes, its input buffer and its residual, may have any strides.

    Args:
        threads: CPU threads that the kernels use within `threads()`; None: all that numba has.
    """

    name = "numba"

    def __init__(self, threads: int | None = None) -> None:
        self._threads = min(threads or numba.config.NUMBA_NUM_THREADS, numba.config.NUMBA_NUM_THREADS)

    def threads(self) -> contextlib.AbstractContextManager:
        """Limit numba in this Python thread to the requested number of threads; restored on exit."""
        return on_threads(self._threads)

    def zero(self, shape: Shape) -> Array:
        """Return the zero flow (I, J, K, 3)."""
        flow = ARRAYS.empty((*shape, 3))
        flow.fill(0)
        return flow

    def fill_fixed(self, buffer: Array, fixed_features: Array) -> None:
        """Write fixed features (I, J, K, C) into the second half of an estimator's input (I, J, K, 2C)."""
        memory, *strides = _flat(buffer)
        kernels.carry(fixed_features, memory, fixed_features.shape[-1] * strides[-1], *strides)

    def warp_into(self, buffer: Array, moving_features: Array, flow: Array) -> Array:
        """Warp features (I, J, K, C) into the first half of `buffer` (I, J, K, 2C) and return the buffer."""
        kernels.warp_features(moving_features, flow, *_flat(buffer))
        return buffer

    def warp(self, image: Array, flow: Array) -> Array:
        """Return ``image(x + flow(x))`` for an image (I, J, K), with zeros outside."""
        out = ARRAYS.empty(image.shape)
        kernels.warp_image(image[..., None], flow, out[..., None])
        return out

    def compose(self, flow: Array, residual: Array) -> Array:
        """Return ``flow(x + residual(x)) + residual(x)``."""
        out = ARRAYS.empty(flow.shape)
        kernels.compose(flow, *_flat(residual), out)
        return out

    def upsample(self, flow: Array, scale: int = 2) -> Array:
        """Return the same displacement on a grid `scale` times finer, with values multiplied by `scale`."""
        out = ARRAYS.empty((*(scale * size for size in flow.shape[:3]), 3))
        kernels.upsample(flow, out)
        return out

    def folded_share(self, flow: Array) -> float:
        """Return the fraction of voxels whose Jacobian determinant is <= 0."""
        counts = np.empty(len(flow), np.int64)
        kernels.folded_counts(flow, counts)
        return float(counts.sum() / math.prod(flow.shape[:3]))

    def extremes(self, image: Array) -> tuple[float, float]:
        """Return the minimum and maximum of an array; both NaN if any element is NaN or Inf."""
        low, high = float(image.min()), float(image.max())
        return (low, high) if math.isfinite(low) and math.isfinite(high) else (math.nan, math.nan)

    def scorer(self, fixed: Array, similarity: str, count: float | None = None) -> "Scorer":
        """Return a scorer of warped moving images against a fixed image, whose own sums are computed once.

        Args:
            fixed: image (I, J, K).
            similarity: name of the similarity.
            count: number of voxels to average over, if all others add nothing: both images are 0 there, or for local
                correlation in their whole windows; None: all voxels.
        """
        return Scorer(fixed, similarity, count)

    def without(self, image: Array, hole: Array) -> Array:
        """Return the image with 0 wherever `hole` is above 0; both (I, J, K)."""
        return np.where(hole > 0, np.float32(0), image)

    def near(self, image: Array) -> Array:
        """Return an image (>= 0) that is above 0 where the window of local correlation holds a voxel above 0."""
        from scipy.ndimage import maximum_filter

        return maximum_filter(image, LNCC_WINDOW, mode="constant")

    def total(self, image: Array) -> float:
        """Return the sum of an image's voxels."""
        return float(image.sum(dtype=np.float64))

    def halve(self, image: Array) -> Array:
        """Return an image (I, J, K) of even sizes on the next coarser level's grid: means of 2x2x2 voxels."""
        out = ARRAYS.empty(tuple(size // 2 for size in image.shape))
        cpu_smoothing.halve(image, out)
        return out

    def smoother(self, fixed: Array, sigma: float) -> "Smoother":
        """Return a smoother of residuals where `fixed`, on their grid, has no edges; shares work between residuals."""
        return Smoother(fixed, sigma)

    def close(self) -> None:
        """Do nothing: there is nothing to release."""

    def to_device(self, array: Array) -> Array:
        """Return an array as contiguous, writable float32 (numba would compile again for read-only arrays)."""
        return np.require(array, np.float32, ["C", "W"])

    def to_host(self, array: Array) -> Array:
        """Return a view in the layout used outside the loop: an image (I, J, K) or a flow (3, I, J, K)."""
        return np.moveaxis(array, -1, 0) if array.ndim == 4 else array


def _flat(array: Array) -> tuple:
    """Return an array's memory as one contiguous vector, and its strides in elements: one compiled form for all."""
    strides = [stride // array.itemsize for stride in array.strides]
    reach = 1 + sum((size - 1) * stride for size, stride in zip(array.shape, strides, strict=True))
    return np.lib.stride_tricks.as_strided(array, (reach,), (array.itemsize,)), *strides


class Scorer:
    """The similarity at image size between a fixed image (I, J, K) and a moving image warped by a flow of any level.

    Args:
        fixed: the image.
        similarity: name of the similarity.
        count: as for `NumbaFields.scorer`.

    Raises:
        InputError: the similarity is unknown.
    """

    def __init__(self, fixed: Array, similarity: str, count: float | None = None) -> None:
        if similarity not in SIMILARITIES:
            raise InputError(f"similarity: got {similarity!r}, expected one of {', '.join(SIMILARITIES)}")
        self._fixed, self._similarity = fixed[..., None], similarity
        self._count = fixed.size if count is None else count
        self._sum_f = float(fixed.sum(dtype=np.float64))
        self._sum_ff = float(np.square(fixed, dtype=np.float64).sum())

    def __call__(self, moving: Array, flow: Array) -> float:
        """Return the similarity for a flow (i, j, k, 3) on the image's grid or a whole factor coarser.

        It is NaN where it is undefined.
        """
        moving = moving[..., None]
        if self._similarity == "lncc":
            return self._lncc(moving, flow)
        partial = np.empty((len(moving), 3))
        kernels.similarity_sums(self._fixed, moving, flow, partial)
        sums = [math.fsum(column) for column in partial.T]
        return OF_SUMS[self._similarity](self._count, self._sum_f, self._sum_ff, *sums)

    def _lncc(self, moving: Array, flow: Array) -> float:
        warped = ARRAYS.empty(moving.shape)
        kernels.warp_image(moving, flow, warped)
        partial = np.empty(-(-len(warped) // cpu_lncc.BLOCK))
        cpu_lncc.lncc_sums(self._fixed, warped, LNCC_WINDOW // 2, LNCC_EPSILON, partial)
        return math.fsum(partial) / self._count


class Smoother:
    """A filter that smooths residual flows on a level's grid where the fixed image has no edges.

    Args:
        fixed: the image (I, J, K) on that grid.
        sigma: standard deviation of the Gaussian in voxels, above 0.
    """

    def __init__(self, fixed: Array, sigma: float) -> None:
        self._weights, self._trusted = gaussian_weights(sigma), ARRAYS.empty(fixed.shape)
        cpu_smoothing.confidences(fixed, self._trusted)
        self._around = smooth(self._trusted, (sigma, sigma, sigma))

    def __call__(self, residual: Array) -> Array:
        """Return the smoothed residual (I, J, K, 3), contiguous."""
        size_i, size_j, size_k = self._trusted.shape
        slices, out = ARRAYS.empty((size_i, size_j, 3 * size_k)), ARRAYS.empty(residual.shape)
        flat = _flat(residual)
        cpu_smoothing.smooth_slices(*flat, self._trusted, self._weights, slices)
        known = (self._trusted, self._around, slices, self._weights)
        cpu_smoothing.fill_in(*flat, *known, out.reshape(slices.shape))
        return out
