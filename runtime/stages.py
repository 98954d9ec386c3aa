"""The stages of a registration: announced as they begin, timed as they end."""

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
