"""Engines run by ONNX Runtime on the CPU."""

import numpy as np
import onnxruntime

from runtime.geometry.errors import InputError
from runtime.heap import ARRAYS
from runtime.iterstop import LEVELS
from runtime.manifest import EXTRACTOR, FEATURES, IMAGE, RESIDUAL, EngineSet, estimator_name, features_name

Array = np.ndarray
Shape = tuple[int, int, int]


class OnnxRuntimeNetworks:
    """Feature extractor and flow estimators as ONNX Runtime sessions, whose own memory is planar (channels first).

    Args:
        engine_set: a checked set.
        threads: CPU threads per engine call; None: ONNX Runtime's choice (one per core).
        precision: "fp32".

    Raises:
        InputError: ONNX Runtime cannot load a graph.
    """

    library = "onnxruntime"
    version = onnxruntime.__version__
    device = "cpu"

    def __init__(self, engine_set: EngineSet, threads: int | None = None, precision: str = "fp32") -> None:
        self.precision = precision
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = 3
        # The arena keeps what a call took for the next one: giving it back costs a sixth of the level-1 time in page
        # faults. A pattern per shape would keep more than that for nothing.
        options.enable_mem_pattern = False
        # Threads that spin while they wait for the next call take the cores from the kernels that run meanwhile.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._extractor = _open(engine_set, EXTRACTOR, options)
        self._estimators = {level: _open(engine_set, estimator_name(level), options) for level in LEVELS}
        self._outputs = [features_name(level) for level in sorted(LEVELS)]
        self._channels = engine_set.channels
        self.closed = False
        self._check_channels(engine_set)

    def _check_channels(self, engine_set: EngineSet) -> None:
        """The graphs are those the manifest describes: names, and feature channels by level."""
        expected = [(IMAGE, [1, 1])] + [(FEATURES, [1, 2 * engine_set.channels[level]]) for level in LEVELS]
        for session, (name, head) in zip((self._extractor, *self._estimators.values()), expected, strict=True):
            taken = [(value.name, value.shape[:2]) for value in session.get_inputs()]
            if taken != [(name, head)]:
                raise InputError(
                    f"--engine-dir: a graph in {engine_set.folder} takes {taken}, the manifest says {[(name, head)]}; "
                    "export the set again"
                )

    def rest(self) -> None:
        """ONNX Runtime keeps what its sessions hold."""

    def close(self) -> None:
        self._extractor, self._estimators, self.closed = None, {}, True

    def features(self, image: Array) -> dict[int, Array]:
        """Feature maps (I, J, K, C) by level of an image (I, J, K) in [0, 1], put channels-last once, for the warps."""
        maps = self._extractor.run(self._outputs, {IMAGE: image[None, None]})
        return {level: _channels_last(features[0]) for level, features in zip(sorted(LEVELS), maps, strict=True)}

    def estimator_input(self, level: int, shape: Shape) -> Array:
        """Planar memory, seen channels-last: (I, J, K, 2C)."""
        return np.moveaxis(ARRAYS.empty((2 * self._channels[level], *shape)), 0, -1)

    def residual(self, level: int, features: Array) -> Array:
        """Residual flow, planar memory seen as (I, J, K, 3), from an `estimator_input`."""
        planar = np.ascontiguousarray(np.moveaxis(features, -1, 0))
        return np.moveaxis(self._estimators[level].run([RESIDUAL], {FEATURES: planar[None]})[0][0], 0, -1)


def _channels_last(planar: Array) -> Array:
    """(C, I, J, K) as contiguous (I, J, K, C)."""
    out = ARRAYS.empty((*planar.shape[1:], len(planar)))
    np.copyto(out, np.moveaxis(planar, 0, -1))
    return out


def _open(engine_set: EngineSet, engine: str, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    path = engine_set.path(engine)
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own exceptions share no public base class
        reason = " ".join(str(error).split())
        raise InputError(
            f"--backend: onnxruntime {onnxruntime.__version__} cannot load {path} ({reason}); export the set again"
        ) from None
