"""The table of backends: each pairs a library that runs engines with the field operations used beside it."""

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import InputError, NotAvailableError, first_line
from ..host.machine import installed_versions, processor_features
from .cuda.gpu import find_gpu, has_driver
from .engine_set import EngineSet

PRECISIONS = ("fp32", "fp16", "bf16")
GRAPHS = {"fp32": "fp32", "fp16": "fp16", "bf16": "fp32"}  # the graphs' precision; for bf16 the library rounds them
ARGUMENT = "--backend: "
NUMBA_FIELDS = ".fields.cpu:NumbaFields"
CUDA_FIELDS = ".fields.cuda:CudaFields"
GPU_REQUIREMENTS = "pip install -r requirements-gpu.txt"


@dataclass(frozen=True)
class Backend:
    """A library that runs the engines, paired with the field operations used beside it.

    Attributes:
        networks, fields: "module:class", imported only when the backend is opened.
        precisions: those its engines can compute in; `auto` takes the first one that the engine set has graphs for.
        library: the importable package it needs.
        install: the command that installs it.
        gpu: whether it works on an NVIDIA GPU. Its networks then take a device where others take threads.
        distribution: the name under which `library` must be installed; None: any.
        auto_with: the instruction set (LLVM's name) that `auto` requires to choose this backend; None: no requirement.
        channels: number of channels at level 1 that an engine set must have; None: any.
        emulated: precisions it only emulates, slowly, to show their rounding; `auto` does not choose it for them.
    """

    networks: str
    fields: str
    precisions: tuple[str, ...]
    library: str
    install: str
    gpu: bool = False
    distribution: str | None = None
    auto_with: str | None = None
    channels: int | None = None
    emulated: tuple[str, ...] = ()

    @property
    def computed(self) -> tuple[str, ...]:
        """The precisions that it does not emulate."""
        return tuple(precision for precision in self.precisions if precision not in self.emulated)

    @property
    def available(self) -> bool:
        """True if the package it needs is installed; checked without importing it."""
        if self.distribution and not _is_installed(self.distribution):
            return False
        return importlib.util.find_spec(self.library) is not None

    @property
    def package(self) -> str:
        """The name of the package that a user installs."""
        return self.distribution or self.library

    @property
    def missing_gpu(self) -> str | None:
        """The reason why there is no GPU, for a backend that needs one; else None."""
        found = find_gpu() if self.gpu else None
        return found if isinstance(found, str) else None

    @property
    def usable(self) -> bool:
        """True if it is available on this machine: its package is installed, and there is a GPU if it needs one."""
        return self.available and self.missing_gpu is None

    def load(self) -> tuple[Any, Any]:
        """Import the classes of the networks and of the field operations.

        Raises:
            NotAvailableError: a library is installed but cannot be imported, for example because another is missing.
        """
        try:
            return _load(self.networks), _load(self.fields)
        except InputError:
            raise
        except Exception as error:  # a half-updated library, or one that finds no home folder, may raise anything
            raise NotAvailableError(
                f"{ARGUMENT}{self.library} or a library it needs cannot be imported ({first_line(error)}), reinstall it"
            ) from None

    def open(
        self, engine_set: EngineSet, threads: int, precision: str, progress: Callable[[str], None], alone: bool = True
    ) -> tuple[Any, Any]:
        """Open the networks and the field operations.

        Args:
            engine_set: a checked set.
            threads: CPU threads; on a GPU they are used only by the self-test.
            precision: one of `precisions`.
            progress: function that prints a line before anything that takes a while.
            alone: whether no other thread of this process works on the GPU meanwhile.

        Raises:
            NotAvailableError: something it needs is not available on this machine.
        """
        networks, fields = self.load()
        if not self.gpu:
            return networks(engine_set, threads, precision), fields(threads)
        from .cuda.open_device import open_device
        from .self_test import self_test

        networks.check_gpu(find_gpu(), precision)
        device = open_device(alone)
        with device.current():
            try:
                halves = networks(engine_set, device, precision, progress), fields(device)
                self_test(*halves, engine_set, threads, progress)
                return halves
            except InputError as error:
                device.close()
                # The same set runs on other backends, so any error here counts as one of this GPU.
                raise NotAvailableError(str(error)) from None

    def incompatibility(self, engine_set: EngineSet) -> str | None:
        """Return the reason why it cannot run this set; None if it can."""
        if self.channels not in (None, engine_set.channels[1]):
            return f"runs networks with {self.channels} channels at level 1, this one has {engine_set.channels[1]}"
        if not self.offered(engine_set):
            return f"computes in {', '.join(self.precisions)}, and this set has no such graphs (export it again)"
        return None

    def offered(self, engine_set: EngineSet) -> list[str]:
        """Return the precisions in which it can run this set."""
        return [precision for precision in self.precisions if GRAPHS[precision] in engine_set.precisions]

    def skip_reason(self, engine_set: EngineSet, precision: str) -> str | None:
        """Return the reason why `auto` does not choose it although it is available; None if it does."""
        if precision not in ("auto", *self.computed):
            return f"{'only emulates' if precision in self.emulated else 'has no'} {precision}"
        if self.auto_with and self.auto_with not in processor_features():
            return f"this processor has no {self.auto_with}"
        return self.incompatibility(engine_set)


# In the order in which `auto` prefers them (docs/decisions/0006-cpu-backends.md, 0007-the-loop-on-a-gpu.md).
BACKENDS = {
    "tensorrt-rtx": Backend(
        networks=".networks.tensorrt.networks:TensorRtRtxNetworks",
        fields=CUDA_FIELDS,
        precisions=("fp16", "fp32"),
        library="tensorrt_rtx",
        install=GPU_REQUIREMENTS,
        gpu=True,
    ),
    "tensorrt": Backend(
        networks=".networks.tensorrt.networks:TensorRtNetworks",
        fields=CUDA_FIELDS,
        precisions=("fp16", "fp32"),
        library="tensorrt",
        install="pip install tensorrt --extra-index-url https://pypi.nvidia.com",
        gpu=True,
    ),
    "cuda": Backend(
        networks=".networks.onnxruntime_cuda:CudaOnnxRuntimeNetworks",
        fields=CUDA_FIELDS,
        precisions=("fp32", "fp16"),
        library="onnxruntime",
        install='pip uninstall onnxruntime, then pip install "onnxruntime-gpu[cuda,cudnn]"',
        gpu=True,
        distribution="onnxruntime-gpu",
    ),
    "native": Backend(
        networks=".networks.native.networks:NativeNetworks",
        fields=NUMBA_FIELDS,
        precisions=("fp32",),
        library="onnx",
        install="pip install onnx",
        auto_with="avx512f",
        channels=8,
    ),
    "openvino": Backend(
        networks=".networks.openvino:OpenVinoNetworks",
        fields=NUMBA_FIELDS,
        precisions=("fp32", "bf16"),
        library="openvino",
        install="pip install openvino",
    ),
    "onnxruntime": Backend(
        networks=".networks.onnxruntime:OnnxRuntimeNetworks",
        fields=NUMBA_FIELDS,
        precisions=("fp32", "fp16"),
        library="onnxruntime",
        install="pip install onnxruntime",
        emulated=("fp16",),
    ),
}


def no_gpu() -> str | None:
    """Return the reason why no GPU backend is available; the driver is initialised only if a package could use it."""
    if any(backend.gpu and backend.available for backend in BACKENDS.values()):
        found = find_gpu()
        return found if isinstance(found, str) else None
    if has_driver():
        return f"no package for the NVIDIA GPU is installed ({GPU_REQUIREMENTS})"
    return "this computer has no NVIDIA driver"


def _is_installed(distribution: str) -> bool:
    return bool(installed_versions([distribution]))


def _load(place: str) -> Any:
    module, _, attribute = place.partition(":")
    return getattr(importlib.import_module(module, __package__), attribute)
