"""The coarse-to-fine loop: RP-Net, IterStop (Algorithm 1 of IIRP-Net, CVPR 2024), fixed counts and cascades.

The loop is written once, here. It sees a `Pair` (two images ready on some engine and device) through a few verbs and
passes its flows on as opaque objects, so it is the same for every engine and every device.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, SupportsFloat

from runtime.geometry.errors import InputError

Flow = Any
LEVELS = (4, 3, 2, 1)
ON_STOP = ("keep", "revert")
DEFAULT_LIMIT = 10
LARGEST_LIMIT = 100
# 0.005 is the paper's delta for NCC, and local NCC is on the same scale. With 0.0005 the mean squared error of images
# in [0, 1] stops about where NCC does (docs/measurements).
DEFAULT_DELTA = {"ncc": 0.005, "lncc": 0.005, "mse": 0.0005}


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
class LevelRule:
    """When a level stops: the stop rule as data.

    Attributes:
        limit: most iterations the level runs.
        delta: smallest improvement of the similarity with which the level goes on; None: no test, `limit` are run.
        keep_failing: whether the candidate that fails the test becomes the level's flow (released code) or is undone.
        first_untested: whether the first candidate is accepted without a test (released code, coarsest level).
    """

    limit: int
    delta: float | None = None
    keep_failing: bool = False
    first_untested: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.limit <= LARGEST_LIMIT:
            raise InputError(f"--schedule, --max-iterations: got {self.limit}, expected 0 to {LARGEST_LIMIT}")
        if self.delta is not None and not 0 <= self.delta < math.inf:
            raise InputError(f"--delta: got {self.delta}, expected 0 or more (fixed iterations: --schedule a,b,c,d)")


@dataclass(frozen=True)
class Schedule:
    """How often each level runs: one rule per level, and how often the whole network is run from outside.

    Attributes:
        name: as the user writes it ("iterstop", "1,2,2,2", "cascade:3").
        rules: level -> rule.
        passes: runs of all levels, each on the image warped so far, flows composed (1: the levels run once).
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
        return {
            "name": self.name,
            "passes": self.passes,
            "levels": {str(level): dict(vars(self.rules[level])) for level in LEVELS},
        }


@dataclass(frozen=True)
class Decision:
    """One iteration and what became of it. Similarities are at image size; None where none was needed."""

    iteration: int
    before: float | None
    after: float | None
    delta: float | None
    passed: bool
    kept: bool

    @property
    def margin(self) -> float | None:
        """By how much the improvement exceeds delta; negative where the test failed."""
        if None in (self.before, self.after, self.delta):
            return None
        return self.after - self.before - self.delta

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


def iterstop_schedule(
    similarity: str = "ncc",
    delta: float | tuple[float, ...] | None = None,
    limit: int | tuple[int, ...] = DEFAULT_LIMIT,
    on_stop: str = "keep",
) -> Schedule:
    """IterStop. Values given as one number hold for every level, as four for levels 4 to 1.

    ``keep`` is the released code: at levels 3, 2, 1 a failing candidate is kept; at level 4 the first iteration is
    always kept and a later failing one undone. ``revert`` is Algorithm 1 as printed: a failing candidate is undone.

    Raises:
        InputError: an unknown `on_stop` or `similarity`, a limit below 1, or neither one nor four values.
    """
    if on_stop not in ON_STOP:
        raise InputError(f"--on-stop: got {on_stop!r}, expected one of {', '.join(ON_STOP)}")
    if similarity not in DEFAULT_DELTA:
        raise InputError(f"--similarity: got {similarity!r}, expected one of {', '.join(DEFAULT_DELTA)}")
    deltas = _per_level("--delta", DEFAULT_DELTA[similarity] if delta is None else delta)
    limits = _per_level("--max-iterations", limit)
    if min(limits) < 1:
        raise InputError(f"--max-iterations: got {min(limits)}, expected at least 1")
    keep = on_stop == "keep"
    rules = {
        level: LevelRule(
            limit=limits[n],
            delta=deltas[n],
            keep_failing=keep and level != LEVELS[0],
            first_untested=keep and level == LEVELS[0],
        )
        for n, level in enumerate(LEVELS)
    }
    return Schedule("iterstop", rules)


def fixed_schedule(counts: tuple[int, ...]) -> Schedule:
    """A fixed number of iterations (a, b, c, d) at levels 4 to 1; (1, 1, 1, 1) is RP-Net."""
    if len(counts) != len(LEVELS):
        raise InputError(f"--schedule: got {len(counts)} counts, expected {len(LEVELS)}, for levels 4,3,2,1")
    rules = {level: LevelRule(limit=count) for level, count in zip(LEVELS, counts, strict=True)}
    return Schedule(",".join(map(str, counts)), rules)


def cascade_schedule(passes: int) -> Schedule:
    """RP-Net run `passes` times from outside, each time on the image warped so far."""
    return replace(fixed_schedule((1, 1, 1, 1)), name=f"cascade:{passes}", passes=passes)


def parse_schedule(text: str, **iterstop_options: Any) -> Schedule:
    """``iterstop`` (with `iterstop_options`, see `iterstop_schedule`), ``a,b,c,d`` or ``cascade:t``."""
    name = text.strip().lower()
    try:
        if name == "iterstop":
            return iterstop_schedule(**iterstop_options)
        if name.startswith("cascade:"):
            return cascade_schedule(int(name.removeprefix("cascade:")))
        return fixed_schedule(tuple(int(part) for part in name.split(",")))
    except InputError:
        raise
    except ValueError:
        raise InputError(
            f"--schedule: got {text!r}, expected iterstop, four counts such as 1,2,2,2, or cascade:3"
        ) from None


def _per_level(name: str, value: Any) -> tuple:
    values = tuple(value) if isinstance(value, tuple | list) else (value,)
    if len(values) == 1:
        values *= len(LEVELS)
    if len(values) != len(LEVELS):
        raise InputError(f"{name}: got {len(values)} values, expected one or four (levels 4,3,2,1)")
    return values


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
    decisions, reason, ahead = [], "limit", None
    for iteration in range(1, rule.limit + 1):
        progress(level, iteration)
        candidate = pair.step(level, flow) if ahead is None else ahead
        score = pair.score(level, candidate)
        untested = rule.first_untested and iteration == 1
        # After a candidate that is kept untested comes another iteration: it is sent while the score travels.
        ahead = pair.step(level, candidate) if untested and rule.limit > 1 else None
        after, before = float(score), None if untested else float(similarity)
        finite = math.isfinite(after)
        # Anything finite is better than a start whose similarity is not.
        passed = finite and (untested or not math.isfinite(before) or after - before >= rule.delta)
        kept = passed or (finite and rule.keep_failing)
        decisions.append(Decision(iteration, before, after, rule.delta, passed, kept))
        if kept:
            flow, similarity = candidate, after
        if not passed:
            reason = "improvement below delta" if finite else "similarity not finite"
            break
    return flow, similarity, LevelTrace(level, tuple(decisions), reason)
