"""Progress of long work: stages announced as they begin and timed as they end; durations in words."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

Progress = Callable[[str], None]


def silent(stage: str) -> None:
    """Ignore the stage: a `Progress` that reports nothing."""


@dataclass
class Stages:
    """Wall-clock seconds by stage; a stage's name is reported when it begins."""

    progress: Progress = silent
    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def __call__(self, name: str, announce: bool = True) -> Iterator[None]:
        """Time a stage; with `announce` off it is timed but not reported."""
        if announce:
            self.progress(name)
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def fastest(function: Callable[[], object], times: int) -> float:
    """Return the wall-clock seconds of the fastest of so many calls, the one least disturbed by other programs."""
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


class Countdown:
    """The number of things left to do and an estimate of the time left, from those made so far.

    Attributes:
        left: number of things left to do.
    """

    def __init__(self, things: int) -> None:
        self.left, self._made, self._start = things, 0, time.perf_counter()

    def step(self, things: int = 1, made: bool = True) -> None:
        """Count so many things as done; those not `made` (found or given up) do not enter the estimate."""
        self.left -= things
        self._made += things if made else 0

    def rest(self) -> str | None:
        """Return the estimated time left, such as "12 min"; None if nothing is left or nothing was made yet."""
        if not self.left or not self._made:
            return None
        return duration((time.perf_counter() - self._start) / self._made * self.left)


def duration(seconds: float) -> str:
    """Return a duration in words, such as "40 s", "12 min" or "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
