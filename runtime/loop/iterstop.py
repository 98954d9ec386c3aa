"""The coarse-to-fine loop: RP-Net, IterStop (Algorithm 1 of IIRP-Net, CVPR 2024), other rules, fixed counts, cascades.

The loop is written only once, here; the stop rules of its levels are data (`runtime.loop.stop_rules`). It handles a
`Pair` (two images encoded on some engine and device) through a few methods and treats flows as opaque objects, so it is
the same for every engine and device.
"""

import math
from collections.abc import Callable
from typing import Protocol, SupportsFloat

from ..errors import InputError
from .schedules import LEVELS, LevelRule, Schedule
from .trace import IMPROVEMENT, STABILITY, Decision, Flow, Iterations, LevelTrace


class Pair(Protocol):
    """A moving and a fixed image, encoded, on one engine and device. Flows are opaque and live on a level's grid."""

    def zero(self, level: int) -> Flow:
        """Return the zero flow on the grid of `level`."""

    def step(self, level: int, flow: Flow) -> Flow:
        """Return a candidate: compose(flow, residual), the residual estimated from moving features warped by `flow`."""

    def score(self, level: int, flow: Flow) -> SupportsFloat:
        """Return the similarity at image size of the fixed and the warped moving image; larger is more similar.

        The result may be a number still on its way from a device: ``float()`` waits for it, and the loop calls that
        only when a decision depends on it.
        """

    def upsample(self, flow: Flow) -> Flow:
        """Return the same displacement on the next finer level's grid."""

    def compose(self, flow: Flow, residual: Flow) -> Flow:
        """Return ``flow(x + residual(x)) + residual(x)`` on the image's own grid (level 1)."""

    def warped(self, flow: Flow) -> "Pair":
        """Return a pair whose moving image is this pair's, warped by `flow` (level 1)."""


LevelProgress = Callable[[int, int], object]  # (level, iteration)
LevelEnd = tuple[Flow, SupportsFloat | None, LevelTrace]  # of a level: its flow, that flow's similarity if known


def run(
    pair: Pair,
    schedule: Schedule,
    progress: Callable[[int, int, int], object] = lambda pass_, level, iteration: None,
    start: SupportsFloat | None = None,
) -> Iterations:
    """Register a pair according to a schedule.

    Args:
        pair: the images behind their engine.
        schedule: the stop rule of each level.
        progress: called before every iteration with (pass, level, iteration); pass and iteration count from 1.
        start: the similarity before any flow, if it is already known.

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
            f"--fixed, --moving: their similarity is {similarity} after registration, expected a finite number; "
            "one of the images is constant where they overlap, or the engines do not fit these images"
        )
    return Iterations(total, tuple(passes), similarity)


def _run_levels(
    pair: Pair, schedule: Schedule, progress: LevelProgress, similarity: SupportsFloat | None
) -> tuple[Flow, tuple[LevelTrace, ...], SupportsFloat | None]:
    """Run all levels once. The similarity at the end of a level is reused as the start of the next."""
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


def _run_count(
    pair: Pair, level: int, rule: LevelRule, flow: Flow, similarity: SupportsFloat | None, progress: LevelProgress
) -> LevelEnd:
    decisions = []
    for iteration in range(1, rule.limit + 1):
        progress(level, iteration)
        flow, similarity = pair.step(level, flow), None
        decisions.append(Decision(iteration, None, None, None, passed=True, kept=True))
    return flow, similarity, LevelTrace(level, tuple(decisions), "fixed count")


def _run_until(
    pair: Pair, level: int, rule: LevelRule, flow: Flow, similarity: SupportsFloat | None, progress: LevelProgress
) -> LevelEnd:
    assert rule.delta is not None
    if similarity is None and not rule.first_untested:
        similarity = pair.score(level, flow)
    decisions, reason, ahead, stable = [], "limit", None, rule.stability is None
    for iteration in range(1, rule.limit + 1):
        progress(level, iteration)
        candidate = pair.step(level, flow) if ahead is None else ahead
        score = pair.score(level, candidate)
        untested = rule.first_untested and iteration == 1
        # A candidate that is kept in any case is followed by another iteration: start it while the score travels.
        goes_on = (untested or not stable) and iteration < rule.limit
        ahead = pair.step(level, candidate) if goes_on else None
        after, before = float(score), None
        if not untested:
            assert similarity is not None  # known from the start, or from the candidate kept before
            before = float(similarity)
        finite = math.isfinite(after)
        # Any finite similarity is better than a starting one that is not finite.
        passed = finite and (before is None or not stable or not math.isfinite(before) or after - before >= rule.delta)
        kept = passed or (finite and rule.keep_failing)
        test, threshold = (IMPROVEMENT, rule.delta) if stable else (STABILITY, rule.stability)
        decisions.append(Decision(iteration, before, after, threshold, passed, kept, None if untested else test))
        stable = stable or rule.stability is None or (before is not None and abs(after - before) <= rule.stability)
        if kept:
            flow, similarity = candidate, after
        if not passed:
            reason = "improvement below delta" if finite else "similarity not finite"
            break
    return flow, similarity, LevelTrace(level, tuple(decisions), reason)
