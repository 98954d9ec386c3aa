"""The verdict on a registration: whether its result can be used, should be looked at, or failed, and why."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ...backends.verdict_limits import ABOVE, MEANINGS, Score, VerdictLimits
from .figures import Figures

OK, LOOK, FAILED = "ok", "look", "failed"
LEAST_PART = 0.25  # of the largest part in a score, from which on a figure is named among the reasons


@dataclass(frozen=True)
class Verdict:
    """The verdict on a registration, drawn from its figures alone; a mirrored scan cannot be told from a sound one.

    Attributes:
        verdict: "ok", "look" or "failed".
        reasons: figures beyond their limits, in words, the worst first; empty if the verdict is "ok".
        figures: what it was drawn from.
        limits: by which.
    """

    verdict: str
    reasons: tuple[str, ...]
    figures: Figures
    limits: VerdictLimits

    def __str__(self) -> str:
        """Return the verdict and its reasons in one line."""
        return "; ".join((f"{self.verdict}: {self.reasons[0]}", *self.reasons[1:])) if self.reasons else self.verdict

    def as_dict(self) -> dict[str, Any]:
        """Return the facts for the report; figures that could not be computed are None."""
        values = self.figures.as_dict()
        figures = {name: value if math.isfinite(value) else None for name, value in values.items()}
        facts = {"verdict": self.verdict, "reasons": self.reasons, "figures": figures, **self.limits.as_dict()}
        if score := self.limits.score:
            parts = score.parts(values)
            facts["score"] = {**score.as_dict(), "value": score.bias + sum(parts.values()), "parts": parts}
        return facts


@dataclass(frozen=True, order=True)
class _Reason:
    """A reason for a verdict; the first in order is the worst.

    Attributes:
        spared: False for a reason to call a result failed, True for one to look at it.
        rank: the lower, the more it counts among those.
        figure, words: what is unusual, and how to say it.
    """

    spared: bool
    rank: float
    figure: str
    words: str


def judge(figures: Figures, limits: VerdictLimits) -> Verdict:
    """Return the verdict that follows from figures and a rule: the worst that the score or any single figure gives."""
    found = [*_beyond_limits(figures, limits), *_by_score(figures.as_dict(), limits.score)]
    if not math.isfinite(figures.correlation):
        found.append(_Reason(False, -math.inf, "", "the scans show nothing in common"))
    worst: dict[str, _Reason] = {}
    for reason in sorted(found):
        worst.setdefault(reason.figure, reason)  # each figure once
    reasons = list(worst.values())
    verdict = OK if not reasons else LOOK if reasons[0].spared else FAILED
    return Verdict(verdict, tuple(reason.words for reason in reasons), figures, limits)


def _beyond_limits(figures: Figures, limits: VerdictLimits) -> Iterator[_Reason]:
    """Yield a reason for each figure beyond its own limits."""
    for limit in limits.limits:
        value = getattr(figures, limit.figure)
        if beyond(value, limit.side, limit.look):
            spared = not beyond(value, limit.side, limit.failed)
            bound = "at most" if limit.side == ABOVE else "at least"
            words = f"{MEANINGS[limit.figure][1]}: {value:.3g}, expected {bound} {limit.look:.3g}"
            yield _Reason(spared, -limit.excess(value), limit.figure, words)


def _by_score(values: Mapping[str, float], score: Score | None) -> Iterator[_Reason]:
    """Yield a reason for each figure that makes up the score, if that is high enough."""
    if score is None:
        return
    parts = score.parts(values)
    total = score.bias + sum(parts.values())
    if total < score.look:
        return
    spared = total < score.failed
    largest = max(parts.values())
    if largest <= 0:
        yield _Reason(spared, 0.0, "score", "no single figure, but all of them together")
    for term in score.terms:
        if parts[term.figure] >= LEAST_PART * largest > 0:
            words = f"{MEANINGS[term.figure][1]}: {values[term.figure]:.3g}, usually {term.usual:.3g}"
            yield _Reason(spared, -parts[term.figure], term.figure, words)


def beyond(value: float, side: str, limit: float) -> bool:
    """Return whether a figure is beyond a limit; False for NaN."""
    return value > limit if side == ABOVE else value < limit
