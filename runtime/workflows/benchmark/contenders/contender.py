"""Contenders: as named by the user (`Contender`), and once they are open (`Runner`)."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ....backends.engines import OpenEngines
from ....host.progress import Progress, silent
from ....loop import iterstop
from ....loop.schedules import LEVELS, Schedule
from ....registration.engines import open_engines
from ....types import Array
from .timing import Recorder, Span, timed

FINEST = LEVELS[-1]
ENGINE_FACTS = ("backend", "library", "device", "fields", "precision", "threads")


@dataclass(frozen=True)
class RunSettings:
    """The task of every contender: a schedule, and the similarity it watches."""

    schedule: Schedule
    similarity: str


@dataclass(frozen=True)
class RunResult:
    """One registration of two prepared images.

    Attributes:
        flow: (3, I, J, K), voxels, on the host.
        counts: kept iterations (a, b, c, d) of levels 4 to 1, by pass.
        executed: iterations run, those undone included; work is counted by these.
        similarity, folded_share: at the end.
        seconds: ``fixed side`` (made once for any number of moving images; 0 where it was given), ``loop`` (the fixed
            side, the moving image encoded, all iterations) and ``finish`` (warped image, folds, flow to the host);
            measured on the device that does the work, whose memory already holds both images.
        spans: one span per call.
    """

    flow: Array
    counts: tuple[tuple[int, ...], ...]
    executed: tuple[tuple[int, ...], ...]
    similarity: float
    folded_share: float
    seconds: dict[str, float]
    spans: list[Span]


class Runner(Protocol):
    """An open contender; `solve` drives it.

    Attributes:
        facts: backend, library, device, fields, precision, threads, in plain types.
        recorder: receives a span of every call.
    """

    facts: dict[str, Any]
    recorder: Recorder

    def running(self) -> contextlib.AbstractContextManager:
        """Hold the requested threads and the device during a run; all methods below are called inside."""

    def upload(self, image: Array) -> Any:
        """Copy a host image (I, J, K), float32 in [0, 1], to the memory in which it is processed."""

    def fixed_side(self, fixed: Any, similarity: str) -> Any:
        """Prepare an uploaded fixed image for any number of moving ones."""

    def pair(self, side: Any, moving: Any) -> tuple[iterstop.Pair, Any]:
        """Return a pair with an uploaded moving image, and the similarity before any flow where it is known."""

    def finish(self, flow: Any) -> tuple[Array, float]:
        """Finish the last pair: warp its image; return the flow on the host (3, I, J, K) and its folded share."""

    def gpu_memory(self) -> dict[str, int] | None:
        """Return GPU bytes: ``peak`` held by arrays so far, ``used`` now by all programs; None if not on a GPU."""


class Contender(Protocol):
    """A contender as named by the user: it is sent to the process it runs in and opened there.

    Attributes:
        name: name in options and tables.
        words: description for the sentence "the reference is ...".
    """

    @property
    def name(self) -> str: ...

    @property
    def words(self) -> str: ...

    def open(self, progress: Progress = silent) -> Runner:
        """Open it; InputError if it cannot run here. `progress` receives a line before slow steps, now and later."""


@dataclass(frozen=True)
class Others:
    """Contenders besides the engines.

    Attributes:
        rivals: contenders timed as well.
        references: candidates for the reference implementation; the first that can be opened is used.
    """

    rivals: Sequence[Contender] = ()
    references: Sequence[Contender] = ()


def solve(runner: Runner, task: RunSettings, moving: Array, fixed: Array | None = None, side: Any = None) -> RunResult:
    """Register `moving` to `fixed`, or to a fixed side made before; both (I, J, K), float32 in [0, 1]."""
    recorder, mark = runner.recorder, runner.recorder.clock.mark
    recorder.begin(moving.shape)
    with runner.running():
        moving, fixed = runner.upload(moving), None if fixed is None else runner.upload(fixed)
        start = mark()
        side = runner.fixed_side(fixed, task.similarity) if side is None else side
        ready = mark()
        pair, before = runner.pair(side, moving)
        found = iterstop.run(pair, task.schedule, start=before)
        end = mark()
        with recorder.span("finish"):
            flow, folded_share = runner.finish(found.flow)
        done = mark()
        parts = {"fixed side": (start, ready), "loop": (start, end), "finish": (end, done)}
        seconds = {name: recorder.clock.seconds(*marks) for name, marks in parts.items()}
        spans = recorder.spans()
    return RunResult(
        flow,
        found.counts,
        tuple(tuple(len(trace.decisions) for trace in traces) for traces in found.passes),
        found.similarity,
        folded_share,
        seconds,
        spans,
    )


@dataclass(frozen=True)
class EngineContender:
    """An engine set on a backend of the runtime, with a precision."""

    engine_dir: Path
    backend: str = "auto"
    precision: str = "auto"
    threads: int | None = None

    @property
    def name(self) -> str:
        return f"{self.backend} {self.precision}"

    @property
    def words(self) -> str:
        return f"the same engine set on {self.name}"

    def open(self, progress: Progress = silent) -> "EngineRunner":
        return EngineRunner(open_engines(self.engine_dir, self.backend, self.threads, self.precision, progress))


class EngineRunner:
    """Open engines behind the methods that `register` uses, every call timed."""

    def __init__(self, engines: OpenEngines) -> None:
        self.plain = engines
        self._engines, self.recorder = timed(engines)
        facts = engines.as_dict()
        self.facts = {name: facts[name] for name in ENGINE_FACTS}

    def running(self) -> contextlib.AbstractContextManager:
        return self._engines.running()

    def upload(self, image: Array) -> Any:
        return self.plain.fields.to_device(image)

    def fixed_side(self, fixed: Any, similarity: str) -> Any:
        return self._engines.fixed_side(fixed, similarity)

    def pair(self, side: Any, moving: Any) -> tuple[iterstop.Pair, Any]:
        self._moving = moving
        pair = side.pair(moving)
        return pair, pair.score(FINEST, pair.zero(FINEST))

    def finish(self, flow: Any) -> tuple[Array, float]:
        fields = self._engines.fields
        fields.to_host(fields.warp(self._moving, flow))
        return fields.to_host(flow), fields.folded_share(flow)

    def close(self) -> None:
        self.plain.__exit__()

    def gpu_memory(self) -> dict[str, int] | None:
        device: Any = self.recorder.clock
        if not hasattr(device, "peak_bytes"):
            return None
        with self.running():
            free, total = device.driver.memory()
        return {"peak": device.peak_bytes, "used": total - free}

    def measured_peak(self) -> float | None:
        """Return GFLOP/s of a large matrix product in the engine library at this precision; None if not available."""
        measure = getattr(self.plain.networks, "measured_peak", None)
        return float(measure(self.facts["precision"], self.facts["threads"])) if measure else None
