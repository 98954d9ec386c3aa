"""Engine sets opened on a backend."""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar, overload

from ..errors import InputError
from ..host.machine import cores
from ..host.progress import Progress, silent
from ..host.shipped import shipped_engines
from ..types import Array
from .choice import check_precision, choose_backend, choose_precision, open_backend
from .engine_set import ENGINES, EngineSet
from .pair import Fields, FixedSide, Networks
from .registry import GRAPHS

SHIPPED = shipped_engines()
Kind = TypeVar("Kind", bound="OpenEngines")


@dataclass(frozen=True)
class OpenEngines:
    """An open engine set: the networks and the field operations, ready to run. A context manager.

    Attributes:
        engine_set: the checked set that the engines come from.
        backend: name of the backend.
        reason: why this backend was chosen.
        precision: "fp32", "fp16" or "bf16", in which the engines compute.
        threads: CPU threads requested.
    """

    engine_set: EngineSet
    backend: str
    reason: str
    precision: str
    threads: int
    networks: Networks
    fields: Fields
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def fixed_side(self, fixed: Array, similarity: str) -> FixedSide:
        """Prepare a fixed image (I, J, K), float32 in [0, 1] on a working grid."""
        return FixedSide(self.networks, self.fields, self.fields.to_device(fixed), similarity)

    def as_dict(self) -> dict[str, Any]:
        return {
            "backend": self.backend,
            "reason": self.reason,
            "library": f"{self.networks.library} {self.networks.version}",
            "device": self.networks.device,
            "fields": self.fields.name,
            "precision": self.precision,
            "threads": self.threads,
            "engine_dir": str(self.engine_set.folder),
            "engines": {name: self.engine_set.graph_hash(name, GRAPHS[self.precision]) for name in ENGINES},
            "weights": self.engine_set.manifest.get("provenance", {}),
        }

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Hold the engines for one registration at a time, on the threads requested.

        Raises:
            InputError: the engines are closed.
        """
        with self._lock, self.fields.threads():
            if self.networks.closed:
                raise InputError("engines: already closed; open them again with open_engines")
            yield

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        with self.fields.threads():
            self.networks.close()
            self.fields.close()


def check_choice(
    engine_set: EngineSet, backend: str = "auto", threads: int | None = None, precision: str = "auto"
) -> None:
    """Check the arguments of `runtime.open_engines` as far as possible before anything heavy is imported.

    Args:
        engine_set: the set to open.
        backend, threads, precision: as for `runtime.open_engines`.

    Raises:
        InputError: more threads than cores, or a backend or precision that is not available on this machine.
    """
    if threads is not None and not 1 <= threads <= cores():
        raise InputError(f"--threads: got {threads}, expected 1 to {cores()}, the cores of this computer")
    check_precision(precision)
    name, _ = choose_backend(backend, engine_set, precision)
    choose_precision(name, precision, engine_set)


@overload
def open_set(
    engine_set: EngineSet,
    backend: str = "auto",
    threads: int | None = None,
    precision: str = "auto",
    progress: Progress = silent,
    alone: bool = True,
) -> OpenEngines: ...


@overload
def open_set(
    engine_set: EngineSet,
    backend: str = "auto",
    threads: int | None = None,
    precision: str = "auto",
    progress: Progress = silent,
    alone: bool = True,
    *,
    kind: type[Kind],
) -> Kind: ...


def open_set(
    engine_set: EngineSet,
    backend: str = "auto",
    threads: int | None = None,
    precision: str = "auto",
    progress: Progress = silent,
    alone: bool = True,
    kind: type[OpenEngines] = OpenEngines,
) -> OpenEngines:
    """Open an engine set that has been read and checked.

    Args:
        engine_set: the set.
        backend, threads, precision, progress: as for `runtime.open_engines`.
        alone: whether no other thread of this process works on the same GPU meanwhile.
        kind: class of the result.
    """
    check_choice(engine_set, backend, threads, precision)
    threads = threads or cores()
    name, reason, precision, halves = open_backend(backend, engine_set, threads, precision, progress, alone)
    return kind(engine_set, name, reason, precision, threads, *halves)
