"""Choice of the backend and the precision: as requested, or the first of `runtime.backends.registry` that fits."""

from collections.abc import Callable, Mapping
from typing import Any

from ..errors import InputError, NotAvailableError
from .engine_set import EngineSet
from .registry import ARGUMENT, BACKENDS, GRAPHS, PRECISIONS, no_gpu


def open_backend(
    name: str,
    engine_set: EngineSet,
    threads: int,
    precision: str,
    progress: Callable[[str], None],
    alone: bool = True,
) -> tuple[str, str, str, tuple[Any, Any]]:
    """Open the requested backend, or for `auto` the first one that opens.

    Args:
        name: "auto" or one of `BACKENDS`.
        engine_set, threads, progress, alone: as for `Backend.open`.
        precision: "auto" or one of `PRECISIONS`.

    Returns:
        The backend's name, why it was chosen, the precision, and the networks with their field operations.

    Raises:
        InputError: as for `choose_backend`, `choose_precision` and `Backend.open`.
    """
    broken: dict[str, str] = {}
    while True:
        chosen, reason = choose_backend(name, engine_set, precision, broken)
        found = choose_precision(chosen, precision, engine_set)
        try:
            return chosen, reason, found, BACKENDS[chosen].open(engine_set, threads, found, progress, alone)
        except NotAvailableError as error:
            if name != "auto":
                raise
            broken[chosen] = str(error).removeprefix(ARGUMENT)


def choose_backend(
    name: str, engine_set: EngineSet, precision: str = "auto", broken: Mapping[str, str] | None = None
) -> tuple[str, str]:
    """Return the backend to open and the reason. A backend requested by name is opened or refused, never replaced.

    Args:
        name: "auto" or one of `BACKENDS`.
        engine_set: the set to run.
        precision: "auto" or one of `PRECISIONS`; `auto` chooses a backend that has it.
        broken: backends that `auto` must not choose, with the reasons.

    Raises:
        InputError: the name is unknown, or the backend is not available or cannot run this set.
    """
    if name == "auto":
        return _first_fit(engine_set, precision, broken or {})
    if name not in BACKENDS:
        raise InputError(f"--backend: got {name!r}, expected auto or one of {', '.join(BACKENDS)}")
    backend = BACKENDS[name]
    if reason := backend.missing_gpu:
        raise NotAvailableError(f"--backend: {name} needs an NVIDIA GPU, but {reason}; use --backend auto")
    if not backend.available:
        raise NotAvailableError(f"--backend: {name} needs the package {backend.package}; {backend.install}")
    if lack := backend.incompatibility(engine_set):
        raise InputError(f"--backend: {name} {lack}; use --backend auto")
    return name, "requested"


def _first_fit(engine_set: EngineSet, precision: str, broken: Mapping[str, str]) -> tuple[str, str]:
    reasons: dict[str, list[str]] = {}  # backends that are passed over, by reason
    missing = no_gpu()
    for name, backend in BACKENDS.items():
        if backend.gpu and missing:
            reasons[missing] = []
        elif not backend.available:
            reasons.setdefault(f"{backend.package} is not installed", []).append(f"no {name}")
        elif reason := broken.get(name) or backend.skip_reason(engine_set, precision):
            reasons.setdefault(reason, []).append(f"not {name}")
        else:
            return name, f"auto: {_reasons_text(reasons) or 'the fastest available'}"
    remedy = next(backend.install for backend in BACKENDS.values() if not backend.gpu)
    if precision != "auto" and any(backend.available and not backend.gpu for backend in BACKENDS.values()):
        remedy = "use --precision auto"
    raise InputError(f"--backend: got auto, but no backend can run these engines ({_reasons_text(reasons)}); {remedy}")


def _reasons_text(reasons: Mapping[str, list[str]]) -> str:
    return "; ".join(", ".join([*names, reason]) for reason, names in reasons.items())


def choose_precision(backend: str, precision: str, engine_set: EngineSet) -> str:
    """Return the precision to compute in; the networks check whether the processor or GPU supports it.

    Raises:
        InputError: the precision is unknown, or this backend or the set's graphs do not have it.
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
    """Raise InputError if a word is not the name of a precision."""
    if precision not in ("auto", *PRECISIONS):
        raise InputError(f"--precision: got {precision!r}, expected auto or one of {', '.join(PRECISIONS)}")
