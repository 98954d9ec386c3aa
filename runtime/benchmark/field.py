"""The field of contenders: each opened in its process, none twice, and the reference they are held against."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from runtime.backends.table import BACKENDS, PRECISIONS
from runtime.benchmark.contenders import Contender, EngineContender
from runtime.benchmark.options import ALL, BenchmarkOptions
from runtime.benchmark.session import Session
from runtime.benchmark.work import MatrixProduct
from runtime.benchmark.workers import Worker
from runtime.geometry.errors import InputError

REFERENCE_BACKEND = "onnxruntime"  # where the PyTorch definition is not installed


@dataclass(frozen=True)
class Entry:
    """A contender that is open.

    Attributes:
        contender: under the backend and precision it resolved to.
        worker: the process it lives in; holds a `Session`.
        facts: backend, library, device, fields, precision, threads, open_seconds.
    """

    contender: Contender
    worker: Worker
    facts: dict[str, Any]

    @property
    def name(self) -> str:
        return self.contender.name

    @property
    def ours(self) -> bool:
        return isinstance(self.contender, EngineContender)


class Field:
    """All contenders, open for as long as the context lasts.

    Args:
        options: which engines are asked for.
        rivals: contenders of elsewhere, such as PyTorch.
        reference: who defines what is right; None: ONNX Runtime in fp32.

    Raises:
        InputError: on entry, when a backend or precision asked for by name cannot be had at all.
    """

    def __init__(
        self, options: BenchmarkOptions, rivals: Sequence[Contender] = (), reference: Contender | None = None
    ) -> None:
        self._options, self._rivals = options, rivals
        self._reference = reference or EngineContender(options.engine_dir, REFERENCE_BACKEND, "fp32", options.threads)
        self.entries: list[Entry] = []
        self.left_out: list[dict[str, str]] = []

    def __enter__(self) -> "Field":
        with contextlib.ExitStack() as stack:
            for contender in (*self._asked_for(), *self._rivals):
                self._open(contender, stack)
            self._check_complete()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    @property
    def workers(self) -> list[Worker]:
        return [entry.worker for entry in self.entries]

    @contextlib.contextmanager
    def reference(self) -> Iterator[tuple[Worker, str]]:
        """The reference's worker, and what it is in words: one of the field, or one opened for the while."""
        for entry in self.entries:
            if entry.name == self._reference.name:
                yield entry.worker, self._reference.words
                return
        with Worker(Session(self._reference), self._reference.name) as worker:
            worker.call("open")
            yield worker, self._reference.words

    def _asked_for(self) -> list[EngineContender]:
        options = self._options
        available = [name for name, backend in BACKENDS.items() if backend.available]
        backends = [name for asked in options.backends for name in _all_if(asked, available)]
        return [
            EngineContender(options.engine_dir, backend, precision, options.threads)
            for backend in backends
            for asked in options.precisions
            for precision in _all_if(asked, BACKENDS[backend].precisions if backend in BACKENDS else PRECISIONS)
        ]

    def _open(self, contender: Contender, stack: contextlib.ExitStack) -> None:
        """Adds a contender; one that cannot be had is left out for now, with its reason."""
        worker = Worker(Session(contender), contender.name)
        try:
            facts = worker.call("open")
        except InputError as error:
            worker.close()
            self.left_out.append({"name": contender.name, "reason": str(error)})
            return
        if isinstance(contender, EngineContender):
            contender = replace(contender, backend=facts["backend"], precision=facts["precision"])
        worker.name = contender.name
        if any(entry.name == contender.name for entry in self.entries):
            worker.close()
            return
        stack.callback(worker.close)
        self.entries.append(Entry(contender, worker, facts))

    def _check_complete(self) -> None:
        """Each backend, precision and rival asked for by name is there at least once."""
        names = {entry.name for entry in self.entries}
        there = names | {word for entry in self.entries if entry.ours for word in entry.name.split()} | {ALL, "auto"}
        refused = {word: entry["reason"] for entry in self.left_out for word in (entry["name"], *entry["name"].split())}
        asked = (*self._options.backends, *self._options.precisions, *(rival.name for rival in self._rivals))
        for name in asked:
            if name in refused and name not in there:
                raise InputError(refused[name])
        if not any(entry.ours for entry in self.entries):
            raise InputError(self.left_out[0]["reason"])


class Peaks:
    """The most GFLOP/s seen by device and precision, in NumPy's matrix product and in the engine libraries' own.

    A context manager; measured again between runs, so that it sees the same machine as they do.
    """

    def __init__(self, field: Field, threads: int) -> None:
        self._entries = [entry for entry in field.entries if entry.ours]
        self._product = MatrixProduct(threads)
        self.values: dict[str, list[float]] = {}

    def __enter__(self) -> "Peaks":
        self._worker = Worker(self._product, "matrix product", self._product.environment())
        return self

    def __exit__(self, *exception: object) -> None:
        self._worker.close()

    def measure(self) -> None:
        """One more measurement of each."""
        self._add({"device": "cpu", "precision": "fp32"}, self._worker.call("measured_peak"))
        for entry in self._entries:
            self._add(entry.facts, entry.worker.call("measured_peak"))

    def _add(self, facts: dict[str, Any], value: float | None) -> None:
        if value:
            self.values.setdefault(_arithmetic(facts), []).append(value)

    def best(self, facts: dict[str, Any]) -> float | None:
        """For a contender's device and precision; None where nothing could be measured."""
        return max(self.values.get(_arithmetic(facts), []), default=None)


def _arithmetic(facts: dict[str, Any]) -> str:
    return f"{facts['device']} {facts['precision']}"


def _all_if(asked: str, everything: Sequence[str]) -> Sequence[str]:
    return everything if asked == ALL else (asked,)
