"""The coarse-to-fine loop: RP-Net, IterStop (Algorithm 1 of IIRP-Net, CVPR 2024), other stop rules, counts, cascades.

The loop is written once, here; when a level stops is data (`runtime.loop.schedules`). It sees a `Pair` (two images
ready on some engine and device) through a few verbs and passes its flows on as opaque objects, so it is the same for
every engine and every device.
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol, SupportsFloat

from ..errors import InputError
from .schedules import LEVELS, LevelRule, Schedule

Flow = Any
IMPROVEMENT, STABILITY = "improvement", "stability"


class Pair(Protocol):
    """A moving and a fixed image, encoded, on one engine and device. Flows are opaque and live on a level's grid."""

    def zero(self, level: int) -> Flow:
        """The flow that moves nothing, on the grid of `level`."""

    def step(self, level: int, flow: Flow) -> Flow:
        """Candidate flow: compose(flow, residual), the residual estimated from the moving features warped by `flow`."""

    def score(self, level: int, flow: Flow) -> SupportsFloat:
        """Similarity at image size of the fixed and the warped moving image; larger is more alike.

        What is given may be a number on its way from a device: ``float()`` waits for it, and is called when it decides.
        """

    def upsample(self, flow: Flow) -> Flow:
        """The same displacement on the next finer level's grid."""

    def compose(self, flow: Flow, residual: Flow) -> Flow:
        """``flow(x + residual(x)) + residual(x)`` on the image's own grid (level 1)."""

    def warped(self, flow: Flow) -> "Pair":
        """A pair whose moving image is this pair's, warped by `flow` (level 1)."""


@dataclass(frozen=True)
class Decision:
    """One iteration and what became of it. Similarities are at image size; None where none was needed.

    Attributes:
        iteration: from 1, of its level.
        before, after: similarity of the flow it started from and of its candidate.
        delta: the threshold of the test that was made.
        passed: whether the level goes on, but for its limit.
        kept: whether the candidate became the level's flow.
        test: "improvement" (at least delta), "stability" (a change of at most delta; the level goes on either way, to
            be tested for improvement if it was stable), or None: there was none.
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
        """By how much the test was passed: improvement beyond delta, or change short of it; negative: it failed."""
        if None in (self.before, self.after, self.delta):
            return None
        change = self.after - self.before
        return self.delta - abs(change) if self.test == STABILITY else change - self.delta

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "margin": self.margin}


@dataclass(frozen=True)
class LevelTrace:
    """What one level did: its decisions in order, and why it ended."""

    level: int
    decisions: tuple[Decision, ...]
    reason: str

    @property
    def iterations(self) -> int:
        """Iterations that count, that is whose candidate was kept."""
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
        """Kept iterations (a, b, c, d) of levels 4 to 1, one tuple a pass."""
        return tuple(tuple(trace.iterations for trace in traces) for traces in self.passes)


def run(
    pair: Pair,
    schedule: Schedule,
    progress=lambda pass_, level, iteration: None,
    start: SupportsFloat | None = None,
) -> Iterations:
    """Register a pair by a schedule.

    Args:
        pair: the images behind their engine.
        schedule: which rule stops each level.
        progress: called before every iteration with (pass, level, iteration), each counted from 1 but the level.
        start: the similarity before any flow, where it is known already.

    Raises:
        InputError: the similarity of the result is not finite; no flow is returned then.
    """
    total, passes, similarity = None, [], None
    for number in range(1, schedule.passes + 1):
        current = pair if total is None else pair.warped(total)
        known = start if total is None else None
        flow, traces, similarity = _run_levels(current, schedule, lambda *at, n=number: progress(n, *at), known)
        total = flow if total is None else pair.compose(total, flow)
        passes.append(traces)
    if similarity is None or schedule.passes > 1:
        similarity = pair.score(LEVELS[-1], total)
    similarity = float(similarity)
    if not math.isfinite(similarity):
        raise InputError(
            f"similarity: got {similarity} after registration, expected a finite number; "
            "one of the images is constant where they overlap, or the engines do not fit these images"
        )
    return Iterations(total, tuple(passes), similarity)


def _run_levels(
    pair: Pair, schedule: Schedule, progress, similarity: SupportsFloat | None
) -> tuple[Flow, tuple[LevelTrace, ...], SupportsFloat | None]:
    """All levels once. The similarity known at the end of a level is the start of the next, not computed again."""
    flow, traces = pair.zero(LEVELS[0]), []
    for level in LEVELS:
        if level != LEVELS[0]:
            flow = pair.upsample(flow)
        rule = schedule.rules[level]
        if rule.delta is None:
            flow, similarity, trace = _run_count(pair, level, rule, flow, similarity, progress)
        else:
            flow, similarity, trace = _run_until(pair, level, rule, flow, similarity, progress)
        traces.append(trace)
    return flow, tuple(traces), similarity


def _run_count(pair: Pair, level: int, rule: LevelRule, flow: Flow, similarity, progress):
    decisions = []
    for iteration in range(1, rule.limit + 1):
        progress(level, iteration)
        flow, similarity = pair.step(level, flow), None
        decisions.append(Decision(iteration, None, None, None, passed=True, kept=True))
    return flow, similarity, LevelTrace(level, tuple(decisions), "fixed count")


def _run_until(pair: Pair, level: int, rule: LevelRule, flow: Flow, similarity, progress):
    if similarity is None and not rule.first_untested:
        similarity = pair.score(level, flow)
    decisions, reason, ahead, stable = [], "limit", None, rule.stability is None
    for iteration in range(1, rule.limit + 1):
        progress(level, iteration)
        candidate = pair.step(level, flow) if ahead is None else ahead
        score = pair.score(level, candidate)
        untested = rule.first_untested and iteration == 1
        # After a candidate that is kept in any case comes another iteration: it is sent while the score travels.
        goes_on = (untested or not stable) and iteration < rule.limit
        ahead = pair.step(level, candidate) if goes_on else None
        after, before = float(score), None if untested else float(similarity)
        finite = math.isfinite(after)
        # Anything finite is better than a start whose similarity is not.
        passed = finite and (untested or not stable or not math.isfinite(before) or after - before >= rule.delta)
        kept = passed or (finite and rule.keep_failing)
        test, threshold = (IMPROVEMENT, rule.delta) if stable else (STABILITY, rule.stability)
        decisions.append(Decision(iteration, before, after, threshold, passed, kept, None if untested else test))
        stable = stable or (before is not None and abs(after - before) <= rule.stability)
        if kept:
            flow, similarity = candidate, after
        if not passed:
            reason = "improvement below delta" if finite else "similarity not finite"
            break
    return flow, similarity, LevelTrace(level, tuple(decisions), reason)
