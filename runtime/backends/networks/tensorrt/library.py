"""TensorRT-RTX and TensorRT, two packages with one API: plans are built from graphs, opened and run.

No other file imports either package. They differ as follows: TensorRT-RTX builds without a GPU, one plan for many GPUs,
and compiles kernels for the GPU and the shape when a plan is first run; TensorRT times kernels on the GPU it builds
for. No call waits for the device.
"""

import collections
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....errors import InputError, NotAvailableError, first_line
from ....host.cache_folder import kept
from ...cuda.device import Device
from ...cuda.memory import out_of_memory
from ...engine_set import EXTRACTOR
from ...registry import BACKENDS
from .open_plan import JitCache, LibraryRefusedError, OpenPlan, cache_file, keep_file
from .plans import PlanSpec

STEP = 8  # voxels between image sizes
MESSAGES = 20  # latest errors kept
TYPE_NAMES = {"FLOAT": "float32", "HALF": "float16"}


@dataclass(frozen=True)
class Target:
    """A library to build for.

    Attributes:
        package: importable package.
        title: name of the library.
        portable: whether it builds without a GPU, one plan for several compute capabilities.
    """

    package: str
    title: str
    portable: bool


TARGETS = {
    "tensorrt-rtx": Target("tensorrt_rtx", "TensorRT-RTX", True),
    "tensorrt": Target("tensorrt", "TensorRT", False),
}


def open_library(target: str) -> "Library":
    """Load the library of a target.

    Raises:
        InputError: the target is unknown.
        NotAvailableError: the library is not installed, or cannot be loaded.
    """
    if target not in TARGETS:
        raise InputError(f"--target: got {target!r}, expected {' or '.join(TARGETS)}")
    facts = TARGETS[target]
    try:
        if target == "tensorrt-rtx":
            import tensorrt_rtx as trt
        else:
            import tensorrt as trt
        return Library(target, trt)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == facts.package
        state = "is not installed" if missing else f"cannot be loaded ({first_line(error)})"
        raise NotAvailableError(
            f"{facts.title}: the package {facts.package} {state}; {BACKENDS[target].install}"
        ) from None


class Library:
    """A loaded library.

    Attributes:
        target: its key in `TARGETS`.
        version: version of the package.
        title: name and version, for messages.
        portable: as in `Target`.
    """

    def __init__(self, target: str, trt: Any) -> None:
        self.target, self.version, self._trt = target, str(trt.__version__), trt
        self.title, self.portable = f"{TARGETS[target].title} {self.version}", TARGETS[target].portable
        self._log = _collector(trt)()
        self._runtime: Any = None

    @property
    def sms(self) -> tuple[int, ...]:
        """The compute capabilities it builds portable plans for, 89 for 8.9."""
        names = self._trt.ComputeCapability.__members__ if self.portable else ()
        return tuple(sorted(int(name[2:]) for name in names if name.startswith("SM")))

    def incompatibility(self, sm: int, precision: str) -> str | None:
        """Return the reason why it does not support a compute capability in a precision; None if it does."""
        if self.portable and sm not in self.sms:
            return f"{self.title} supports compute capabilities {_capabilities(self.sms)}, not {sm / 10:.1f}"
        if self.portable and sm == 75 and precision == "fp32":
            return f"{self.title} has no fp32 3-D convolution for compute capability 7.5 (Turing); use --precision fp16"
        return None

    def build(self, graph: bytes, spec: PlanSpec) -> bytes:
        """Build a plan.

        Args:
            graph: ONNX graph.
            spec: the specification of the plan; the graph's types must match its formats.

        Raises:
            InputError: the graph does not match `spec`, or the library cannot build it.
            NotAvailableError: the library needs a GPU and finds none.
        """
        trt, place = self._trt, f"{self.title}, {spec.engine} in {spec.precision}"
        with self.explained(place):
            builder = trt.Builder(self._log)
            network = builder.create_network(self._creation_flags())
            parser = trt.OnnxParser(network, self._log)
            if not parser.parse(graph):
                raise LibraryRefusedError(f"cannot read the graph, {self.last_error()}; export the set again")
            self._set_formats(network, spec)
            config = self._config(builder, network, spec)
            plan = builder.build_serialized_network(network, config)
            if plan is None:
                raise LibraryRefusedError(
                    f"cannot build it for SM {', '.join(map(str, spec.sms))}: {self.last_error()}"
                )
            self._keep_timings(config, spec)
            return bytes(plan)

    def _creation_flags(self) -> int:
        """Return the flag that takes types from the graph; from TensorRT 11 on there is no other mode and no flag."""
        flag = getattr(self._trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        return 0 if flag is None else 1 << int(flag)

    def _set_formats(self, network: Any, spec: PlanSpec) -> None:
        """Set the layouts of the inputs and outputs as in the spec, after checking their names and types."""
        tensors = [network.get_input(n) for n in range(network.num_inputs)]
        tensors += [network.get_output(n) for n in range(network.num_outputs)]
        found = {tensor.name: _type_name(tensor.dtype) for tensor in tensors}
        expected = {name: dtype for name, (dtype, _) in spec.formats.items()}
        if found != expected:
            raise LibraryRefusedError(f"the graph has {found}, expected {expected}; export the set again")
        for tensor in tensors:
            layout = spec.formats[tensor.name][1]
            if layout == "DHWC8" and tensor.shape[1] % 8:
                raise LibraryRefusedError(f"{tensor.shape[1]} channels, expected a multiple of 8; use --precision fp32")
            tensor.allowed_formats = 1 << int(getattr(self._trt.TensorFormat, layout))

    def _config(self, builder: Any, network: Any, spec: PlanSpec) -> Any:
        trt, config = self._trt, builder.create_builder_config()
        config.clear_flag(trt.BuilderFlag.TF32)
        config.max_aux_streams = 0  # the networks are chains, and their memory comes from a pool of one stream
        config.add_optimization_profile(_profile(builder, network.get_input(0), spec))
        if self.portable:
            config.num_compute_capabilities = len(spec.sms)
            for n, sm in enumerate(spec.sms):
                config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{sm}"), n)
            return config
        with contextlib.suppress(AttributeError):  # the default of later versions: memory for the current shape
            config.set_preview_feature(trt.PreviewFeature.RUNTIME_ACTIVATION_RESIZE_10_10, True)
        self._use_timings(config, spec)
        return config

    def _use_timings(self, config: Any, spec: PlanSpec) -> None:
        """Load kernel timings of earlier builds on this GPU; without them the build takes longer."""
        with contextlib.suppress(Exception):
            known = kept(self._timings(spec)) or b""
            config.set_timing_cache(config.create_timing_cache(known), False)

    def _keep_timings(self, config: Any, spec: PlanSpec) -> None:
        if not self.portable:
            with contextlib.suppress(Exception):
                keep_file(self._timings(spec), bytes(config.get_timing_cache().serialize()))

    def _timings(self, spec: PlanSpec) -> Path:
        return cache_file("timings", self.target, self.version, spec.gpu)

    @contextlib.contextmanager
    def explained(self, place: str, device: Device | None = None) -> Iterator[None]:
        """Turn the library's errors into one line; it raises TypeError if it cannot create an object."""
        self._log.errors.clear()
        try:
            yield
        except LibraryRefusedError as error:
            if device is not None and any("out of memory" in text.lower() for text in self._log.errors):
                raise out_of_memory(device.driver) from None
            raise error.kind(f"{place}: {error}") from None
        except (TypeError, RuntimeError) as error:
            raise NotAvailableError(
                f"{place}: {self.last_error(first_line(error))}; check that there is a GPU with its driver"
            ) from None

    def last_error(self, otherwise: str = "it gives no reason") -> str:
        """Return the most informative logged error: a vague first line may precede it, and consequences follow it."""
        errors = [text for text in self._log.errors if "catchCudaError" not in text]
        telling = [text for text in errors if "Error Code" in text or "cuda" in text.lower()]
        return " ".join((telling or errors or [otherwise])[0].split())

    def open(self, content: bytes, spec: PlanSpec, device: Device, jit: JitCache | None = None) -> OpenPlan:
        """Open a plan whose content was checked; the device must be current.

        Args:
            content: content of the plan.
            spec: specification it was built from.
            device: the GPU to run it on.
            jit: cache of compiled kernels (TensorRT-RTX).

        Raises:
            NotAvailableError: it cannot be opened here, because of an old driver, too little memory or another GPU.
            InputError: it does not match `spec`.
        """
        with self.explained(f"--backend: {self.title}, {spec.engine} in {spec.precision}", device):
            if self._runtime is None:
                self._runtime = self._trt.Runtime(self._log)
            engine = self._runtime.deserialize_cuda_engine(content)
            if engine is None:
                raise LibraryRefusedError(
                    f"cannot be opened on {device.name}: {self.last_error()}; update the GPU's driver",
                    NotAvailableError,
                )
            self._check_tensors(engine, spec)
            config = self._runtime_config(engine, spec, device, jit)
            context = engine.create_execution_context(config)
            if context is None:
                raise LibraryRefusedError(f"cannot be run on {device.name}: {self.last_error()}", NotAvailableError)
        return OpenPlan(self, context, spec, device, config, engine, jit)

    def _check_tensors(self, engine: Any, spec: PlanSpec) -> None:
        """Check types and layouts of the opened plan against the spec, because our own kernels share its memory."""
        names = [engine.get_tensor_name(n) for n in range(engine.num_io_tensors)]
        found = {
            name: (_type_name(engine.get_tensor_dtype(name)), engine.get_tensor_format(name).name) for name in names
        }
        if found != spec.formats:
            raise LibraryRefusedError(
                f"the plan has {found}, expected {spec.formats}; build it again with `python cli.py build`"
            )

    def _runtime_config(self, engine: Any, spec: PlanSpec, device: Device, jit: JitCache | None) -> Any:
        """Return the configuration of an execution context whose memory we allocate.

        Kernels are compiled for a shape when it first comes, not at some later time, so that equal runs give equal
        results. The extractor writes to different memory each time, which rules out CUDA graphs. In which mode the
        library captures graphs is not documented, so none are used if other threads might allocate memory meanwhile.
        """
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if not hasattr(engine, "create_runtime_config"):
            return strategy
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        if self.portable:
            config.dynamic_shapes_kernel_specialization_strategy = (
                self._trt.DynamicShapesKernelSpecializationStrategy.EAGER
            )
            if spec.engine != EXTRACTOR and device.alone:
                config.cuda_graph_strategy = self._trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            if jit is not None:
                jit.attach(config)
        return config


def _collector(trt: Any) -> type:
    """Return a class of loggers that keep the latest errors and print nothing; its base comes with the library."""

    class Collector(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: collections.deque[str] = collections.deque(maxlen=MESSAGES)

        def log(self, severity: Any, message: str) -> None:
            if int(severity) <= int(trt.ILogger.Severity.ERROR):
                self.errors.append(message)

    return Collector


def _profile(builder: Any, tensor: Any, spec: PlanSpec) -> Any:
    """Return the optimisation profile with the sizes of the input.

    The extractor never gets a single fixed size: the channels of zeros that TensorRT-RTX pads its image with would then
    become constants of the plan, 69 MB at 160 x 192 x 160.
    """
    sizes = spec.profile.at(spec.scale)
    smallest = sizes.smallest
    if spec.engine == EXTRACTOR and smallest == sizes.largest:
        smallest = (smallest[0] - STEP, *smallest[1:])
    profile = builder.create_optimization_profile()
    profile.set_shape(tensor.name, *((1, tensor.shape[1], *size) for size in (smallest, sizes.usual, sizes.largest)))
    return profile


def _type_name(dtype: Any) -> str:
    return TYPE_NAMES.get(dtype.name, dtype.name)


def _capabilities(sms: tuple[int, ...]) -> str:
    return ", ".join(f"{sm / 10:.1f}" for sm in sms)
