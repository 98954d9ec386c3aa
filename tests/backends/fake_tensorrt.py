"""A mock of TensorRT on a GPU whose memory is the host's: plans contain their graph, which ONNX Runtime runs.

It provides the API that `runtime.backends.networks.tensorrt.library` uses, and enforces the real library's rules:
layouts fit types, sizes are in the profile, addresses are aligned, memory is as large as requested. Arithmetic is
done when work is sent, in the layouts the plan was built with.
"""

import ctypes
import enum
import functools
import json
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime

MAGIC = b"fake plan "
ALIGNMENT = 256
SCRATCH = 4  # bytes a voxel of the input
KINDS = {onnx.TensorProto.FLOAT: "FLOAT", onnx.TensorProto.FLOAT16: "HALF"}
ELEMENTS = {"FLOAT": np.float32, "HALF": np.float16}


CAPTURING: list[list] = []


def capture(work: Callable[[], None]) -> Callable[[], None]:
    """Capture, as `Driver.capture` does, the runs that contexts are asked for with their addresses, to be run later."""
    CAPTURING.append([])
    try:
        work()
    finally:
        runs = CAPTURING.pop()
    return lambda: [run() for run in runs]


class Severity(enum.IntEnum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class Logger:
    Severity = Severity


DataType = enum.Enum("DataType", "FLOAT HALF")
TensorFormat = enum.IntEnum("TensorFormat", {"LINEAR": 0, "DHWC8": 6, "DHWC": 12})
CreationFlag = enum.IntEnum("CreationFlag", {"STRONGLY_TYPED": 1})
BuilderFlag = enum.Enum("BuilderFlag", "TF32")
ComputeCapability = enum.Enum("ComputeCapability", "NONE CURRENT SM75 SM80 SM86 SM89 SM120")
AllocationStrategy = enum.Enum("AllocationStrategy", "STATIC ON_PROFILE_CHANGE USER_MANAGED")
GraphStrategy = enum.Enum("GraphStrategy", "DISABLED WHOLE_GRAPH_CAPTURE")
KernelStrategy = enum.Enum("KernelStrategy", "LAZY EAGER NONE")
LAYOUTS = {"FLOAT": (TensorFormat.LINEAR, TensorFormat.DHWC), "HALF": (TensorFormat.LINEAR, TensorFormat.DHWC8)}


@dataclass
class Tensor:
    """An input or output of a network or an engine."""

    name: str
    dtype: DataType
    shape: tuple[int, ...]
    allowed_formats: int = 1

    @property
    def layout(self) -> TensorFormat:
        return TensorFormat(self.allowed_formats.bit_length() - 1)


@dataclass
class Network:
    flags: int
    graph: bytes = b""
    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)

    num_inputs = property(lambda self: len(self.inputs))
    num_outputs = property(lambda self: len(self.outputs))

    def get_input(self, n: int) -> Tensor:
        return self.inputs[n]

    def get_output(self, n: int) -> Tensor:
        return self.outputs[n]


class Parser:
    def __init__(self, network: Network, logger: Any) -> None:
        self._network, self._logger = network, logger

    def parse(self, graph: bytes) -> bool:
        try:
            model = onnx.load_from_string(graph)
        except Exception:
            self._logger.log(Severity.ERROR, "Failed to parse the ONNX model.")
            return False
        self._network.graph = graph
        self._network.inputs = [_tensor(value) for value in model.graph.input]
        self._network.outputs = [_tensor(value) for value in model.graph.output]
        return True


def _tensor(value: onnx.ValueInfoProto) -> Tensor:
    kind = value.type.tensor_type
    return Tensor(value.name, DataType[KINDS[kind.elem_type]], tuple(d.dim_value or -1 for d in kind.shape.dim))


class BuilderConfig:
    def __init__(self) -> None:
        self.flags, self.profile, self.max_aux_streams = {BuilderFlag.TF32}, None, -1
        self.capabilities: list[str | None] = []

    num_compute_capabilities = property(
        lambda self: len(self.capabilities), lambda self, n: setattr(self, "capabilities", [None] * int(n))
    )

    def clear_flag(self, flag: BuilderFlag) -> None:
        self.flags.discard(flag)

    def add_optimization_profile(self, profile: "Profile") -> int:
        self.profile = profile
        return 0

    def set_compute_capability(self, capability: ComputeCapability, n: int) -> bool:
        self.capabilities[n] = capability.name
        return True

    def create_timing_cache(self, content: bytes) -> "Blob":
        return Blob(content)

    def set_timing_cache(self, cache: "Blob", ignore_mismatch: bool) -> bool:
        self.cache = cache
        return True

    def get_timing_cache(self) -> "Blob":
        return Blob(self.cache.content + b"timed ")


@dataclass
class Blob:
    """A timing cache or a cache of compiled kernels."""

    content: bytes = b""

    def serialize(self) -> bytes:
        return self.content

    def deserialize(self, content: bytes) -> bool:
        self.content = bytes(content)
        return True


class Profile:
    shapes: tuple = ()

    def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
        self.shapes = shapes


class Builder:
    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def create_network(self, flags: int) -> Network:
        return Network(flags)

    def create_builder_config(self) -> BuilderConfig:
        return BuilderConfig()

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Network, config: BuilderConfig) -> bytes | None:
        tensors = network.inputs + network.outputs
        for tensor in tensors:
            if tensor.layout not in LAYOUTS[tensor.dtype.name]:
                self._logger.log(Severity.ERROR, f"Error Code 3: {tensor.name} has an unsupported type for its format")
                return None
        header = {
            "tensors": [(tensor.name, tensor.dtype.name, tensor.layout) for tensor in tensors],
            "profile": config.profile.shapes,
            "tf32": BuilderFlag.TF32 in config.flags,
            "typed": bool(network.flags & 1 << CreationFlag.STRONGLY_TYPED),
            "capabilities": config.capabilities,
        }
        return MAGIC + json.dumps(header).encode() + b"\n" + network.graph


def header(plan: bytes) -> dict[str, Any]:
    """Return the facts that a plan was built with."""
    return json.loads(plan[len(MAGIC) : plan.index(b"\n")])


class Runtime:
    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def deserialize_cuda_engine(self, plan: bytes) -> "Engine | None":
        if not plan.startswith(MAGIC):
            self._logger.log(Severity.ERROR, "Error Code 1: Serialization (Magic tag does not match)")
            return None
        return Engine(plan, self._logger)


@dataclass
class RuntimeConfig:
    cuda_graph_strategy: GraphStrategy = GraphStrategy.DISABLED
    dynamic_shapes_kernel_specialization_strategy: KernelStrategy = KernelStrategy.LAZY
    allocation: AllocationStrategy = AllocationStrategy.STATIC
    cache: Blob | None = None

    def set_execution_context_allocation_strategy(self, strategy: AllocationStrategy) -> None:
        self.allocation = strategy

    def create_runtime_cache(self) -> Blob:
        return Blob()

    def set_runtime_cache(self, cache: Blob) -> bool:
        self.cache = cache
        return True


class Engine:
    def __init__(self, plan: bytes, logger: Any) -> None:
        self.facts, self.logger = header(plan), logger
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(plan[plan.index(b"\n") + 1 :], options)
        self.tensors = {name: (DataType[kind], TensorFormat(code)) for name, kind, code in self.facts["tensors"]}

    num_io_tensors = property(lambda self: len(self.tensors))

    def get_tensor_name(self, n: int) -> str:
        return list(self.tensors)[n]

    def get_tensor_dtype(self, name: str) -> DataType:
        return self.tensors[name][0]

    def get_tensor_format(self, name: str) -> TensorFormat:
        return self.tensors[name][1]

    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig()

    def create_execution_context(self, config: RuntimeConfig) -> "Context":
        return Context(self, config)


class Context:
    """An execution context, which runs an engine on the addresses it is given."""

    def __init__(self, engine: Engine, config: RuntimeConfig) -> None:
        assert config.allocation is AllocationStrategy.USER_MANAGED
        self._engine, self._config = engine, config
        self._shape: tuple[int, ...] = ()
        self._addresses: dict[str, int] = {}
        self._memory = 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        smallest, _, largest = self._engine.facts["profile"]
        if not all(a <= n <= b for a, n, b in zip(smallest, shape, largest, strict=True)):
            self._engine.logger.log(Severity.ERROR, f"Error Code 3: {shape} is outside of the profile")
            return False
        self._shape, self._memory = tuple(shape), 0
        return True

    def update_device_memory_size_for_shapes(self) -> int:
        return SCRATCH * int(np.prod(self._shape))

    def set_device_memory(self, address: int, size: int) -> None:
        assert address % ALIGNMENT == 0 and size >= self.update_device_memory_size_for_shapes()
        ctypes.memset(address, 0xFF, size)
        self._memory = size

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert address % ALIGNMENT == 0 and name in self._engine.tensors
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert self._memory, "no memory was given for this shape"
        work = functools.partial(self._run, self._shape, dict(self._addresses))
        if CAPTURING:
            CAPTURING[-1].append(work)
        else:
            work()
        return True

    def _run(self, shape: tuple[int, ...], addresses: dict[str, int]) -> None:
        if self._config.cache is not None and str(shape).encode() not in self._config.cache.content:
            self._config.cache.content += str(shape).encode()
        name = self._engine.session.get_inputs()[0].name
        outputs = [output.name for output in self._engine.session.get_outputs()]
        values = self._engine.session.run(outputs, {name: np.ascontiguousarray(self._tensor(name, shape, addresses))})
        for output, value in zip(outputs, values, strict=True):
            self._tensor(output, value.shape, addresses)[...] = value

    def _tensor(self, name: str, shape: tuple[int, ...], addresses: dict[str, int]) -> np.ndarray:
        """Return a tensor (1, C, I, J, K) of the graph as a view of memory in the layout of the plan."""
        dtype, layout = self._engine.tensors[name]
        count, (_, channels, *size) = int(np.prod(shape)), shape
        kind = np.dtype(ELEMENTS[dtype.name])
        raw = (ctypes.c_char * (count * kind.itemsize)).from_address(addresses[name])
        flat = np.frombuffer(raw, kind)
        if layout is TensorFormat.LINEAR:
            return flat.reshape(shape)
        assert layout is not TensorFormat.DHWC8 or channels % 8 == 0
        return np.moveaxis(flat.reshape(*size, channels), -1, 0)[None]


def fake_module(name: str, version: str = "1.0") -> types.ModuleType:
    """Return a module to put into `sys.modules` as "tensorrt_rtx" or "tensorrt"."""
    module = types.ModuleType(name)
    module.__version__ = version
    module.ILogger, module.Builder, module.OnnxParser, module.Runtime = Logger, Builder, Parser, Runtime
    module.NetworkDefinitionCreationFlag, module.BuilderFlag = CreationFlag, BuilderFlag
    module.TensorFormat, module.ExecutionContextAllocationStrategy = TensorFormat, AllocationStrategy
    if name == "tensorrt_rtx":
        module.ComputeCapability, module.CudaGraphStrategy = ComputeCapability, GraphStrategy
        module.DynamicShapesKernelSpecializationStrategy = KernelStrategy
    return module
