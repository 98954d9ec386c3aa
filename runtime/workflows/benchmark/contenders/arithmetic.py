"""Arithmetic work of a registration and peak throughput of the cores: the lower bound of its time."""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from ....backends.engine_set import EngineSet
from ....host.progress import fastest

TAPS = 27  # of a 3x3x3 convolution
PRODUCT_SIZE = 2048  # of the matrices whose product measures the peak: 17 GFLOP, far larger than the caches
PRODUCTS = 6  # products per measurement; the fastest of all measurements counts


@dataclass(frozen=True)
class NetworkWork:
    """Floating-point operations of the network's convolutions; one multiply and add are two.

    Attributes:
        first: channels of level 1.
        blocks: residual blocks of an estimator.
        channels, scales: channels and scale of the feature map by level; scale 8 is 1/8 of the image size per axis.
    """

    first: int
    blocks: int
    channels: Mapping[int, int]
    scales: Mapping[int, int]

    @classmethod
    def of(cls, engine_set: EngineSet) -> "NetworkWork":
        network = engine_set.manifest["network"]
        scales = {entry["level"]: entry["scale"] for entry in engine_set.manifest["levels"]}
        return cls(network["first_channels"], network["res_blocks"], engine_set.channels, scales)

    def encode(self, shape: tuple[int, int, int]) -> int:
        """Return the operations of one run of the feature extractor on an image (I, J, K)."""
        widths = [1, *(self.channels[level] for level in sorted(self.channels))]
        layers = zip(sorted(self.channels), itertools.pairwise(widths), strict=True)
        return sum(_convolution(*pair, self._voxels(shape, level)) for level, pair in layers)

    def estimator(self, level: int, shape: tuple[int, int, int]) -> int:
        """Return the operations of one iteration at a level for an image (I, J, K).

        The estimator is twice as wide above level 1.
        """
        width = 2 * self.first if level == 1 else 4 * self.first
        widths = [2 * self.channels[level], *[width] * (self.blocks + 1), width // 2, 3]
        voxels = self._voxels(shape, level)
        return sum(_convolution(*pair, voxels) for pair in itertools.pairwise(widths))

    def _voxels(self, shape: tuple[int, int, int], level: int) -> int:
        return int(np.prod([size // self.scales[level] for size in shape]))

    def registration(self, shape: tuple[int, int, int], executed: Iterable[tuple[int, ...]]) -> dict[str, float]:
        """Return the GFLOP of a registration: ``encode``, ``estimator`` and ``total``.

        Args:
            shape: shape of the image.
            executed: iterations (a, b, c, d) run at levels 4 to 1, by pass; each pass encodes a moving image.
        """
        executed = list(executed)
        encode = (1 + len(executed)) * self.encode(shape)
        levels = sorted(self.channels, reverse=True)
        estimator = sum(
            count * self.estimator(level, shape)
            for counts in executed
            for level, count in zip(levels, counts, strict=True)
        )
        return {"encode": encode / 1e9, "estimator": estimator / 1e9, "total": (encode + estimator) / 1e9}


def _convolution(channels_in: int, channels_out: int, voxels: int) -> int:
    return 2 * TAPS * channels_in * channels_out * voxels


@dataclass
class MatrixProduct:
    """Throughput of the host in fp32 by NumPy's matrix product, in a process whose threads are set at its start."""

    threads: int
    size: int = PRODUCT_SIZE

    def environment(self) -> dict[str, str]:
        """Return the environment variables that set the threads of NumPy's library; it reads them when it is loaded."""
        names = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
        return {name: str(self.threads) for name in names}

    def measured_peak(self) -> float:
        """Return GFLOP/s, the best of a few products."""
        a, b = (np.full((self.size, self.size), value, np.float32) for value in (0.5, 0.25))
        out = np.empty_like(a)
        return 2e-9 * self.size**3 / fastest(lambda: np.matmul(a, b, out=out), PRODUCTS)
