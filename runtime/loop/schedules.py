"""Schedules, the stop rules of their levels as data, and schedules with fixed numbers of iterations."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..errors import InputError

LEVELS = (4, 3, 2, 1)
LARGEST_LIMIT = 100


@dataclass(frozen=True)
class LevelRule:
    """The stop rule of a level, as data.

    Attributes:
        limit: most iterations that the level runs.
        delta: smallest improvement of the similarity for the level to continue; None: no test, `limit` iterations run.
        keep_failing: whether the candidate that fails the test becomes the level's flow (released code) or is undone.
        first_untested: whether the first candidate is accepted without a test (released code, coarsest level).
        stability: largest change of the similarity, up or down, of a stable iteration. Improvements are tested only
            after the first stable iteration; every candidate up to that one is kept. None: tested from the first on.
    """

    limit: int
    delta: float | None = None
    keep_failing: bool = False
    first_untested: bool = False
    stability: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.limit <= LARGEST_LIMIT:
            raise InputError(f"--schedule, --max-iterations: got {self.limit}, expected 0 to {LARGEST_LIMIT}")
        if self.delta is not None and not 0 <= self.delta < math.inf:
            raise InputError(f"--delta: got {self.delta}, expected 0 or more (fixed iterations: --schedule a,b,c,d)")
        if self.stability is not None and not 0 <= self.stability < math.inf:
            raise InputError(f"--stability: got {self.stability}, expected 0 or more")


@dataclass(frozen=True)
class Schedule:
    """The stop rules of all levels, and the number of passes over the whole network.

    Attributes:
        name: as the user writes it ("iterstop", "tci", "1,2,2,2", "cascade:3").
        rules: level -> rule.
        passes: runs of all levels, each on the image warped so far, with the flows composed (1: the levels run once).
    """

    name: str
    rules: Mapping[int, LevelRule]
    passes: int = 1

    def __post_init__(self) -> None:
        if set(self.rules) != set(LEVELS):
            raise InputError(f"--schedule: got rules for levels {sorted(self.rules)}, expected {sorted(LEVELS)}")
        if not 1 <= self.passes <= LARGEST_LIMIT:
            raise InputError(f"--schedule cascade: got {self.passes} passes, expected 1 to {LARGEST_LIMIT}")

    def as_dict(self) -> dict[str, Any]:
        """Return the schedule as plain types, for reports."""
        return {
            "name": self.name,
            "passes": self.passes,
            "levels": {str(level): dict(vars(self.rules[level])) for level in LEVELS},
        }


def fixed_schedule(counts: tuple[int, ...]) -> Schedule:
    """Return the schedule of a fixed number of iterations (a, b, c, d) at levels 4 to 1; (1, 1, 1, 1) is RP-Net."""
    if len(counts) != len(LEVELS):
        raise InputError(f"--schedule: got {len(counts)} counts, expected {len(LEVELS)}, for levels 4,3,2,1")
    rules = {level: LevelRule(limit=count) for level, count in zip(LEVELS, counts, strict=True)}
    return Schedule(",".join(map(str, counts)), rules)


def cascade_schedule(passes: int) -> Schedule:
    """Return the schedule that runs RP-Net `passes` times, each time on the image warped so far."""
    return replace(fixed_schedule((1, 1, 1, 1)), name=f"cascade:{passes}", passes=passes)
