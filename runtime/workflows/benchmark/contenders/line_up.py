"""The field of contenders: each opened in its process, none twice, and the reference they are held against."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ....backends.registry import BACKENDS, PRECISIONS
from ....errors import InputError
from ....host.progress import Progress, silent
from ..options import ALL, BenchmarkOptions
from .arithmetic import MatrixProduct
from .contender import Contender, EngineContender, Others
from .process import Worker
from .session import Session

REFERENCE_BACKEND = "onnxruntime"  # where the PyTorch definition is not installed
HOST = "cpu"
Refused = list[dict[str, str]]  # names and reasons


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

    @property
    def on_gpu(self) -> bool:
        return self.facts["device"] != HOST


class Field:
    """All contenders, open for as long as the context lasts.

    Args:
        options: which engines are asked for.
        others: gives contenders of elsewhere, such as PyTorch; told whether any engine runs on a GPU. Who defines
            what is right is ONNX Runtime in fp32 where none of its references can be opened.
        progress: told what takes a while: a GPU's engines are built.

    Attributes:
        entries: who is open, engines first.
        left_out: who could not be opened, and why.
        rivals: names of those of elsewhere.

    Raises:
        InputError: on entry, when a backend, precision or rival asked for by name cannot be had at all.
    """

    def __init__(
        self,
        options: BenchmarkOptions,
        others: Callable[[bool], Others] = lambda on_gpu: Others(),
        progress: Progress = silent,
    ) -> None:
        self._options, self._ask_others, self._progress = options, others, progress
        self.entries: list[Entry] = []
        self.left_out: Refused = []
        self._no_references: Refused = []

    def __enter__(self) -> "Field":
        with contextlib.ExitStack() as stack:
            for contender in self._asked_for():
                self._open(contender, stack)
            self._check_complete()
            others = self._ask_others(self.on_gpu)
            for rival in others.rivals:
                self._open(rival, stack)
            self.rivals = [rival.name for rival in others.rivals]
            self._check_rivals()
            last = EngineContender(self._options.engine_dir, REFERENCE_BACKEND, "fp32", self._options.threads)
            self._references = (*others.references, last)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    @property
    def workers(self) -> list[Worker]:
        return [entry.worker for entry in self.entries]

    @property
    def on_gpu(self) -> bool:
        return any(entry.on_gpu for entry in self.entries)

    @contextlib.contextmanager
    def reference(self) -> Iterator[tuple[Worker, str]]:
        """The reference's worker, and what it is in words: one of the field, or one opened for the while.

        Of those that cannot be opened the words tell why.

        Raises:
            InputError: not even the last one can be opened.
        """
        with contextlib.ExitStack() as stack:
            contender, worker = self._first_reference(stack)
            refused = "; ".join("not {name}: {reason}".format(**entry) for entry in self._no_references)
            yield worker, f"{contender.words} ({refused})" if refused else contender.words

    def _first_reference(self, stack: contextlib.ExitStack) -> tuple[Contender, Worker]:
        for contender in self._references:
            for entry in self.entries:
                if entry.name == contender.name:
                    return contender, entry.worker
            if opened := self._opened(contender, stack, self._no_references):
                return contender, opened[0]
        raise InputError(self._no_references[-1]["reason"])

    def _asked_for(self) -> list[EngineContender]:
        options = self._options
        available = [name for name, backend in BACKENDS.items() if backend.here]
        backends = [name for asked in options.backends for name in _all_if(asked, available)]
        return [
            EngineContender(options.engine_dir, backend, precision, options.threads)
            for backend in backends
            for asked in options.precisions
            for precision in _all_if(asked, BACKENDS[backend].computed if backend in BACKENDS else PRECISIONS)
        ]

    def _open(self, contender: Contender, stack: contextlib.ExitStack) -> None:
        """Adds a contender; one that cannot be had is left out for now."""
        with contextlib.ExitStack() as own:
            opened = self._opened(contender, own, self.left_out)
            if opened is None:
                return
            worker, facts = opened
            if isinstance(contender, EngineContender):
                contender = replace(contender, backend=facts["backend"], precision=facts["precision"])
            worker.name = contender.name
            if all(entry.name != contender.name for entry in self.entries):
                stack.push(own.pop_all())
                self.entries.append(Entry(contender, worker, facts))

    def _opened(
        self, contender: Contender, stack: contextlib.ExitStack, refused: Refused
    ) -> tuple[Worker, dict[str, Any]] | None:
        """A contender in a process of its own, and its facts; None, and the reason noted, where it cannot be had."""
        if any(entry["name"] == contender.name for entry in refused):
            return None
        self._progress(f"opening {contender.name}")
        worker = stack.enter_context(Worker(Session(contender), contender.name, progress=self._progress))
        try:
            return worker, worker.call("open")
        except InputError as error:
            refused.append({"name": contender.name, "reason": str(error)})
            return None

    def _check_complete(self) -> None:
        """Each backend and precision asked for by name is there at least once."""
        there = {word for entry in self.entries for word in entry.name.split()} | {ALL, "auto"}
        refused = {word: entry["reason"] for entry in self.left_out for word in entry["name"].split()}
        for name in (*self._options.backends, *self._options.precisions):
            if name in refused and name not in there:
                raise InputError(refused[name])
        if not self.entries:
            raise InputError(self.left_out[0]["reason"])

    def _check_rivals(self) -> None:
        """Every rival is there: one is asked for by name, too."""
        for entry in self.left_out:
            if entry["name"] in self.rivals:
                raise InputError(entry["reason"])


class Peaks:
    """The most GFLOP/s seen by device and precision, in NumPy's matrix product and in the engine libraries' own.

    The former is for the host, where a contender runs there; the latter for libraries that have such a measure.

    A context manager; measured again between runs, so that it sees the same machine as they do.
    """

    def __init__(self, field: Field, threads: int) -> None:
        self._entries = [entry for entry in field.entries if entry.ours]
        self._product = MatrixProduct(threads) if not all(entry.on_gpu for entry in field.entries) else None
        self.values: dict[str, list[float]] = {}

    def __enter__(self) -> "Peaks":
        if self._product:
            self._worker = Worker(self._product, "matrix product", self._product.environment())
        return self

    def __exit__(self, *exception: object) -> None:
        if self._product:
            self._worker.close()

    def measure(self) -> None:
        """One more measurement of each."""
        if self._product:
            self._add({"device": HOST, "precision": "fp32"}, self._worker.call("measured_peak"))
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
