"""The verdict on a registration: whether its result can be used, should be looked at, or failed, and why."""

import math
from dataclasses import dataclass
from typing import Any

from ...backends.verdict_limits import ABOVE, MEANINGS, Limit, VerdictLimits
from .figures import Figures

OK, LOOK, FAILED = "ok", "look", "failed"


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
        figures = {name: value if math.isfinite(value) else None for name, value in self.figures.as_dict().items()}
        return {"verdict": self.verdict, "reasons": self.reasons, "figures": figures, **self.limits.as_dict()}


def judge(figures: Figures, limits: VerdictLimits) -> Verdict:
    """Return the verdict that follows from figures and limits: the worst that any single figure gives."""
    found = []
    for limit in limits.limits:
        value = getattr(figures, limit.figure)
        if beyond(value, limit.side, limit.look):
            failed = beyond(value, limit.side, limit.failed)
            found.append((not failed, -limit.excess(value), FAILED if failed else LOOK, _reason(value, limit)))
    if not math.isfinite(figures.correlation):
        found.append((False, -math.inf, FAILED, "the scans show nothing in common"))
    found.sort()
    verdict = found[0][2] if found else OK
    return Verdict(verdict, tuple(reason for *_, reason in found), figures, limits)


def beyond(value: float, side: str, limit: float) -> bool:
    """Return whether a figure is beyond a limit; False for NaN."""
    return value > limit if side == ABOVE else value < limit


def _reason(value: float, limit: Limit) -> str:
    bound = "at most" if limit.side == ABOVE else "at least"
    return f"{MEANINGS[limit.figure][1]}: {value:.3g}, expected {bound} {limit.look:.3g}"
