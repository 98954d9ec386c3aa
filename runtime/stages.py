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


def duration(seconds: float) -> str:
    """Such as "40 s", "12 min" or "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
