"""The stages of what takes time: announced as they begin, timed as they end; durations in words."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field

Progress = Callable[[str], None]


def silent(stage: str) -> None:
    """A `Progress` that says nothing."""


@dataclass
class Stages:
    """Wall-clock seconds by stage; the stage's name is told when it begins."""

    progress: Progress = silent
    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def __call__(self, name: str, tell: bool = True):
        """A stage; with `tell` off its time counts, but nothing is said."""
        if tell:
            self.progress(name)
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def fastest(function: Callable[[], object], times: int) -> float:
    """Wall-clock seconds of the fastest of so many calls: what nothing else held up."""
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


class Countdown:
    """How many of so many things are left and, going by those that were made, for how long.

    Attributes:
        left: how many.
    """

    def __init__(self, things: int) -> None:
        self.left, self._made, self._start = things, 0, time.perf_counter()

    def step(self, things: int = 1, made: bool = True) -> None:
        """So many are done; what was not `made`, but found or given up, says nothing about the rest."""
        self.left -= things
        self._made += things if made else 0

    def rest(self) -> str | None:
        """Such as "12 min"; None where nothing is left, or nothing was made to go by."""
        if not self.left or not self._made:
            return None
        return duration((time.perf_counter() - self._start) / self._made * self.left)


def duration(seconds: float) -> str:
    """Such as "40 s", "12 min" or "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
