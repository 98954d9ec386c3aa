"""Timing of a run by stage: wrappers of the two protocols below the loop that record a span for every call.

Spans carry a stage and a level, which follows from the shape of the arrays. The timed code is unchanged.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

from ....backends.engines import OpenEngines
from ....types import Shape

Array = Any


class Clock(Protocol):
    """A clock where the work is done: on the host, or by events in a device's stream."""

    def mark(self) -> Any:
        """Mark this moment in the order of the work; must not wait for the device."""

    def seconds(self, start: Any, stop: Any) -> float:
        """Return the seconds between two marks; called only after the run, and may then wait for the device."""


class HostClock:
    """A wall clock of the host."""

    def mark(self) -> float:
        return time.perf_counter()

    def seconds(self, start: float, stop: float) -> float:
        return stop - start


def clock_of(fields: Any) -> Clock:
    """Return the clock of the device that field operations run on: their own if they have one, else the host's."""
    return fields.clock() if hasattr(fields, "clock") else HostClock()


class Span(NamedTuple):
    """One call: its stage, its level (None: no single level), and its seconds."""

    stage: str
    level: int | None
    seconds: float


class Recorder:
    """Recorder of the spans of one run at a time."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._marks: list[tuple[str, int | None, Any, Any]] = []
        self._inside = False
        self._size = 0

    def begin(self, image_shape: Shape) -> None:
        """Discard the last run; `image_shape` is the shape of level 1 from now on."""
        self._marks, self._inside, self._size = [], False, image_shape[0]

    def level(self, size: int) -> int:
        """Return the level of an array whose first axis has `size` voxels."""
        # Level n has 1 / 2^(n - 1) of the image's size, and the bit length of 2^(n - 1) is n.
        return (self._size // size).bit_length()

    @contextlib.contextmanager
    def span(self, stage: str, level: int | None = None) -> Iterator[None]:
        """Time what happens inside; a span within a span is part of the outer one and is not recorded itself."""
        if self._inside:
            yield
            return
        self._inside, start = True, self.clock.mark()
        try:
            yield
        finally:
            self._marks.append((stage, level, start, self.clock.mark()))
            self._inside = False

    def call(self, stage: str, level: int | None, function: Callable, *arguments: Any) -> Any:
        with self.span(stage, level):
            return function(*arguments)

    def spans(self) -> list[Span]:
        """Return the run's spans in the order they ended."""
        return [Span(stage, level, self.clock.seconds(*marks)) for stage, level, *marks in self._marks]


class TimedNetworks:
    """A wrapper of `runtime.backends.pair.Networks` that times its calls; same results."""

    def __init__(self, networks: Any, recorder: Recorder) -> None:
        self._networks, self._recorder = networks, recorder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._networks, name)

    def features(self, image: Array) -> dict[int, Array]:
        return self._recorder.call("encode", None, self._networks.features, image)

    def estimator_input(self, level: int, shape: Shape) -> Array:
        return self._recorder.call("fill fixed half", level, self._networks.estimator_input, level, shape)

    def residual(self, level: int, buffer: Array) -> Array:
        return self._recorder.call("estimator", level, self._networks.residual, level, buffer)

    def rest(self) -> None:
        self._networks.rest()

    def close(self) -> None:
        self._networks.close()


class TimedFields:
    """A wrapper of `runtime.backends.pair.Fields` that times its calls; same results."""

    def __init__(self, fields: Any, recorder: Recorder) -> None:
        self._fields, self._recorder = fields, recorder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._fields, name)

    def _call(self, stage: str, size: int, operation: str, *arguments: Any) -> Any:
        return self._recorder.call(stage, self._recorder.level(size), getattr(self._fields, operation), *arguments)

    def threads(self) -> Any:
        return self._fields.threads()

    def zero(self, shape: Shape) -> Array:
        return self._call("zero", shape[0], "zero", shape)

    def fill_fixed(self, buffer: Array, fixed_features: Array) -> None:
        return self._call("fill fixed half", fixed_features.shape[0], "fill_fixed", buffer, fixed_features)

    def warp_into(self, buffer: Array, moving_features: Array, flow: Array) -> Array:
        return self._call("warp", flow.shape[0], "warp_into", buffer, moving_features, flow)

    def warp(self, image: Array, flow: Array) -> Array:
        return self._call("warp image", flow.shape[0], "warp", image, flow)

    def compose(self, flow: Array, residual: Array) -> Array:
        return self._call("compose", residual.shape[0], "compose", flow, residual)

    def upsample(self, flow: Array, scale: int = 2) -> Array:
        return self._call("upsample", scale * flow.shape[0], "upsample", flow, scale)

    def folded_share(self, flow: Array) -> float:
        return self._recorder.call("folds", None, self._fields.folded_share, flow)

    def extremes(self, image: Array) -> tuple[float, float]:
        return self._recorder.call("extremes", None, self._fields.extremes, image)

    def scorer(self, fixed: Array, similarity: str, count: float | None = None) -> "TimedScorer":
        counted = () if count is None else (count,)
        scorer = self._recorder.call("score set-up", None, self._fields.scorer, fixed, similarity, *counted)
        return TimedScorer(scorer, self._recorder)

    def without(self, image: Array, hole: Array) -> Array:
        return self._call("score set-up", image.shape[0], "without", image, hole)

    def near(self, image: Array) -> Array:
        return self._call("score set-up", image.shape[0], "near", image)

    def total(self, image: Array) -> float:
        return self._recorder.call("score set-up", None, self._fields.total, image)

    def halve(self, image: Array) -> Array:
        return self._call("smooth set-up", image.shape[0] // 2, "halve", image)

    def smoother(self, fixed: Array, sigma: float) -> "TimedSmoother":
        return TimedSmoother(self._call("smooth set-up", fixed.shape[0], "smoother", fixed, sigma), self._recorder)

    def to_device(self, array: Array) -> Array:
        return self._recorder.call("to device", None, self._fields.to_device, array)

    def to_host(self, flow: Array) -> Array:
        return self._recorder.call("to host", None, self._fields.to_host, flow)

    def close(self) -> None:
        self._fields.close()


class TimedScorer:
    """A wrapper that times a scorer; the span ends with the work, although the call may return a pending number."""

    def __init__(self, scorer: Any, recorder: Recorder) -> None:
        self._scorer, self._recorder = scorer, recorder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scorer, name)

    def __call__(self, moving: Array, flow: Array) -> Any:
        return self._recorder.call("score", self._recorder.level(flow.shape[0]), self._scorer, moving, flow)


class TimedSmoother:
    """A wrapper that times a smoother."""

    def __init__(self, smoother: Any, recorder: Recorder) -> None:
        self._smoother, self._recorder = smoother, recorder

    def __call__(self, residual: Array) -> Array:
        return self._recorder.call("smooth", self._recorder.level(residual.shape[0]), self._smoother, residual)


def timed(engines: OpenEngines) -> tuple[OpenEngines, Recorder]:
    """Wrap networks and fields of engines; return the engines and the recorder of their calls."""
    recorder = Recorder(clock_of(engines.fields))
    networks, fields = TimedNetworks(engines.networks, recorder), TimedFields(engines.fields, recorder)
    return dataclasses.replace(engines, networks=networks, fields=fields), recorder
