"""What changes in the course of a run: learning rate, weights of losses, iterations, the size of images."""

import math
from dataclasses import dataclass

import numpy as np

from train.options import FitOptions

LAST_RATE = 0.03
_ITERATIONS = 0x17E7  # keeps these draws apart from those that make pairs


@dataclass(frozen=True)
class Plan:
    """One step's. coarse: weight of the coarse levels' loss; counts: iterations at levels 4, 3, 2, 1.

    half_size: whether it sees images at half their size.
    """

    rate: float
    coarse: float
    counts: tuple[int, int, int, int]
    half_size: bool


@dataclass(frozen=True)
class Timetable:
    """Functions of the steps that are done and the seconds they took, and of the options.

    finish_from: step from which on a run with `finish` comes to its end, all that is remembered.
    """

    options: FitOptions
    finish_from: int = 0

    @property
    def last_step(self) -> int:
        """After which the run is over, unless the clock ends it before."""
        return self.finish_from + self.options.finish if self.options.finish else self.options.steps

    def finished(self, step: int, seconds: float) -> bool:
        return step >= self.last_step if self.options.finish else self.done(step, seconds) >= 1

    def done(self, step: int, seconds: float) -> float:
        """Share of `steps` that is over, or of `minutes`, whichever is further."""
        minutes = self.options.minutes
        by_clock = 0.0 if minutes is None else seconds / (60 * minutes)
        return min(max(step / self.options.steps, by_clock), 1.0)

    def plan(self, step: int, seconds: float) -> Plan:
        """Of the step that follows `step` done ones."""
        done, options = self.done(step, seconds), self.options
        return Plan(self._rate(step, done), options.coarse * (1 - done), self._counts(step), done < options.half_size)

    def seconds_left(self, step: int, seconds: float, steps: int, took: float) -> float:
        """Estimated from the latest `steps`, which `took` so many seconds."""
        left = (self.last_step - step) * took / max(steps, 1)
        return left if self.options.minutes is None else min(left, max(60 * self.options.minutes - seconds, 0.0))

    def _rate(self, step: int, done: float) -> float:
        if not self.options.finish:
            return self._scheduled(step, done)
        reached = self._scheduled(self.finish_from, self.done(self.finish_from, 0.0))
        return reached * _cosine((step - self.finish_from) / self.options.finish)

    def _scheduled(self, step: int, done: float) -> float:
        options = self.options
        rate = options.learning_rate * min(1.0, (step + 1) / (options.warmup + 1))
        return rate if options.schedule == "constant" else rate * _cosine(done)

    def _counts(self, step: int) -> tuple[int, int, int, int]:
        rng = np.random.default_rng([self.options.seed, step, _ITERATIONS])
        return tuple(int(rng.integers(1, most + 1)) for most in self.options.iterations)


def _cosine(done: float) -> float:
    """From 1 down to LAST_RATE."""
    return LAST_RATE + (1 - LAST_RATE) * (1 + math.cos(math.pi * done)) / 2
