"""Stop rules: IterStop, TCI and thrift, their default thresholds, and the parsing of schedules."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from .schedules import LEVELS, LevelRule, Schedule, cascade_schedule, fixed_schedule

ON_STOP = ("keep", "revert")
DEFAULT_LIMIT = 10
# Default thresholds of a rule, by similarity. 0.005 is the paper's delta for NCC, and local NCC is on the same scale.
# With 0.0005 the mean squared error of images in [0, 1] stops about where NCC does (docs/measurements). The others are
# ours (docs/decisions/0012-stop-rules.md).
DEFAULT_DELTA = {"ncc": 0.005, "lncc": 0.005, "mse": 0.0005}
DEFAULT_STABILITY = {"ncc": 0.02, "lncc": 0.02, "mse": 0.002}
DEFAULT_WORTH = {"ncc": 0.01, "lncc": 0.03, "mse": 0.001}
# Multiplications of one iteration, as shares of one at level 1, for the paper's estimators with two residual blocks:
# 4656, 4656, 3632 and 920 times 27 per voxel at levels 4 to 1, which have 512, 64, 8 and 1 times fewer voxels. The same
# shares serve other numbers of blocks: with none to four, level 3 has 0.07 to 0.10, and the others change less.
WORK = {4: 0.01, 3: 0.08, 2: 0.5, 1: 1.0}


def iterstop_schedule(
    similarity: str = "ncc",
    delta: float | tuple[float, ...] | None = None,
    limit: int | tuple[int, ...] = DEFAULT_LIMIT,
    on_stop: str = "keep",
) -> Schedule:
    """Return the schedule of IterStop. One value holds for every level; four are for levels 4 to 1.

    ``keep`` follows the released code: at levels 3, 2, 1 a failing candidate is kept; at level 4 the first iteration is
    always kept and a later failing one is undone. ``revert`` is Algorithm 1 as printed: a failing candidate is undone.

    Raises:
        InputError: an unknown `on_stop` or `similarity`, a limit below 1, or neither one nor four values.
    """
    if on_stop not in ON_STOP:
        raise InputError(f"--on-stop: got {on_stop!r}, expected one of {', '.join(ON_STOP)}")
    deltas = _thresholds("--delta", delta, DEFAULT_DELTA, similarity)
    limits, keep = _limits(limit), on_stop == "keep"
    rules = {
        level: LevelRule(
            limit=limits[level],
            delta=deltas[level],
            keep_failing=keep and level != LEVELS[0],
            first_untested=keep and level == LEVELS[0],
        )
        for level in LEVELS
    }
    return Schedule("iterstop", rules)


def tci_schedule(
    similarity: str = "ncc",
    delta: float | tuple[float, ...] | None = None,
    limit: int | tuple[int, ...] = DEFAULT_LIMIT,
    stability: float | tuple[float, ...] | None = None,
) -> Schedule:
    """Return the schedule of threshold-controlled iteration, in two stages.

    After Wu et al., arXiv 2510.07666 (TCIP, iPEAR): a level first waits until the registration is stable; only then is
    convergence tested, and it ends the level; both tests compare NCC with thresholds. The paper's formulas were not
    available. Our reading: an iteration is stable when it changes the similarity by at most `stability`, up or down;
    from the next one on, an improvement below `delta` ends the level; every candidate is kept. The thresholds are ours
    as well.

    Raises:
        InputError: as for `iterstop_schedule`.
    """
    stabilities = _thresholds("--stability", stability, DEFAULT_STABILITY, similarity)
    deltas = _thresholds("--delta", delta, DEFAULT_DELTA, similarity)
    limits = _limits(limit)
    rules = {
        level: LevelRule(limits[level], deltas[level], keep_failing=True, stability=stabilities[level])
        for level in LEVELS
    }
    return Schedule("tci", rules)


def thrift_schedule(
    similarity: str = "ncc", delta: float | None = None, limit: int | tuple[int, ...] = DEFAULT_LIMIT
) -> Schedule:
    """Return a schedule in which an iteration must be worth its work: delta scales with the square root of the work.

    So cheap coarse levels continue for smaller improvements, and expensive ones at full size stop early. Every
    candidate is kept, since its work is already done. The square root lies between the same delta for all levels and
    one in proportion to the work, with which level 3 goes on running when only NCC still gains.

    Args:
        delta: improvement that an iteration at level 1 must achieve for the level to continue.

    Raises:
        InputError: as for `iterstop_schedule`, or four different deltas.
    """
    worth = _thresholds("--delta", delta, DEFAULT_WORTH, similarity)
    if len(set(worth.values())) > 1:
        raise InputError(
            f"--delta: got {tuple(worth.values())}, but --schedule thrift takes one value, that of level 1; "
            "four go with --schedule iterstop"
        )
    limits = _limits(limit)
    rules = {
        level: LevelRule(limits[level], math.sqrt(WORK[level]) * worth[level], keep_failing=True) for level in LEVELS
    }
    return Schedule("thrift", rules)


@dataclass(frozen=True)
class StopRule:
    """The definition of a stop rule.

    Attributes:
        build: returns the schedule; its arguments are `similarity`, `limit` and those below.
        thresholds: argument -> default, by similarity.
        on_stop: whether `build` has an argument `on_stop` that decides what happens to a failing candidate.
    """

    build: Callable[..., Schedule]
    thresholds: Mapping[str, Mapping[str, float]]
    on_stop: bool = False

    @property
    def takes(self) -> tuple[str, ...]:
        """The names of the arguments besides `similarity`."""
        return ("limit", *self.thresholds, *(("on_stop",) if self.on_stop else ()))


STOP_RULES = {
    "iterstop": StopRule(iterstop_schedule, {"delta": DEFAULT_DELTA}, on_stop=True),
    "tci": StopRule(tci_schedule, {"delta": DEFAULT_DELTA, "stability": DEFAULT_STABILITY}),
    "thrift": StopRule(thrift_schedule, {"delta": DEFAULT_WORTH}),
}


def stop_rule(text: str) -> StopRule | None:
    """Return the stop rule named by a schedule's text; None for counts and cascades."""
    return STOP_RULES.get(text.strip().lower())


def parse_schedule(text: str, **options: Any) -> Schedule:
    """Parse the name of a stop rule, four counts or a cascade.

    `options` go to the stop rule (see `STOP_RULES`); those that it does not take are ignored.

    Raises:
        InputError: the text is none of ``iterstop``, ``tci``, ``thrift``, ``a,b,c,d``, ``cascade:t``, or its numbers
            and options are invalid.
    """
    name = text.strip().lower()
    if rule := stop_rule(name):
        return rule.build(**{key: options[key] for key in ("similarity", *rule.takes) if key in options})
    try:
        if name.startswith("cascade:"):
            return cascade_schedule(int(name.removeprefix("cascade:")))
        return fixed_schedule(tuple(int(part) for part in name.split(",")))
    except InputError:
        raise
    except ValueError:
        raise InputError(
            f"--schedule: got {text!r}, expected {', '.join(STOP_RULES)}, four counts such as 1,2,2,2, or cascade:3"
        ) from None


def _thresholds(
    name: str, value: float | tuple[float, ...] | None, default: Mapping[str, float], similarity: str
) -> dict[int, float]:
    if similarity not in default:
        raise InputError(f"--similarity: got {similarity!r}, expected one of {', '.join(default)}")
    return _per_level(name, default[similarity] if value is None else value)


def _limits(limit: int | tuple[int, ...]) -> dict[int, int]:
    limits = _per_level("--max-iterations", limit)
    if min(limits.values()) < 1:
        raise InputError(f"--max-iterations: got {min(limits.values())}, expected at least 1")
    return limits


def _per_level(name: str, value: Any) -> dict[int, Any]:
    """Return one value for all levels, or four for levels 4 to 1, as a dictionary level -> value."""
    values = tuple(value) if isinstance(value, tuple | list) else (value,)
    if len(values) == 1:
        values *= len(LEVELS)
    if len(values) != len(LEVELS):
        raise InputError(f"{name}: got {len(values)} values, expected one or four (levels 4,3,2,1)")
    return dict(zip(LEVELS, values, strict=True))
