"""Engines run by ONNX Runtime on the CPU, and the code shared with its CUDA provider."""

import contextlib
import ctypes
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .telemetry import without_telemetry

with without_telemetry():
    import onnxruntime

from ...errors import InputError, NotAvailableError, first_line
from ...host.memory import ARRAYS
from ...loop.schedules import LEVELS
from ...types import Array, Shape
from ..engine_set import EXTRACTOR, FEATURES, IMAGE, RESIDUAL, EngineSet, estimator_name, features_name

VERSION = onnxruntime.__version__
CPU = "CPUExecutionProvider"
OUTPUTS = [features_name(level) for level in sorted(LEVELS)]
ELEMENTS = {"fp32": np.float32, "fp16": np.float16}  # type of the graphs' feature maps, by precision


class OnnxRuntimeNetworks:
    """Feature extractor and flow estimators as ONNX Runtime sessions, whose own memory is planar (channels first).

    Arrays between the calls are float32 in either precision. fp16 serves to study its rounding, not for speed.

    Args:
        engine_set: a checked set.
        threads: CPU threads per engine call; None: ONNX Runtime's choice (one per core).
        precision: "fp32" or "fp16".

    Raises:
        InputError: ONNX Runtime cannot load a graph, or the set has none of this precision.
    """

    library = "onnxruntime"
    version = VERSION
    device = "cpu"

    def __init__(self, engine_set: EngineSet, threads: int | None = None, precision: str = "fp32") -> None:
        self.precision, self._element = precision, ELEMENTS[precision]
        options = session_options(threads)
        graph = RoundedGraph if precision == "fp16" else open_session
        self._graphs = open_graphs(engine_set, precision, lambda content, path: _opened(graph, content, path, options))
        self._channels = engine_set.channels
        self.closed = False

    def rest(self) -> None:
        """Do nothing: ONNX Runtime keeps the memory of its sessions."""

    def close(self) -> None:
        self._graphs, self.closed = Graphs(None, {}), True

    def features(self, image: Array) -> dict[int, Array]:
        """Return the feature maps (I, J, K, C) by level of an image (I, J, K) in [0, 1], converted to channels-last."""
        maps = self._graphs.extractor.run(OUTPUTS, {IMAGE: image[None, None]})
        return {level: _channels_last(features[0]) for level, features in zip(sorted(LEVELS), maps, strict=True)}

    def estimator_input(self, level: int, shape: Shape) -> Array:
        """Return an empty (I, J, K, 2C), a channels-last view of planar memory."""
        return np.moveaxis(ARRAYS.empty((2 * self._channels[level], *shape)), 0, -1)

    def residual(self, level: int, features: Array) -> Array:
        """Return the residual flow (I, J, K, 3) of an `estimator_input`, a view of planar memory."""
        planar = np.ascontiguousarray(np.moveaxis(features, -1, 0), self._element)
        return np.moveaxis(self._graphs.estimators[level].run([RESIDUAL], {FEATURES: planar[None]})[0][0], 0, -1)


def _channels_last(planar: Array) -> Array:
    """Copy (C, I, J, K) to contiguous float32 (I, J, K, C)."""
    out = ARRAYS.empty((*planar.shape[1:], len(planar)))
    np.copyto(out, np.moveaxis(planar, 0, -1))
    return out


class RoundedGraph:
    """An fp16 graph run node by node, so that the values passed between nodes are rounded to fp16 as the graph says.

    In a single session nothing between weights and results would be rounded: ONNX Runtime's CPU provider has no fp16
    convolution, so it casts to float32 and back around each one, and removes all pairs of casts between two nodes, even
    those written in the graph and with all optimisations disabled.

    The results show the effect of rounding each node's result to fp16, bit for bit except for the order of float32
    sums. They do not show the effect of sums kept in fp16, if a GPU library does that, nor such a library's bugs.

    Args:
        graph: ONNX graph; every node has one input besides weights, and only outputs are read by more than one node.
        options: options of the sessions.
    """

    def __init__(self, graph: bytes, options: onnxruntime.SessionOptions) -> None:
        try:
            import onnx.shape_inference
        except ImportError as error:
            reason = first_line(error)
            raise NotAvailableError(
                f"--precision: fp16 on the CPU needs the package onnx ({reason}); pip install onnx"
            ) from None
        model = onnx.shape_inference.infer_shapes(onnx.load_from_string(graph))
        whole = model.graph
        values = {value.name: value for value in (*whole.input, *whole.value_info, *whole.output)}
        weights = {tensor.name: tensor for tensor in whole.initializer}
        self._nodes = []
        for node in whole.node:
            (taken,), (given,) = set(node.input) - set(weights), node.output
            used = [weights[name] for name in node.input if name in weights]
            piece = onnx.helper.make_graph([node], given, [values[taken]], [values[given]], used)
            piece = onnx.helper.make_model(piece, opset_imports=model.opset_import, ir_version=model.ir_version)
            self._nodes.append((taken, given, open_session(piece.SerializeToString(), options)))
        self.get_inputs = self._nodes[0][-1].get_inputs

    def run(self, outputs: Sequence[str], feeds: dict[str, Array]) -> list[Array]:
        """Run the graph, with the arguments and results of a session's `run`."""
        values = dict(feeds)
        for taken, given, session in self._nodes:
            (values[given],) = session.run([given], {taken: values[taken]})
            if taken not in outputs:
                del values[taken]
        return [values[name] for name in outputs]


@dataclass(frozen=True)
class Graphs:
    """An engine set's opened graphs, as sessions or objects that run like one."""

    extractor: Any
    estimators: dict[int, Any]


def open_graphs(engine_set: EngineSet, precision: str, opened: Callable[[bytes, Path], Any]) -> Graphs:
    """Open the graphs of one precision and check their input names and feature channels against the manifest.

    Args:
        engine_set: a checked set.
        precision: precision of the graphs.
        opened: function that opens an ONNX graph, given its content and its path (for messages).

    Raises:
        InputError: the set has no graphs of this precision, or they differ from the manifest; also errors of `opened`.
    """
    engine_set.require(precision)

    def of(engine: str) -> Any:
        return opened(engine_set.graph(engine, precision), engine_set.path(engine, precision))

    graphs = Graphs(of(EXTRACTOR), {level: of(estimator_name(level)) for level in LEVELS})
    expected = [(IMAGE, [1, 1])] + [(FEATURES, [1, 2 * engine_set.channels[level]]) for level in LEVELS]
    for graph, (name, head) in zip((graphs.extractor, *graphs.estimators.values()), expected, strict=True):
        taken = [(value.name, value.shape[:2]) for value in graph.get_inputs()]
        if taken != [(name, head)]:
            raise InputError(
                f"--engine-dir: a graph in {engine_set.folder} takes {taken}, the manifest states {[(name, head)]}; "
                "export the set again"
            )
    return graphs


def session_options(threads: int | None = None) -> onnxruntime.SessionOptions:
    """Return the options that all our sessions share."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3
    # The arena keeps a call's memory for the next one: releasing it costs a sixth of the level-1 time in page faults.
    # Memory patterns per shape would keep even more memory without any gain.
    options.enable_mem_pattern = False
    # Threads that spin while waiting for the next call would take cores from the kernels that run in between.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def open_session(
    graph: bytes, options: onnxruntime.SessionOptions, providers: Sequence[Any] = (CPU,)
) -> onnxruntime.InferenceSession:
    """Open a session of an ONNX graph; ONNX Runtime's own exceptions, without public base class, pass through."""
    return onnxruntime.InferenceSession(graph, options, providers=list(providers), enable_fallback=0)


def _opened(graph: Callable[[bytes, Any], Any], content: bytes, path: Path, options: onnxruntime.SessionOptions) -> Any:
    try:
        return graph(content, options)
    except InputError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"--backend: onnxruntime {VERSION} cannot load {path} ({reason}); export the set again"
        ) from None


def why_no_provider(provider: str) -> str | None:
    """Return the reason why this ONNX Runtime lacks a provider; None if it has it.

    Loads the libraries that the provider needs from NVIDIA's wheels if they are installed.
    """
    if provider not in onnxruntime.get_available_providers():
        return f"it is built without {provider}"
    if provider == CPU:
        return None
    onnxruntime.set_default_logger_severity(4)  # errors are reported once, as an exception
    with contextlib.redirect_stdout(io.StringIO()):  # it prints every missing library, even those that are not needed
        onnxruntime.preload_dlls()
    return None


def why_left_out(provider: str) -> str:
    """Return the reason why a session was opened without the requested provider, if loading its library reveals it.

    Must be called after the session was opened: ONNX Runtime must be the first to load the provider's library.
    """
    path = Path(onnxruntime.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"
    try:
        ctypes.CDLL(str(path))
    except OSError as error:
        return first_line(error)
    return f"{provider} could not be started and gives no reason"


def without_waiting() -> onnxruntime.RunOptions:
    """Return options of a run that returns as soon as all work has been sent to the GPU's stream."""
    options = onnxruntime.RunOptions()
    options.log_severity_level = 4
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    return options
