"""Engines run by ONNX Runtime's CUDA provider, on our buffers and our stream."""

from collections.abc import Callable

import numpy as np

from ...errors import NotAvailableError
from ...loop.schedules import LEVELS
from ..cuda.device import Device
from ..cuda.gpu import GpuInfo
from ..cuda.memory import DeviceArray, out_of_memory
from ..engine_set import FEATURES, IMAGE, RESIDUAL, EngineSet, features_name
from ..fields.cuda import carry
from ..registry import BACKENDS
from .onnxruntime import (
    ELEMENTS,
    VERSION,
    Graphs,
    open_graphs,
    open_session,
    session_options,
    why_left_out,
    why_no_provider,
    without_waiting,
)

Shape = tuple[int, ...]
PROVIDER, MEMORY = "CUDAExecutionProvider", "cuda"
REMEDY = BACKENDS["cuda"].install
OUT_OF_MEMORY = ("out of memory", "failed to allocate memory", "alloc_failed", "smaller than requested bytes")
LEFT_TO_CPU = "fallback to CPU EP has been explicitly disabled"
LONGEST_REASON = 400  # characters; some messages of ONNX Runtime contain a whole graph


class CudaOnnxRuntimeNetworks:
    """Feature extractor and flow estimators on a GPU, all on its stream. No call waits for the device.

    The engines' own memory is planar (channels first): estimator inputs and residuals are views of it, and feature maps
    are converted to channels-last once.

    Args:
        engine_set: a checked set.
        device: a GPU; must be current in the calling thread, here and in every call.
        precision: "fp32" (without TF32) or "fp16"; also the type of feature maps and estimator inputs.
        progress: not used, because nothing is built.
        provider, memory: ONNX Runtime's names of the provider that runs the graphs and of the memory that holds arrays.

    Raises:
        NotAvailableError: ONNX Runtime has no CUDA provider, or it cannot be used here.
        InputError: the set has no graphs of this precision, or they differ from its manifest.
    """

    library, version = "onnxruntime", VERSION

    def __init__(
        self,
        engine_set: EngineSet,
        device: Device,
        precision: str = "fp32",
        progress: Callable[[str], None] = lambda line: None,
        provider: str = PROVIDER,
        memory: str = MEMORY,
    ) -> None:
        self.precision, self.device, self.closed = precision, device.name, False
        self._gpu, self._element, self._channels = device, np.dtype(ELEMENTS[precision]), engine_set.channels
        if reason := why_no_provider(provider):
            raise _unusable(reason)
        self._graphs = open_graphs(engine_set, precision, lambda graph, _: _BoundGraph(graph, device, provider, memory))
        # A provider opens even without cuDNN or on a GPU it has no kernels for: only a first run reveals it.
        self.residual(max(LEVELS), self.estimator_input(max(LEVELS), (2, 2, 2)))

    @classmethod
    def check_gpu(cls, gpu: GpuInfo, precision: str) -> None:
        """Accept any GPU: problems show only when it is used."""

    def features(self, image: DeviceArray) -> dict[int, DeviceArray]:
        """Return feature maps (I, J, K, C) by level of a float32 image (I, J, K) in [0, 1]: contiguous and new."""
        given = {}
        for level in LEVELS:
            size = tuple(n // 2 ** (level - 1) for n in image.shape)
            given[features_name(level)] = (self._channels[level], *size), self._element
        planar = self._graphs.extractor.run(IMAGE, self._gpu.aligned(image), (1, *image.shape), given)
        return {level: self._channels_last(planar[features_name(level)]) for level in LEVELS}

    def estimator_input(self, level: int, shape: Shape) -> DeviceArray:
        """Return an empty (I, J, K, 2C), a view of planar memory."""
        return self._gpu.empty((2 * self._channels[level], *shape), self._element).moveaxis(0, -1)

    def residual(self, level: int, features: DeviceArray) -> DeviceArray:
        """Return the float32 residual flow (I, J, K, 3) of an `estimator_input`: planar, valid until the next call."""
        planar = features.moveaxis(-1, 0)
        if not planar.contiguous or planar.dtype != self._element:
            raise ValueError(f"got {features.dtype} with strides {features.strides}, expected an estimator_input")
        given = {RESIDUAL: ((3, *features.shape[:3]), np.dtype(np.float32))}
        return self._graphs.estimators[level].run(FEATURES, planar, planar.shape, given)[RESIDUAL].moveaxis(0, -1)

    def rest(self) -> None:
        """Release the buffers of the results; ONNX Runtime keeps the memory of its sessions."""
        if not self.closed:
            for graph in (self._graphs.extractor, *self._graphs.estimators.values()):
                graph.forget()
            self._gpu.rest()

    def close(self) -> None:
        self._graphs, self.closed = Graphs(None, {}), True

    def _channels_last(self, planar: DeviceArray) -> DeviceArray:
        """Copy (C, I, J, K) to contiguous (I, J, K, C)."""
        source = planar.moveaxis(0, -1)
        target = self._gpu.empty(source.shape, self._element)
        carry(source, target)
        return target


class _BoundGraph:
    """A graph that reads its input from any address and writes to buffers of its own, reused while sizes are equal."""

    def __init__(self, graph: bytes, device: Device, provider: str, memory: str) -> None:
        self._gpu, self._place = device, (memory, device.driver.number)
        options, provider_options = session_options(), {}
        options.log_severity_level = 4  # errors are reported once, as an exception
        if provider == PROVIDER:
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
            provider_options = _provider_options(device)
        try:
            self._session = open_session(graph, options, [(provider, provider_options)])
        except Exception as error:  # ONNX Runtime's own exceptions share no public base class
            if LEFT_TO_CPU in str(error):
                raise _unusable(why_left_out(provider)) from None
            raise _explained(error, device) from None
        # A provider that cannot start is left out without an error: the CPU would then run the graph on GPU addresses.
        if provider not in self._session.get_providers():
            raise _unusable(why_left_out(provider))
        self.get_inputs, self._options = self._session.get_inputs, without_waiting()
        self.forget()

    def forget(self) -> None:
        """Release the buffers; a result that was returned keeps its own alive."""
        self._results: dict[str, DeviceArray] = {}
        self._binding = self._session.io_binding()

    def run(
        self, name: str, array: DeviceArray, shape: Shape, given: dict[str, tuple[Shape, np.dtype]]
    ) -> dict[str, DeviceArray]:
        """Send a run to the stream.

        Args:
            name, array, shape: name of the graph's input, its array, and its shape without the leading 1.
            given: shape and dtype of every result, by name.

        Returns:
            The results, valid until the next run.

        Raises:
            NotAvailableError: out of memory, or the provider cannot run the graph.
        """
        if {name: (result.shape, result.dtype) for name, result in self._results.items()} != given:
            self.forget()
            self._results = {name: self._gpu.empty(*facts) for name, facts in given.items()}
            for result_name, result in self._results.items():
                self._binding.bind_output(result_name, *self._place, *_facts(result, result.shape))
        self._binding.bind_input(name, *self._place, *_facts(array, shape))
        try:
            self._send()
        except Exception as error:
            raise _explained(error, self._gpu) from None
        return self._results

    def _send(self) -> None:
        try:
            self._session.run_with_iobinding(self._binding, self._options)
        except Exception as error:
            if not _is_memory(error):
                raise
            self._gpu.rest()  # the unused memory in our pool may be enough
            self._session.run_with_iobinding(self._binding, self._options)


def _facts(array: DeviceArray, shape: Shape) -> tuple[type, list[int], int]:
    """Return element type, shape and address in the form that ONNX Runtime binds, with a batch axis of 1."""
    return array.dtype.type, [1, *shape], array.pointer


def _provider_options(device: Device) -> dict[str, str]:
    """Return the options of the CUDA provider.

    Since ONNX Runtime 1.20, HEURISTIC and EXHAUSTIVE both query cuDNN's heuristics (modes A and B); neither measures.
    Mode B takes longer at every new size, and the run times reported for both are similar. DEFAULT is cuDNN's fallback.
    """
    return {
        "device_id": str(device.driver.number),
        "user_compute_stream": str(device.driver.stream),
        "do_copy_in_default_stream": "1",
        "cudnn_conv_algo_search": "HEURISTIC",
        "use_tf32": "0",  # TF32's 10-bit mantissa would exceed the tolerance of fp32
        "arena_extend_strategy": "kSameAsRequested",  # each of five sessions has an arena, which must not double
    }


def _is_memory(error: Exception) -> bool:
    return any(words in str(error).lower() for words in OUT_OF_MEMORY)


def _explained(error: Exception, device: Device) -> NotAvailableError:
    """Return an error of ONNX Runtime as one line with a remedy."""
    if _is_memory(error):
        return out_of_memory(device.driver)
    reason = " ".join(str(error).split()).rpartition("Status Message: ")[2]
    return _unusable(reason if len(reason) <= LONGEST_REASON else f"{reason[:LONGEST_REASON]}...")


def _unusable(reason: str) -> NotAvailableError:
    return NotAvailableError(
        f"--backend: onnxruntime {VERSION} cannot use the GPU ({reason}); it needs its CUDA provider, and the CUDA "
        f"and cuDNN 9 that the provider was built for: {REMEDY}"
    )
