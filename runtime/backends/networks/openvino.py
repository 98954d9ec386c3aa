"""Engines run by OpenVINO on the CPU, with static shapes, channels-last inputs and outputs, and fp32 or bf16."""

import contextlib
import ctypes
import functools
import io
import os
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from ...host.files.hashes import short_key
from .telemetry import without_telemetry

with without_telemetry():
    import openvino as ov

from ...errors import InputError, NotAvailableError
from ...host.cache_folder import cache_folder, keep, keep_latest, kept
from ...host.machine import processor_features, processor_name
from ...host.memory import ARRAYS
from ...host.progress import fastest
from ...loop.schedules import LEVELS
from ...types import Array, Shape
from ..engine_set import ENGINES, EXTRACTOR, RESIDUAL, EngineSet, estimator_name, features_name

CHANNELS_FIRST, CHANNELS_LAST = "NCDHW", "NDHWC"
HINTS = {"fp32": "f32", "bf16": "bf16"}
# Without any of these OpenVINO emulates bf16, which is slower than fp32. The names are LLVM's.
BF16_INSTRUCTIONS = {"avx512bf16", "amx-bf16", "avxneconvert", "bf16"}
BLOBS, MOST_BLOBS = "rpnet-openvino", 200
PRODUCT_SIZE, PRODUCTS = 2048, 4  # size and number of the matrix products that measure the peak
_ENGINES: weakref.WeakSet["_Engine"] = weakref.WeakSet()  # all open engines
LARGE = 2_000_000  # voxels; from this size on, an estimator processes the volume in two halves


class OpenVinoNetworks:
    """Feature extractor and flow estimators, compiled for one image size at a time.

    Engines are compiled for the size at which they are first used and kept until another size comes. Compiled engines
    are also cached on disk (`_compiled`).

    Args:
        engine_set: a checked set.
        threads: CPU threads per engine call; None: OpenVINO's choice.
        precision: "fp32" or "bf16", of the convolutions and the values between them; inputs and outputs are float32.

    Raises:
        InputError: this processor has no bf16 instructions, or OpenVINO cannot load a graph.
        NotAvailableError: the process was forked from one that had used OpenVINO.
    """

    library = "openvino"
    version = ov.get_version().split("-")[0]
    device = "cpu"

    def __init__(self, engine_set: EngineSet, threads: int | None = None, precision: str = "fp32") -> None:
        if reason := unsupported(precision):
            raise InputError(f"--precision: {precision} is not available on this computer: {reason}; use fp32")
        self.precision, self.closed = precision, False
        self._engine_set, self._threads, self._channels = engine_set, threads, engine_set.channels
        self._reach = engine_set.convolutions
        self._shape: Shape | None = None
        self._drop()
        self._check_channels()

    def _check_channels(self) -> None:
        """Check the estimators' channels against the manifest."""
        taken = {}
        for level in LEVELS:
            with self._explained(estimator_name(level)):
                model = _core().read_model(self._engine_set.graph(estimator_name(level)), b"")
                taken[level] = model.input(0).get_partial_shape()[1].get_length()
        self._engine_set.check_channels("takes", taken, images=2)

    def close(self) -> None:
        self._drop()
        self.closed = True

    def rest(self) -> None:
        """Release engines and buffers until the next call; the compiled engines are on disk."""
        self._drop()

    @staticmethod
    def measured_peak(precision: str, threads: int) -> float:
        """Return the GFLOP/s of a large matrix product, the best of a few."""
        a = ov.opset13.parameter([PRODUCT_SIZE] * 2, ov.Type.f32)
        b = ov.opset13.constant(np.full((PRODUCT_SIZE, PRODUCT_SIZE), 0.25, np.float32))
        model = ov.Model([ov.opset13.matmul(a, b, False, False)], [a])
        properties = {"INFERENCE_PRECISION_HINT": HINTS[precision], "INFERENCE_NUM_THREADS": threads}
        request = _core().compile_model(model, "CPU", properties).create_infer_request()
        request.set_input_tensor(ov.Tensor(np.full((PRODUCT_SIZE, PRODUCT_SIZE), 0.5, np.float32)))
        return 2e-9 * PRODUCT_SIZE**3 / fastest(request.infer, PRODUCTS)

    def _drop(self) -> None:
        """Release all engines and their memory."""
        self._engines: dict[str, _Engine] = {}
        self._residuals: dict[int, Array] = {}

    def features(self, image: Array) -> dict[int, Array]:
        """Return the feature maps (I, J, K, C) by level of an image (I, J, K) in [0, 1]."""
        if image.shape != self._shape:
            self._drop()
            self._shape = image.shape
        maps = self._engine(EXTRACTOR, (1, 1, *image.shape)).run(image[None, ..., None])
        return {level: maps[features_name(level)][0] for level in sorted(LEVELS)}

    def estimator_input(self, level: int, shape: Shape) -> Array:
        """Return an empty contiguous (I, J, K, 2C)."""
        return ARRAYS.empty((*shape, 2 * self._channels[level]))

    def residual(self, level: int, features: Array) -> Array:
        """Return the residual flow (I, J, K, 3) of an `estimator_input`; overwritten by the level's next call."""
        self._engines.pop(EXTRACTOR, None)  # frees its memory, which is worth the moment it takes to open it again
        size, channels = features.shape[:3], features.shape[3]
        out = self._residuals.get(level)
        if out is None or out.shape[:3] != size:
            self._residuals[level] = out = np.empty((*size, 3), np.float32)
        for window, inner, target in self._windows(size):
            shape = (1, channels, window.stop - window.start, *size[1:])
            found = self._engine(estimator_name(level), shape).run(features[None, window], reuse=True)
            out[target] = found[RESIDUAL][0, inner]
        return out

    def _windows(self, size: Shape) -> list[tuple[slice, slice, slice]]:
        """Return the windows to compute: for each, its input planes, the valid planes of its output, and their target.

        A large volume is split into two equal halves, each extended by the planes that its border depends on: this
        halves the memory for values between the layers, the largest part of all, for a twentieth more work.
        """
        half, reach = -(-size[0] // 2), self._reach
        if np.prod(size) < LARGE or half <= reach:
            return [(slice(0, size[0]), slice(None), slice(None))]
        low, high = slice(0, half + reach), slice(size[0] - half - reach, size[0])
        odd = 2 * half - size[0]  # 1 if the halves overlap by a plane; both must have the same shape
        return [(low, slice(0, half), slice(0, half)), (high, slice(reach + odd, None), slice(half, None))]

    def _engine(self, name: str, shape: tuple[int, ...]) -> "_Engine":
        engine = self._engines.get(name)
        if engine is None or engine.shape != shape:
            self._engines.pop(name, None)
            self._engines[name] = engine = _Engine(self._compiled(name, shape), shape)
        return engine

    def _compiled(self, name: str, shape: tuple[int, ...]) -> ov.CompiledModel:
        """Return the engine for a size, from the cache on disk if it was compiled before under the same conditions."""
        properties = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": HINTS[self.precision],
            "INFERENCE_NUM_THREADS": self._threads or 0,
        }
        path, graph = self._blob(name, shape), self._engine_set.graph(name)
        with self._explained(name):
            return _kept(path, properties, lambda: _core().compile_model(_sized(graph, shape), "CPU", properties))

    @contextlib.contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        """Turn OpenVINO's errors, of many lines and without a common base class, into an InputError of one line."""
        try:
            yield
        except NotAvailableError:
            raise
        except Exception as error:
            graph = self._engine_set.path(name)
            reason = " ".join(str(error).split())
            raise InputError(
                f"--backend: openvino {self.version} cannot load {graph} ({reason}); "
                "use --backend onnxruntime or export the set again"
            ) from None

    def _blob(self, name: str, shape: tuple[int, ...]) -> Path:
        """Return the path in the cache, keyed by graph, shape, precision, threads, OpenVINO and processor."""
        facts = self._engine_set.hashes[name], shape, self.precision, self._threads
        key = short_key(*facts, ov.get_version(), processor_name())
        return cache_folder(BLOBS) / BLOBS / f"{name}.{key}.blob"


class _Engine:
    """A compiled model with one inference request, whose inputs and outputs share memory with NumPy arrays."""

    def __init__(self, compiled: ov.CompiledModel, shape: tuple[int, ...]) -> None:
        self.shape = shape
        _ENGINES.add(self)
        self._compiled, self._request = compiled, compiled.create_infer_request()
        self._names = [output.any_name for output in compiled.outputs]
        self._shapes = [tuple(output.shape) for output in compiled.outputs]
        self._input: Array | None = None
        self._outputs: list[Array] = []

    def run(self, array: Array, reuse: bool = False) -> dict[str, Array]:
        """Return the outputs by name; with `reuse` the next call overwrites them, else they belong to the caller."""
        _require_own_process()
        if self._input is None or self._input.ctypes.data != array.ctypes.data:
            # Keep a reference: the tensor only borrows the array's memory.
            self._input = np.ascontiguousarray(array, np.float32)
            self._request.set_input_tensor(ov.Tensor(self._input, shared_memory=True))
        if not (reuse and self._outputs):
            self._outputs = [ARRAYS.empty(shape) for shape in self._shapes]
            for n, output in enumerate(self._outputs):
                self._request.set_output_tensor(n, ov.Tensor(output, shared_memory=True))
        self._request.infer()
        outputs = dict(zip(self._names, self._outputs, strict=True))
        if not reuse:
            self._outputs = []
        return outputs


def unsupported(precision: str) -> str | None:
    """Return the reason why this machine cannot compute in a precision; None if it can."""
    if precision != "bf16":
        return None
    if not BF16_INSTRUCTIONS & processor_features():
        return f"{processor_name()} has none of the bf16 instructions ({', '.join(sorted(BF16_INSTRUCTIONS))})"
    if "BF16" not in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return f"openvino {ov.get_version()} has no bf16 for {processor_name()}"
    return None


def _core() -> ov.Core:
    _require_own_process()
    return _only_core()[0]


@functools.cache
def _only_core() -> tuple[ov.Core, int]:
    """Return OpenVINO's core of this process, and the process id."""
    core = ov.Core()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: _never_let_go_of(core, *_ENGINES))
    return core, os.getpid()


def _never_let_go_of(*objects: object) -> None:
    """Keep objects alive in a forked process: destroying them at exit would wait for threads that it does not have."""
    for each in objects:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(each))


def _require_own_process() -> None:
    """Refuse to run in a forked process, where OpenVINO would wait for threads that did not survive the fork."""
    if _only_core()[1] != os.getpid():
        raise NotAvailableError(
            "--backend: openvino was used before this process was forked, which its threads do not survive; start "
            'processes with multiprocessing.get_context("spawn"), open engines only in them, or use another backend'
        )


def _sized(graph: bytes, shape: tuple[int, ...]) -> ov.Model:
    """Return a graph for one input size with channels-last inputs and outputs, which are free at a static size."""
    model = _core().read_model(graph, b"")
    model.reshape({model.input(0).any_name: shape})
    steps = ov.preprocess.PrePostProcessor(model)
    steps.input(0).tensor().set_layout(ov.Layout(CHANNELS_LAST)).set_element_type(ov.Type.f32)
    steps.input(0).model().set_layout(ov.Layout(CHANNELS_FIRST))
    for n in range(len(model.outputs)):
        steps.output(n).model().set_layout(ov.Layout(CHANNELS_FIRST))
        steps.output(n).tensor().set_layout(ov.Layout(CHANNELS_LAST)).set_element_type(ov.Type.f32)
    return steps.build()


def _kept(path: Path, properties: dict, compile_: Callable[[], ov.CompiledModel]) -> ov.CompiledModel:
    """Return the compiled model on disk, else the result of `compile_`, saved; a failing cache only costs time."""
    with contextlib.suppress(Exception):  # absent, damaged, or refused by this build of OpenVINO
        if blob := kept(path):
            compiled = _core().import_model(blob, "CPU", properties)
            with contextlib.suppress(OSError):
                os.utime(path)  # the oldest files are removed first
            return compiled
    compiled = compile_()
    with contextlib.suppress(Exception):  # a build that cannot export
        stream = io.BytesIO()  # without it, some versions return bytes and others a stream
        compiled.export_model(stream)
        keep(path, stream.getvalue())
        keep_latest((blob for engine in ENGINES for blob in path.parent.glob(f"{engine}.*.blob")), MOST_BLOBS)
    return compiled
