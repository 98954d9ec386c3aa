"""All contenders of a benchmark: each opened once in its own process, and the reference to compare them with."""

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

REFERENCE_BACKEND = "onnxruntime"  # used if the PyTorch reference implementation is not installed
HOST = "cpu"
Refused = list[dict[str, str]]  # names and reasons


@dataclass(frozen=True)
class Entry:
    """An open contender.

    Attributes:
        contender: the contender, with resolved backend and precision.
        worker: its process, which holds a `Session`.
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


class LineUp:
    """All contenders, open as long as the context lasts.

    Args:
        options: say which engines to open.
        others: returns contenders from outside the runtime, such as PyTorch; its argument says whether any engine runs
            on a GPU. The reference is ONNX Runtime in fp32 if none of its references can be opened.
        progress: receives a line before slow steps, such as building engines for a GPU.

    Attributes:
        entries: open contenders, engines first.
        left_out: contenders that could not be opened, and why.
        rivals: names of the contenders from outside the runtime.

    Raises:
        InputError: on entry, if a backend, precision or rival asked for by name is not available at all.
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

    def __enter__(self) -> "LineUp":
        with contextlib.ExitStack() as stack:
            for contender in self._requested():
                self._open(contender, stack)
            self._check_complete()
            others = self._ask_others(self.on_gpu)
            for rival in others.rivals:
                self._open(rival, stack)
            self.rivals = [rival.name for rival in others.rivals]
            self._check_rivals()
            last = EngineContender(self._options.engine_dir, REFERENCE_BACKEND, "fp32", self._options.threads)
            self._references: tuple[Contender, ...] = (*others.references, last)
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
        """Provide the reference's worker and its description: an open contender, or one opened for the context.

        The description also says why references before it could not be opened.

        Raises:
            InputError: no reference can be opened.
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

    def _requested(self) -> list[EngineContender]:
        options = self._options
        available = [name for name, backend in BACKENDS.items() if backend.usable]
        backends = [name for asked in options.backends for name in _all_if(asked, available)]
        return [
            EngineContender(options.engine_dir, backend, precision, options.threads)
            for backend in backends
            for asked in options.precisions
            for precision in _all_if(asked, BACKENDS[backend].computed if backend in BACKENDS else PRECISIONS)
        ]

    def _open(self, contender: Contender, stack: contextlib.ExitStack) -> None:
        """Open and add a contender; one that is not available is left out for now."""
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
        """Open a contender in its own process; return worker and facts, or None after noting why it is unavailable."""
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
        """Check that each backend and precision asked for by name is open at least once."""
        there = {word for entry in self.entries for word in entry.name.split()} | {ALL, "auto"}
        refused = {word: entry["reason"] for entry in self.left_out for word in entry["name"].split()}
        for name in (*self._options.backends, *self._options.precisions):
            if name in refused and name not in there:
                raise InputError(refused[name])
        if not self.entries:
            raise InputError(self.left_out[0]["reason"])

    def _check_rivals(self) -> None:
        """Check that every rival is open: rivals are always asked for by name."""
        for entry in self.left_out:
            if entry["name"] in self.rivals:
                raise InputError(entry["reason"])


class Peaks:
    """Peak GFLOP/s measured by device and precision, in NumPy's matrix product and in that of the engine libraries.

    NumPy's is used for the host, if a contender runs there; the others for libraries that offer such a measurement.

    A context manager; measured again between runs, under the same conditions as they are.
    """

    def __init__(self, line_up: LineUp, threads: int) -> None:
        self._entries = [entry for entry in line_up.entries if entry.ours]
        self._product = MatrixProduct(threads) if not all(entry.on_gpu for entry in line_up.entries) else None
        self.values: dict[str, list[float]] = {}

    def __enter__(self) -> "Peaks":
        if self._product:
            self._worker = Worker(self._product, "matrix product", self._product.environment())
        return self

    def __exit__(self, *exception: object) -> None:
        if self._product:
            self._worker.close()

    def measure(self) -> None:
        """Measure each peak once more."""
        if self._product:
            self._add({"device": HOST, "precision": "fp32"}, self._worker.call("measured_peak"))
        for entry in self._entries:
            self._add(entry.facts, entry.worker.call("measured_peak"))

    def _add(self, facts: dict[str, Any], value: float | None) -> None:
        if value:
            self.values.setdefault(_arithmetic(facts), []).append(value)

    def best(self, facts: dict[str, Any]) -> float | None:
        """Return the peak for a contender's device and precision; None if it could not be measured."""
        return max(self.values.get(_arithmetic(facts), []), default=None)


def _arithmetic(facts: dict[str, Any]) -> str:
    return f"{facts['device']} {facts['precision']}"


def _all_if(asked: str, everything: Sequence[str]) -> Sequence[str]:
    return everything if asked == ALL else (asked,)
