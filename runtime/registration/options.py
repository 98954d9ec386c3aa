"""Options of a registration, checked before any work."""

import math
from dataclasses import dataclass, replace
from typing import Any

from ..backends.engine_set import EngineSet
from ..errors import InputError
from ..geometry.smoothing import check_sigma
from ..images.intensity import Rule, WindowRule, rule_from_dict
from ..images.similarity import SIMILARITIES
from ..loop import stop_rules
from ..loop.schedules import Schedule
from .affine.choice import AffineChoice, read_choice
from .affine.limits import LIMITS, Limits

# Options of stop rules: field -> argument of the rule.
STOP_OPTIONS = {"delta": "delta", "stability": "stability", "max_iterations": "limit", "on_stop": "on_stop"}

# Options for bringing two scans onto one grid in [0, 1]: an aligned pair's own, and not for arrays.
SCAN_OPTIONS = ("affine", "convention", "nan", "volume_factor", "window")


def ignored(field: str, value: Any, why: str) -> InputError:
    """Return the error for an option of stop rules that would be ignored.

    Args:
        field: key of `STOP_OPTIONS`.
        value: the given value or values.
        why: reason why nothing uses it.
    """
    got = ",".join(map(str, value)) if isinstance(value, tuple) else value
    users = [name for name, rule in stop_rules.STOP_RULES.items() if STOP_OPTIONS[field] in rule.takes]
    return InputError(f"--{field.replace('_', '-')}: got {got}, but {why}; leave it out or use --schedule {users[0]}")


@dataclass(frozen=True)
class Options:
    """Options of a registration. None stands for the engine set's default.

    Attributes:
        affine: "auto" (the best of headers, centres of mass, rigid and affine), "affine" or "rigid" (the result of
            these steps), "none" (headers only) or a transform file, ``FILE[,inverse]``, fixed -> moving, that `apply`
            reads; for a field, the affine that fits it best.
        convention: convention of such a file if it does not state its own, as in `runtime.transforms`.
        nan: intensity that replaces NaN in either scan; None: NaN is refused.
        volume_factor: (smallest, largest) volume factor of a plausible affine, fixed -> moving.
        schedule: "iterstop", "tci", "thrift", "a,b,c,d" (iterations at levels 4 to 1) or "cascade:t".
        similarity: "ncc", "lncc" or "mse", which stop rules watch.
        delta: smallest improvement, one value or four (levels 4 to 1); for thrift one, that of level 1.
        stability: for tci: largest change, up or down, of a stable iteration, one value or four.
        max_iterations: limit per level, one value or four.
        on_stop: for iterstop: "keep" (released code) or "revert" (Algorithm 1 as printed).
        window: (low, high) intensities mapped to [0, 1] instead of the set's rule, for CT.
        smooth: width in voxels of each level's grid by which residual flows are smoothed where the fixed image has no
            edges (`runtime.geometry.smoothing`), for every schedule; 0: no smoothing.
    """

    affine: str = "auto"
    schedule: str = "iterstop"
    similarity: str | None = None
    delta: float | tuple[float, ...] | None = None
    max_iterations: int | tuple[int, ...] | None = None
    on_stop: str | None = None
    stability: float | tuple[float, ...] | None = None
    window: tuple[float, float] | None = None
    smooth: float = 0.0
    convention: str = "auto"
    nan: float | None = None
    volume_factor: tuple[float, float] = (LIMITS.smallest, LIMITS.largest)

    def resolved(self, engine_set: EngineSet) -> "Options":
        """Replace every None that the schedule uses by the engine set's default, or the stop rule's.

        Raises:
            InputError: an unknown similarity, a smoothing out of bounds, or an option that this schedule would ignore.
        """
        check_sigma(self.smooth)
        if self.nan is not None and not math.isfinite(self.nan):
            raise InputError(f"--nan: got {self.nan}, expected a finite number, such as 0")
        stop = engine_set.stop
        similarity = stop["similarity"] if self.similarity is None else self.similarity
        if similarity not in SIMILARITIES:
            raise InputError(f"--similarity: got {similarity!r}, expected one of {', '.join(SIMILARITIES)}")
        rule = stop_rules.stop_rule(self.schedule)
        self._refuse_ignored(rule)
        if rule is None:
            return replace(self, similarity=similarity)
        defaults = {name: by[similarity] for name, by in rule.thresholds.items()}
        defaults["limit"] = stop["limit"]
        if rule.on_stop:  # IterStop, whose thresholds come from the engine set
            defaults["on_stop"] = stop["on_stop"]
            defaults |= {"delta": stop["delta"]} if similarity == stop["similarity"] else {}
        given = {field: getattr(self, field) for field in STOP_OPTIONS if getattr(self, field) is not None}
        named = {field: defaults[name] for field, name in STOP_OPTIONS.items() if name in defaults}
        return replace(self, similarity=similarity, **(named | given))

    def _refuse_ignored(self, rule: stop_rules.StopRule | None) -> None:
        """Raise an InputError for an option that would be ignored."""
        for field, name in STOP_OPTIONS.items():
            value = getattr(self, field)
            if value is not None and (rule is None or name not in rule.takes):
                why = "does not use it" if rule else "has no stop rule"
                raise ignored(field, value, f"--schedule {self.schedule} {why}")

    @property
    def start(self) -> AffineChoice:
        """The choice of affine initialisation; InputError for a file that cannot be used."""
        return read_choice(self.affine, self.convention, Limits(*self.volume_factor))

    def rule(self, engine_set: EngineSet) -> Rule:
        """Return the rule that maps intensities to [0, 1]: the given window, or the engine set's rule."""
        return WindowRule(*self.window) if self.window else rule_from_dict(engine_set.intensity)

    def build_schedule(self) -> Schedule:
        """Return the schedule of these (resolved) options; InputError for invalid ones."""
        given = {name: getattr(self, field) for field, name in STOP_OPTIONS.items()}
        return stop_rules.parse_schedule(self.schedule, similarity=self.similarity, **given)
