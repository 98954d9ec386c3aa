"""Quantities that change in the course of a run: learning rate, loss weights, iterations and image size."""

import math
from dataclasses import dataclass

import numpy as np

from train.options import FitOptions

LAST_RATE = 0.03  # share of the learning rate that a cosine ends at
_ITERATIONS = 0x17E7  # part of the seed: separates these random numbers from those of the pairs


@dataclass(frozen=True)
class StepPlan:
    """The plan of one step.

    Attributes:
        rate: learning rate.
        coarse: weight of the coarse levels' loss.
        counts: iterations at levels 4, 3, 2, 1.
        half_size: whether images are averaged down to half their size.
    """

    rate: float
    coarse: float
    counts: tuple[int, int, int, int]
    half_size: bool


@dataclass(frozen=True)
class Timetable:
    """The course of a run as functions of its options, the finished steps and the seconds they took.

    Attributes:
        options: options of the run.
        finish_from: step after which a run with `finish` begins to end; the only state.
    """

    options: FitOptions
    finish_from: int = 0

    @property
    def last_step(self) -> int:
        """The number of steps after which the run ends, unless the clock ends it before."""
        return self.finish_from + self.options.finish if self.options.finish else self.options.steps

    def finished(self, step: int, seconds: float) -> bool:
        return step >= self.last_step if self.options.finish else self.done(step, seconds) >= 1

    def done(self, step: int, seconds: float) -> float:
        """Return the finished share of `steps` or of `minutes`, whichever is larger, at most 1."""
        minutes = self.options.minutes
        by_clock = 0.0 if minutes is None else seconds / (60 * minutes)
        return min(max(step / self.options.steps, by_clock), 1.0)

    def plan(self, step: int, seconds: float) -> StepPlan:
        """Return the plan of the step after `step` finished ones."""
        done, options = self.done(step, seconds), self.options
        return StepPlan(
            self._rate(step, done), options.coarse * (1 - done), self._counts(step), done < options.half_size
        )

    def seconds_left(self, step: int, seconds: float, steps: int, took: float) -> float:
        """Estimate the remaining seconds from the latest `steps`, which `took` that many seconds."""
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
        a, b, c, d = (int(rng.integers(1, most + 1)) for most in self.options.iterations)
        return a, b, c, d


def _cosine(done: float) -> float:
    """Return a factor that falls from 1 to LAST_RATE by a cosine while `done` rises from 0 to 1."""
    return LAST_RATE + (1 - LAST_RATE) * (1 + math.cos(math.pi * done)) / 2
