"""Field operations on the host: everything between engine calls, over `kernels_numba`."""

import contextlib
import math
from collections.abc import Iterator

import numba
import numpy as np

from runtime.backends import kernels_numba as kernels
from runtime.geometry.errors import InputError
from runtime.geometry.similarity import LNCC_EPSILON, LNCC_WINDOW, SIMILARITIES

Array = np.ndarray


class NumbaFields:
    """Field operations on planar float32 arrays in host memory. A flow is an array (3, I, J, K).

    Args:
        threads: CPU threads the kernels use within `threads()`; None: all that numba sees.
    """

    name = "numba"

    def __init__(self, threads: int | None = None) -> None:
        self._threads = min(threads or numba.config.NUMBA_NUM_THREADS, numba.config.NUMBA_NUM_THREADS)

    @contextlib.contextmanager
    def threads(self) -> Iterator[None]:
        """Holds numba, in this Python thread, to the threads asked for; leaves it as it was."""
        before = numba.get_num_threads()
        numba.set_num_threads(self._threads)
        try:
            yield
        finally:
            numba.set_num_threads(before)

    def zero(self, shape: tuple[int, int, int]) -> Array:
        """The flow that moves nothing."""
        return np.zeros((3, *shape), np.float32)

    def estimator_input(self, fixed_features: Array) -> Array:
        """Buffer (2C, I, J, K) of a level's estimator: the warped moving features' half, empty, then the fixed half."""
        buffer = np.empty((2 * len(fixed_features), *fixed_features.shape[1:]), np.float32)
        buffer[len(fixed_features) :] = fixed_features
        return buffer

    def warp_into(self, buffer: Array, moving_features: Array, flow: Array) -> Array:
        """Warps features (C, I, J, K) into the first half of `buffer` (2C, I, J, K) and returns the buffer."""
        kernels.warp(moving_features, flow, buffer[: len(moving_features)])
        return buffer

    def warp(self, image: Array, flow: Array) -> Array:
        """``image(x + flow(x))`` of an image (I, J, K), zeros outside."""
        out = np.empty_like(image)
        kernels.warp(image[None], flow, out[None])
        return out

    def compose(self, flow: Array, residual: Array) -> Array:
        """``flow(x + residual(x)) + residual(x)``."""
        out = np.empty_like(residual)
        kernels.compose(flow, residual, out)
        return out

    def upsample(self, flow: Array, scale: int = 2) -> Array:
        """The same displacement on a grid `scale` times finer, values multiplied by `scale`."""
        out = np.empty((3, *(scale * size for size in flow.shape[1:])), np.float32)
        kernels.upsample(flow, out)
        return out

    def folded_share(self, flow: Array) -> float:
        """Share of voxels whose Jacobian determinant is <= 0, in [0, 1]."""
        counts = np.empty(flow.shape[1], np.int64)
        kernels.folded_counts(flow, counts)
        return float(counts.sum() / flow[0].size)

    def scorer(self, fixed: Array, similarity: str) -> "Scorer":
        """Similarity of warped moving images with one fixed image, whose own sums are taken once."""
        return Scorer(fixed, similarity)

    def to_device(self, array: Array) -> Array:
        """Contiguous float32; the host is the device."""
        return np.ascontiguousarray(array, np.float32)

    def to_host(self, flow: Array) -> Array:
        return flow


class Scorer:
    """Similarity at image size between a fixed image (I, J, K) and a moving image warped by a flow of any level.

    Raises:
        InputError: an unknown similarity.
    """

    def __init__(self, fixed: Array, similarity: str) -> None:
        if similarity not in SIMILARITIES:
            raise InputError(f"similarity: got {similarity!r}, expected one of {', '.join(SIMILARITIES)}")
        self._fixed, self._similarity = fixed, similarity
        self._sum_f = float(fixed.sum(dtype=np.float64))
        self._sum_ff = float(np.square(fixed, dtype=np.float64).sum())

    def __call__(self, moving: Array, flow: Array) -> float:
        """Similarity for a flow (3, i, j, k) on a grid coarser than the image by a whole factor; NaN if undefined."""
        if self._similarity == "lncc":
            return self._lncc(moving, flow)
        partial = np.empty((self._fixed.shape[0], 3))
        kernels.similarity_sums(self._fixed, moving, flow, partial)
        sums = [math.fsum(column) for column in partial.T]
        return self._ncc(*sums) if self._similarity == "ncc" else self._negative_mse(*sums)

    def _ncc(self, sum_m: float, sum_mm: float, sum_mf: float) -> float:
        count = self._fixed.size
        var_f, var_m = self._sum_ff - self._sum_f**2 / count, sum_mm - sum_m**2 / count
        # Rounding of one-pass sums: what is left of a constant image is noise, not structure.
        if not (var_f > 1e-12 * self._sum_ff and var_m > 1e-12 * sum_mm):
            return math.nan
        return (sum_mf - self._sum_f * sum_m / count) / math.sqrt(var_f * var_m)

    def _negative_mse(self, sum_m: float, sum_mm: float, sum_mf: float) -> float:
        return -(sum_mm - 2 * sum_mf + self._sum_ff) / self._fixed.size

    def _lncc(self, moving: Array, flow: Array) -> float:
        warped = np.empty_like(moving)
        kernels.warp_upsampled(moving, flow, warped)
        partial = np.empty(-(-warped.shape[0] // kernels.LNCC_BLOCK))
        kernels.lncc_sums(self._fixed, warped, LNCC_WINDOW, LNCC_EPSILON, partial)
        return math.fsum(partial) / warped.size
