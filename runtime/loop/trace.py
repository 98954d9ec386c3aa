"""Trace of the loop: every decision of every level, and the result."""

from dataclasses import dataclass
from typing import Any

Flow = Any
IMPROVEMENT, STABILITY = "improvement", "stability"


@dataclass(frozen=True)
class Decision:
    """One iteration and its outcome. Similarities are at image size; None where none was needed.

    Attributes:
        iteration: number within its level, from 1.
        before, after: similarity of the flow it started from and of its candidate.
        delta: the threshold of the test.
        passed: whether the level continues, unless it has reached its limit.
        kept: whether the candidate became the level's flow.
        test: "improvement" (at least delta), "stability" (a change of at most delta; the level continues either way,
            and later iterations are tested for improvement once one was stable), or None: there was no test.
    """

    iteration: int
    before: float | None
    after: float | None
    delta: float | None
    passed: bool
    kept: bool
    test: str | None = None

    @property
    def margin(self) -> float | None:
        """The margin of the test: improvement above delta, or change below it; negative if the test failed."""
        if self.before is None or self.after is None or self.delta is None:
            return None
        change = self.after - self.before
        return self.delta - abs(change) if self.test == STABILITY else change - self.delta

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "margin": self.margin}


@dataclass(frozen=True)
class LevelTrace:
    """The decisions of one level in order, and why it ended."""

    level: int
    decisions: tuple[Decision, ...]
    reason: str

    @property
    def iterations(self) -> int:
        """The number of iterations whose candidate was kept."""
        return sum(decision.kept for decision in self.decisions)

    def as_dict(self) -> dict[str, Any]:
        return {
            "level": self.level,
            "iterations": self.iterations,
            "run": len(self.decisions),
            "reason": self.reason,
            "decisions": [decision.as_dict() for decision in self.decisions],
        }


@dataclass(frozen=True)
class Iterations:
    """The loop's result: the flow at image size (opaque), every decision on the way, and the similarity reached."""

    flow: Flow
    passes: tuple[tuple[LevelTrace, ...], ...]
    similarity: float

    @property
    def counts(self) -> tuple[tuple[int, ...], ...]:
        """The kept iterations (a, b, c, d) of levels 4 to 1, one tuple per pass."""
        return tuple(tuple(trace.iterations for trace in traces) for traces in self.passes)
