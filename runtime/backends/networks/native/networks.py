"""Engines run without an engine library: convolutions compiled for this processor, with background skipped."""

import itertools
from dataclasses import dataclass

import numba
import numpy as np

from ....errors import InputError
from ....host.kernels import SMALL
from ....host.memory import ARRAYS
from ....host.progress import fastest
from ....loop.schedules import LEVELS
from ....types import Array, Shape
from ...engine_set import ENGINES, EXTRACTOR, EngineSet, estimator_name
from ..graph_weights import Convolution, read_chain
from . import kernels
from .llvm import VOXELS

PLANES = 4  # planes per ring: while one is written, the next layer reads the three before it
PEAK_BLOCKS, PEAK_RUNS = 20_000, 5  # blocks per run and runs that measure the peak
LINE = 16  # floats per cache line
# Maps the three weights along an axis to those of the four products of Winograd's F(2, 3).
COMBINED = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
AS_MANY = {3: 4}  # numbers of channels that are padded to fill a vector


@dataclass(frozen=True)
class Layer:
    """A convolution: weights (3, 3, 3, C, C'), bias (C',), and the slope of the LeakyReLU after it (1: none)."""

    weights: Array
    bias: Array
    slope: float


class NativeNetworks:
    """Feature extractor and flow estimators as chains of compiled convolutions, channels-last, fp32.

    Args:
        engine_set: a checked set.
        threads: not used: the kernels run on the threads of the field operations beside them.
        precision: "fp32".

    Raises:
        InputError: a graph is not that of an RP-Net with 8 channels at level 1.
    """

    library = "numba"
    version = numba.__version__
    device = "cpu"

    def __init__(self, engine_set: EngineSet, threads: int | None = None, precision: str = "fp32") -> None:
        self.precision, self.closed = precision, False
        self._channels = engine_set.channels
        self._extractors: dict[int, ConvolutionChain] = {}
        background = np.zeros((1, 1, 1, 1), np.float32)
        graphs = read_graphs(engine_set)
        for level, layer in zip(sorted(LEVELS), graphs[EXTRACTOR], strict=True):
            source = background if level == 1 else _pooled_background(background)
            self._extractors[level] = ConvolutionChain([layer], source)
            background = self._extractors[level].background_out
        self._estimators = {
            level: ConvolutionChain(
                graphs[estimator_name(level)],
                np.concatenate([self._extractors[level].background_out] * 2, axis=-1),
            )
            for level in LEVELS
        }

    def rest(self) -> None:
        """Do nothing: between calls only memory for the next one of the same size is kept."""

    def close(self) -> None:
        self._extractors, self._estimators, self.closed = {}, {}, True

    def features(self, image: Array) -> dict[int, Array]:
        """Return the feature maps (I, J, K, C) by level of an image (I, J, K) in [0, 1]."""
        found: dict[int, Array] = {}
        for level, chain in self._extractors.items():
            found[level] = chain(image[..., None] if level == 1 else _pooled(found[level - 1]))
        return found

    def estimator_input(self, level: int, shape: Shape) -> Array:
        """Return an empty contiguous (I, J, K, 2C)."""
        return ARRAYS.empty((*shape, 2 * self._channels[level]))

    def residual(self, level: int, features: Array) -> Array:
        """Return the residual flow (I, J, K, 3) of an `estimator_input`; overwritten by the level's next call."""
        return self._estimators[level](features, reuse=True)

    @staticmethod
    def measured_peak(precision: str, threads: int) -> float:
        """Return the fp32 GFLOP/s of the convolutions' inner loop on data that stay in the cache, the best of a few."""
        channels = 32
        kind = kernels.KINDS.index((channels, channels))
        weights = _aligned(9 * channels * channels)
        rows = _aligned(threads * 2 * SMALL).reshape(threads, -1)  # large enough to be split among threads
        flop = 2 * weights.size * VOXELS * PEAK_BLOCKS * threads
        return 1e-9 * flop / fastest(lambda: kernels.repeat_block(rows, kind, weights, PEAK_BLOCKS), PEAK_RUNS)


class ConvolutionChain:
    """A chain of convolutions on a volume (I, J, K, C), channels-last.

    Args:
        layers: the layers in order.
        background: (n, n, n, C), n odd: the input for an empty image. Its outer (n - 1) / 2 voxels hold the values near
            the borders, its middle voxel the value everywhere else.

    Attributes:
        background_out: the same for the chain's output, which borders influence one voxel further per layer.
    """

    def __init__(self, layers: list[Layer], background: Array) -> None:
        widths = [background.shape[3], *(AS_MANY.get(layer.bias.size, layer.bias.size) for layer in layers)]
        self._channels_out = layers[-1].bias.size
        self._table = np.zeros((len(widths), kernels.COLUMNS), np.int64)
        self._table[:, kernels.CHANNELS] = widths
        self._slopes = np.array([1, *(layer.slope for layer in layers)], np.float32)
        self._weights = self._packed(layers, widths)
        self._background = _like(background, background.shape[0] + 2 * len(layers))
        self._quiet = self._run_on_background()
        self._place: tuple[Shape, Array, Array] | None = None
        self._out: Array | None = None

    def __call__(self, source: Array, reuse: bool = False) -> Array:
        """Return the last layer's output (I, J, K, C') for `source`; with `reuse` the next such call overwrites it."""
        shape = source.shape[:3]
        if self._place is None or self._place[0] != shape:
            active = np.empty((len(self._table), *shape[:2], _blocks(shape)), np.uint8)
            self._place, self._out = (shape, self._rings(shape, PLANES), active), None
        _, memory, active = self._place
        self._mark(source, active)
        out = self._out if reuse else None
        if out is None:
            out = ARRAYS.empty((*shape, self._channels_out))
        if reuse:
            self._out = out
        self._sweep(source, active, memory, PLANES, out)
        return out

    @property
    def activity(self) -> float:
        """The fraction of blocks that the layers computed for the last volume, in [0, 1]."""
        assert self._place is not None  # there was a volume
        return float(np.mean(self._place[2][1:] != 0))

    def _packed(self, layers: list[Layer], widths: list[int]) -> Array:
        """Return all weights and biases in one array, after entering their offsets in the table."""
        pieces = [np.zeros(0, np.float32)]
        for n, (layer, before, after) in enumerate(zip(layers, widths[:-1], widths[1:], strict=True), start=1):
            if (before, after) not in kernels.KINDS:
                raise InputError(
                    f"--backend: native has no convolution of {before} to {after} channels, expected one of "
                    f"{kernels.KINDS}; use another backend"
                )
            weights, bias = np.zeros((3, 3, 3, before, after), np.float32), np.zeros(after, np.float32)
            weights[..., : layer.bias.size], bias[: layer.bias.size] = layer.weights, layer.bias
            weights = np.einsum("tj,ijkco->tikco", COMBINED, weights).astype(np.float32)
            begin = sum(piece.size for piece in pieces)
            self._table[n, kernels.KIND] = kernels.KINDS.index((before, after))
            self._table[n, kernels.WEIGHTS], self._table[n, kernels.BIAS] = begin, begin + weights.size
            pieces += [weights.ravel(), np.tile(bias, VOXELS)]
        packed = _aligned(sum(piece.size for piece in pieces))
        packed[:] = np.concatenate(pieces)
        return packed

    def _run_on_background(self) -> Array:
        """Return the output of every layer for pure background, (n, n, n, C) each, concatenated flat."""
        size, widths = self._background.shape[0], self._table[:, kernels.CHANNELS]
        shape = (size,) * 3
        active = np.full((len(widths), size, size, _blocks(shape)), 255, np.uint8)
        self._quiet = _aligned(size**3 * int(widths.sum()))
        out = np.empty((*shape, int(widths[-1])), np.float32)
        memory = self._rings(shape, size)
        self._sweep(self._background, active, memory, size, out)
        begin = 0
        for n, channels in enumerate(widths):
            values = out
            if n < len(widths) - 1:
                values = memory[self._table[n, kernels.RING] :][: size**3 * channels] if n else self._background
            self._table[n, kernels.QUIET] = begin
            self._quiet[begin : begin + values.size] = values.ravel()
            begin += values.size
        self.background_out = out[..., : self._channels_out].copy()
        return self._quiet

    def _mark(self, source: Array, active: Array) -> None:
        """Fill the activity masks of the source and of each layer."""
        if min(source.shape[:3]) < self._background.shape[0]:
            active[:] = 255  # too small for the background to have a middle
            return
        kernels.mark(source, self._background, active[0])
        for before, after in itertools.pairwise(active):
            kernels.spread(before, after)

    def _rings(self, shape: Shape, planes: int) -> Array:
        """Return zeroed memory for all rings of the chain; `_sweep` enters their offsets in the table."""
        return _aligned(sum(self._ring_sizes(shape, planes)))

    def _ring_sizes(self, shape: Shape, planes: int) -> list[int]:
        sizes = planes * shape[1] * shape[2] * self._table[1:-1, kernels.CHANNELS]
        return [-(-int(size) // LINE) * LINE for size in sizes]

    def _sweep(self, source: Array, active: Array, memory: Array, planes: int, out: Array) -> None:
        shape = out.shape[:3]
        self._table[1:, kernels.RING] = np.cumsum([0, *self._ring_sizes(shape, planes)])
        arrays = self._table, self._slopes, self._weights, self._quiet, memory
        source, like = source.reshape(*shape[:2], -1), self._background.shape[0]
        for step in range(kernels.steps(shape[0], len(self._table) - 1)):
            kernels.advance(step, source, active, *arrays, like, planes, out)


def read_graphs(engine_set: EngineSet) -> dict[str, list[Layer]]:
    """Return the layers of every engine.

    Raises:
        InputError: a graph is not a chain of such layers, or its channels differ from the manifest.
    """
    graphs = {engine: [_layer(found) for found in read_chain(engine_set, engine)] for engine in ENGINES}
    taken = {level: graphs[estimator_name(level)][0].weights.shape[3] for level in LEVELS}
    given = zip(sorted(LEVELS), (layer.bias.size for layer in graphs[EXTRACTOR]), strict=True)
    engine_set.check_channels("takes", taken, images=2)
    engine_set.check_channels("gives", dict(given), images=1)
    return graphs


def _layer(found: Convolution) -> Layer:
    return Layer(np.ascontiguousarray(found.weights.transpose(2, 3, 4, 1, 0), np.float32), found.bias, found.slope)


def _pooled(features: Array) -> Array:
    """Return the means of 2x2x2 voxels of (I, J, K, C), at half of each size."""
    i, j, k, channels = features.shape
    out = ARRAYS.empty((i // 2, j // 2, k // 2, channels))
    kernels.pool(features, out)
    return out


def _pooled_background(background: Array) -> Array:
    """Return the background of a pooled feature map, in which borders reach half as far, rounded up."""
    reach = -(-(background.shape[0] // 2) // 2)
    return _pooled(_like(background, 2 * (2 * reach + 1)))


def _like(background: Array, size: int) -> Array:
    """Resize a cube of background: each voxel is copied from the one at the same distance from the borders."""
    place = [kernels.border_index.py_func(index, size, len(background)) for index in range(size)]
    return np.ascontiguousarray(background[np.ix_(place, place, place)])


def _blocks(shape: Shape) -> int:
    return -(-shape[2] // VOXELS)


def _aligned(size: int) -> Array:
    """Return zeros (size,) float32 aligned to a cache line."""
    memory = np.zeros(size + LINE, np.float32)
    first = -(memory.ctypes.data // memory.itemsize) % LINE
    return memory[first : first + size]
