"""The one table that pairs the library that runs engines with the field operations beside it."""

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any

from runtime.geometry.errors import InputError


@dataclass(frozen=True)
class Backend:
    """A pairing: the library that runs the engines and the field operations beside it.

    Attributes:
        networks, fields: "module:class", imported only when the backend is opened.
        library: the importable package it needs.
        install: how a user gets it.
    """

    networks: str
    fields: str
    library: str
    install: str

    @property
    def available(self) -> bool:
        return importlib.util.find_spec(self.library) is not None

    def load(self) -> tuple[Any, Any]:
        """The classes of both halves, imported now."""
        return _load(self.networks), _load(self.fields)


BACKENDS = {
    "onnxruntime": Backend(
        networks="runtime.backends.networks_onnxruntime:OnnxRuntimeNetworks",
        fields="runtime.backends.fields_numba:NumbaFields",
        library="onnxruntime",
        install="pip install onnxruntime",
    ),
}


def choose_backend(name: str) -> tuple[str, str]:
    """The backend to open and why. What is asked for by name is opened or refused, never replaced.

    Raises:
        InputError: an unknown name, or the library it needs is not installed.
    """
    if name == "auto":
        for candidate, backend in BACKENDS.items():
            if backend.available:
                return candidate, f"auto: {backend.library} is installed"
        wanted = "; or ".join(backend.install for backend in BACKENDS.values())
        raise InputError(f"--backend: got auto, but no engine library is installed; {wanted}")
    if name not in BACKENDS:
        raise InputError(f"--backend: got {name!r}, expected auto or one of {', '.join(BACKENDS)}")
    if not BACKENDS[name].available:
        raise InputError(f"--backend: {name} needs the package {BACKENDS[name].library}; {BACKENDS[name].install}")
    return name, "asked for"


def _load(place: str) -> Any:
    module, _, attribute = place.partition(":")
    return getattr(importlib.import_module(module), attribute)
