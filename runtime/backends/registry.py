"""The one table that pairs the library that runs engines with the field operations beside it."""

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import InputError, NotAvailableError, first_line
from ..host.machine import installed_versions, processor_features
from .cuda.gpu import find_gpu, has_driver
from .engine_set import EngineSet

PRECISIONS = ("fp32", "fp16", "bf16")
GRAPHS = {"fp32": "fp32", "fp16": "fp16", "bf16": "fp32"}  # of which precision the graphs are; some round on their own
ARGUMENT = "--backend: "
NUMBA_FIELDS = ".fields.cpu:NumbaFields"
CUDA_FIELDS = ".fields.cuda:CudaFields"
GPU_REQUIREMENTS = "pip install -r requirements-gpu.txt"


@dataclass(frozen=True)
class Backend:
    """A pairing: the library that runs the engines and the field operations beside it.

    Attributes:
        networks, fields: "module:class", imported only when the backend is opened.
        precisions: in which its engines can compute; `auto` takes the first one that the engine set has graphs for.
        library: the importable package it needs.
        install: how a user gets it.
        gpu: whether it works on an NVIDIA GPU. Its networks then take a device where others take threads.
        distribution: the name under which `library` must be installed; None: any.
        auto_with: the instruction set (LLVM's name) with which `auto` takes it; None: any.
        channels: of level 1 that an engine set must have; None: any.
        emulated: precisions it computes in, slowly, to show what they round away; `auto` does not take it for them.
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
        """Precisions that it does not emulate."""
        return tuple(precision for precision in self.precisions if precision not in self.emulated)

    @property
    def available(self) -> bool:
        """Whether what it needs is installed; nothing is imported for the answer."""
        if self.distribution and not _is_installed(self.distribution):
            return False
        return importlib.util.find_spec(self.library) is not None

    @property
    def package(self) -> str:
        """What a user installs, or names in a list of requirements."""
        return self.distribution or self.library

    @property
    def here(self) -> bool:
        """Whether it is to be had on this computer: what it needs is installed, and a GPU is there if it needs one."""
        return self.available and not (self.gpu and isinstance(find_gpu(), str))

    def load(self) -> tuple[Any, Any]:
        """The classes of both halves, imported now.

        Raises:
            NotAvailableError: a library is installed but cannot be imported, for want of another one for instance.
        """
        try:
            return _load(self.networks), _load(self.fields)
        except InputError:
            raise
        except Exception as error:  # a library may fail in any way where it was half updated, or finds no home folder
            raise NotAvailableError(
                f"{ARGUMENT}{self.library} or what it needs cannot be imported ({first_line(error)}), install it again"
            ) from None

    def open(
        self, engine_set: EngineSet, threads: int, precision: str, tell: Callable[[str], None], alone: bool = True
    ) -> tuple[Any, Any]:
        """Networks and field operations, ready to run.

        Args:
            engine_set: a checked set.
            threads: of the processor; a GPU's backend has no use for them.
            precision: one of `precisions`.
            tell: told, in a line, what takes a while.
            alone: whether no other thread of this process works on the GPU meanwhile.

        Raises:
            NotAvailableError: what it needs is not to be had on this computer.
        """
        networks, fields = self.load()
        if not self.gpu:
            return networks(engine_set, threads, precision), fields(threads)
        from .cuda.open_device import open_device
        from .self_test import try_out

        networks.check_gpu(find_gpu(), precision)
        device = open_device(alone)
        with device.current():
            try:
                halves = networks(engine_set, device, precision, tell), fields(device)
                try_out(*halves, engine_set, threads, tell)
                return halves
            except InputError as error:
                device.close()
                # Whatever it is, it is the GPU's: the same set runs elsewhere.
                raise NotAvailableError(str(error)) from None

    def unfit(self, engine_set: EngineSet) -> str | None:
        """Why it cannot run this set; None where it can."""
        if self.channels not in (None, engine_set.channels[1]):
            return f"runs networks with {self.channels} channels at level 1, this one has {engine_set.channels[1]}"
        if not self.offered(engine_set):
            return f"computes in {', '.join(self.precisions)}, and this set has no such graphs (export it again)"
        return None

    def offered(self, engine_set: EngineSet) -> list[str]:
        """Precisions in which it can run this set."""
        return [precision for precision in self.precisions if GRAPHS[precision] in engine_set.precisions]

    def passed_by(self, engine_set: EngineSet, precision: str) -> str | None:
        """Why `auto` does not take it, although it is to be had; None where it does."""
        if precision not in ("auto", *self.computed):
            return f"{'only emulates' if precision in self.emulated else 'has no'} {precision}"
        if self.auto_with and self.auto_with not in processor_features():
            return f"this processor has no {self.auto_with}"
        return self.unfit(engine_set)


# In the order `auto` prefers them (docs/decisions/0006-cpu-backends.md, 0007-the-loop-on-a-gpu.md).
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


def open_backend(
    name: str,
    engine_set: EngineSet,
    threads: int,
    precision: str,
    tell: Callable[[str], None],
    alone: bool = True,
) -> tuple[str, str, str, tuple[Any, Any]]:
    """Opens the backend asked for; of `auto`, the first that opens.

    Args:
        name: "auto" or one of `BACKENDS`.
        engine_set, threads, tell, alone: as for `Backend.open`.
        precision: "auto" or one of `PRECISIONS`.

    Returns:
        The backend's name, why it was chosen, the precision, and both halves, networks and field operations.

    Raises:
        InputError: as `choose_backend`, `choose_precision` and `Backend.open`.
    """
    broken: dict[str, str] = {}
    while True:
        chosen, reason = choose_backend(name, engine_set, precision, broken)
        found = choose_precision(chosen, precision, engine_set)
        try:
            return chosen, reason, found, BACKENDS[chosen].open(engine_set, threads, found, tell, alone)
        except NotAvailableError as error:
            if name != "auto":
                raise
            broken[chosen] = str(error).removeprefix(ARGUMENT)


def choose_backend(
    name: str, engine_set: EngineSet, precision: str = "auto", broken: Mapping[str, str] | None = None
) -> tuple[str, str]:
    """The backend to open and why. What is asked for by name is opened or refused, never replaced.

    Args:
        name: "auto" or one of `BACKENDS`.
        engine_set: what is to be run.
        precision: "auto" or one of `PRECISIONS`; `auto` takes a backend that has it.
        broken: backends `auto` shall not take, and why.

    Raises:
        InputError: an unknown name, what it needs is not there, or it cannot run this set.
    """
    if name == "auto":
        return _first_fit(engine_set, precision, broken or {})
    if name not in BACKENDS:
        raise InputError(f"--backend: got {name!r}, expected auto or one of {', '.join(BACKENDS)}")
    backend = BACKENDS[name]
    if backend.gpu and isinstance(reason := find_gpu(), str):
        raise NotAvailableError(f"--backend: {name} needs an NVIDIA GPU, but {reason}; use --backend auto")
    if not backend.available:
        raise NotAvailableError(f"--backend: {name} needs the package {backend.package}; {backend.install}")
    if reason := backend.unfit(engine_set):
        raise InputError(f"--backend: {name} {reason}; use --backend auto")
    return name, "asked for"


def _first_fit(engine_set: EngineSet, precision: str, broken: Mapping[str, str]) -> tuple[str, str]:
    reasons: dict[str, list[str]] = {}  # why not, and which
    no_gpu = _no_gpu()
    for name, backend in BACKENDS.items():
        if backend.gpu and no_gpu:
            reasons[no_gpu] = []
        elif not backend.available:
            reasons.setdefault(f"{backend.package} is not installed", []).append(f"no {name}")
        elif reason := broken.get(name) or backend.passed_by(engine_set, precision):
            reasons.setdefault(reason, []).append(f"not {name}")
        else:
            return name, f"auto: {_told(reasons) or 'the fastest here'}"
    remedy = next(backend.install for backend in BACKENDS.values() if not backend.gpu)
    if precision != "auto" and any(backend.available and not backend.gpu for backend in BACKENDS.values()):
        remedy = "use --precision auto"
    raise InputError(f"--backend: got auto, but nothing here can run these engines ({_told(reasons)}); {remedy}")


def _no_gpu() -> str | None:
    """Why no backend of a GPU can be had; the driver is woken only where a package could use it."""
    if any(backend.gpu and backend.available for backend in BACKENDS.values()):
        found = find_gpu()
        return found if isinstance(found, str) else None
    if has_driver():
        return f"nothing for the NVIDIA GPU is installed ({GPU_REQUIREMENTS})"
    return "this computer has no NVIDIA driver"


def _told(reasons: Mapping[str, list[str]]) -> str:
    return "; ".join(", ".join([*names, reason]) for reason, names in reasons.items())


def choose_precision(backend: str, precision: str, engine_set: EngineSet) -> str:
    """The precision to compute in; whether processor or GPU can is checked by the networks.

    Raises:
        InputError: an unknown precision, or one this backend, or this set for it, does not have.
    """
    check_precision(precision)
    precisions = BACKENDS[backend].precisions
    if precision == "auto":
        return BACKENDS[backend].offered(engine_set)[0]
    if precision not in precisions:
        others = [name for name, other in BACKENDS.items() if precision in other.precisions]
        raise InputError(
            f"--precision: {backend} computes in {', '.join(precisions)}, not in {precision}; "
            f"use --backend {' or '.join(others)} or --precision {precisions[0]}"
        )
    engine_set.require(GRAPHS[precision])
    return precision


def check_precision(precision: str) -> None:
    """Refuses a word that is no precision."""
    if precision not in ("auto", *PRECISIONS):
        raise InputError(f"--precision: got {precision!r}, expected auto or one of {', '.join(PRECISIONS)}")


def _is_installed(distribution: str) -> bool:
    return bool(installed_versions([distribution]))


def _load(place: str) -> Any:
    module, _, attribute = place.partition(":")
    return getattr(importlib.import_module(module, __package__), attribute)
