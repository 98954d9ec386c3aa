"""The one table that pairs the library that runs engines with the field operations beside it."""

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runtime.geometry.errors import InputError, first_line
from runtime.machine import processor_features
from runtime.manifest import EngineSet

PRECISIONS = ("fp32", "bf16")
ARGUMENT = "--backend: "
NUMBA_FIELDS = "runtime.backends.fields_numba:NumbaFields"


@dataclass(frozen=True)
class Backend:
    """A pairing: the library that runs the engines and the field operations beside it.

    Attributes:
        networks, fields: "module:class", imported only when the backend is opened.
        precisions: in which its engines can compute.
        library: the importable package it needs.
        install: how a user gets it.
        auto_with: the instruction set (LLVM's name) with which `auto` takes it; None: any.
        channels: of level 1 that an engine set must have; None: any.
    """

    networks: str
    fields: str
    precisions: tuple[str, ...]
    library: str
    install: str
    auto_with: str | None = None
    channels: int | None = None

    @property
    def available(self) -> bool:
        return importlib.util.find_spec(self.library) is not None

    def load(self) -> tuple[Any, Any]:
        """The classes of both halves, imported now.

        Raises:
            InputError: a library is installed but cannot be imported, for want of another one for instance.
        """
        try:
            return _load(self.networks), _load(self.fields)
        except (ImportError, OSError) as error:
            raise InputError(
                f"{ARGUMENT}{self.library} or what it needs cannot be imported ({first_line(error)}), install it again"
            ) from None

    def unfit(self, engine_set: EngineSet) -> str | None:
        """Why it cannot run this set; None where it can."""
        if self.channels not in (None, engine_set.channels[1]):
            return f"runs networks with {self.channels} channels at level 1, this one has {engine_set.channels[1]}"
        return None

    def passed_by(self, engine_set: EngineSet, precision: str) -> str | None:
        """Why `auto` does not take it; None where it does."""
        if not self.available:
            return f"{self.library} is not installed"
        if precision not in ("auto", *self.precisions):
            return f"has no {precision}"
        if self.auto_with and self.auto_with not in processor_features():
            return f"this processor has no {self.auto_with}"
        return self.unfit(engine_set)


# In the order `auto` prefers them (docs/decisions/0006-cpu-backends.md).
BACKENDS = {
    "native": Backend(
        networks="runtime.backends.networks_native:NativeNetworks",
        fields=NUMBA_FIELDS,
        precisions=("fp32",),
        library="onnx",
        install="pip install onnx",
        auto_with="avx512f",
        channels=8,
    ),
    "openvino": Backend(
        networks="runtime.backends.networks_openvino:OpenVinoNetworks",
        fields=NUMBA_FIELDS,
        precisions=("fp32", "bf16"),
        library="openvino",
        install="pip install openvino",
    ),
    "onnxruntime": Backend(
        networks="runtime.backends.networks_onnxruntime:OnnxRuntimeNetworks",
        fields=NUMBA_FIELDS,
        precisions=("fp32",),
        library="onnxruntime",
        install="pip install onnxruntime",
    ),
}


def load_backend(
    name: str, engine_set: EngineSet, precision: str = "auto"
) -> tuple[str, str, tuple[type[Any], type[Any]]]:
    """`choose_backend`, and the classes of both halves; from a backend that cannot be imported `auto` goes on.

    Args and errors as there; InputError also where the one asked for cannot be imported.
    """
    broken: dict[str, str] = {}
    while True:
        chosen, reason = choose_backend(name, engine_set, precision, broken)
        try:
            return chosen, reason, BACKENDS[chosen].load()
        except InputError as error:
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
        InputError: an unknown name, the library it needs is not installed, or it cannot run this set.
    """
    if name == "auto":
        return _first_fit(engine_set, precision, broken or {})
    if name not in BACKENDS:
        raise InputError(f"--backend: got {name!r}, expected auto or one of {', '.join(BACKENDS)}")
    backend = BACKENDS[name]
    if not backend.available:
        raise InputError(f"--backend: {name} needs the package {backend.library}; {backend.install}")
    if reason := backend.unfit(engine_set):
        raise InputError(f"--backend: {name} {reason}; use --backend auto")
    return name, "asked for"


def _first_fit(engine_set: EngineSet, precision: str, broken: Mapping[str, str]) -> tuple[str, str]:
    reasons = []
    for name, backend in BACKENDS.items():
        reason = broken.get(name) or backend.passed_by(engine_set, precision)
        if reason is None:
            return name, f"auto: {'; '.join(reasons) or 'the fastest here'}"
        reasons.append(f"not {name}, {reason}" if backend.available else f"no {name}, {reason}")
    remedy = next(backend.install for backend in BACKENDS.values() if precision in ("auto", *backend.precisions))
    raise InputError(f"--backend: got auto, but nothing here can run these engines ({'; '.join(reasons)}); {remedy}")


def choose_precision(backend: str, precision: str) -> str:
    """The precision to compute in; whether the processor can is checked by the networks.

    Raises:
        InputError: an unknown precision, or one this backend does not have.
    """
    offered = BACKENDS[backend].precisions
    if precision == "auto":
        return offered[0]
    check_precision(precision)
    if precision not in offered:
        others = [name for name, other in BACKENDS.items() if precision in other.precisions]
        raise InputError(
            f"--precision: {backend} computes in {', '.join(offered)}, not in {precision}; "
            f"use --backend {' or '.join(others)} or --precision {offered[0]}"
        )
    return precision


def check_precision(precision: str) -> None:
    """Refuses a word that is no precision."""
    if precision not in ("auto", *PRECISIONS):
        raise InputError(f"--precision: got {precision!r}, expected auto or one of {', '.join(PRECISIONS)}")


def _load(place: str) -> Any:
    module, _, attribute = place.partition(":")
    return getattr(importlib.import_module(module), attribute)
