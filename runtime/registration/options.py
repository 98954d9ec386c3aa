"""How to register: what a user may choose, checked before any work."""

import math
from dataclasses import dataclass, replace
from typing import Any

from ..backends.engine_set import EngineSet
from ..errors import InputError
from ..geometry.smoothing import check_sigma
from ..images.intensity import Rule, WindowRule, rule_from_dict
from ..images.similarity import SIMILARITIES
from ..loop import schedules
from .affine.choice import AffineChoice, read_choice
from .affine.limits import LIMITS, Limits

# Options of stop rules: field -> argument of the rule.
STOP_OPTIONS = {"delta": "delta", "stability": "stability", "max_iterations": "limit", "on_stop": "on_stop"}


def ignored(field: str, value: Any, why: str) -> InputError:
    """Of an option of stop rules that would be ignored.

    Args:
        field: of `STOP_OPTIONS`.
        value: what was given, one or several.
        why: nothing uses it.
    """
    got = ",".join(map(str, value)) if isinstance(value, tuple) else value
    users = [name for name, rule in schedules.STOP_RULES.items() if STOP_OPTIONS[field] in rule.takes]
    return InputError(f"--{field.replace('_', '-')}: got {got}, but {why}; leave it out or use --schedule {users[0]}")


@dataclass(frozen=True)
class Options:
    """How to register. What is None follows the engine set.

    Attributes:
        affine: "auto" (the best of headers, centres of mass, rigid and affine), "affine" or "rigid" (what these steps
            reach), "none" (headers only) or a transform file, ``FILE[,inverse]``, fixed -> moving, that `apply` reads;
            of a field the affine that fits it best.
        convention: of such a file that does not say its own, as in `runtime.transforms`.
        nan: the intensity that NaN stands for in either scan; None: there may be none.
        volume_factor: (smallest, largest) volume factor of a plausible affine, fixed -> moving.
        schedule: "iterstop", "tci", "thrift", "a,b,c,d" (iterations at levels 4 to 1) or "cascade:t".
        similarity: "ncc", "lncc" or "mse", what stop rules watch.
        delta: smallest improvement, one value or four (levels 4 to 1); for thrift one, that of level 1.
        stability: of tci: largest change, up or down, of a stable iteration, one value or four.
        max_iterations: per level, one value or four.
        on_stop: of iterstop: "keep" (released code) or "revert" (Algorithm 1 as printed).
        window: (low, high) intensities mapped to [0, 1] instead of the set's rule, for CT.
        smooth: voxels of each level's grid, with which its residual flows are smoothed where the fixed image has no
            edges (`runtime.geometry.smoothing`), whatever the schedule; 0: they are taken as they are.
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
        """The same with every None that the schedule uses replaced by the engine set's default, or the rule's.

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
        rule = schedules.stop_rule(self.schedule)
        self._refuse_ignored(rule)
        if rule is None:
            return replace(self, similarity=similarity)
        defaults = {name: by[similarity] for name, by in rule.thresholds.items()}
        defaults["limit"] = stop["limit"]
        if rule.on_stop:  # IterStop, whose thresholds engine sets give
            defaults["on_stop"] = stop["on_stop"]
            defaults |= {"delta": stop["delta"]} if similarity == stop["similarity"] else {}
        given = {field: getattr(self, field) for field in STOP_OPTIONS if getattr(self, field) is not None}
        named = {field: defaults[name] for field, name in STOP_OPTIONS.items() if name in defaults}
        return replace(self, similarity=similarity, **(named | given))

    def _refuse_ignored(self, rule: schedules.StopRule | None) -> None:
        """An option that would be ignored is an error."""
        for field, name in STOP_OPTIONS.items():
            value = getattr(self, field)
            if value is not None and (rule is None or name not in rule.takes):
                why = "does not use it" if rule else "has no stop rule"
                raise ignored(field, value, f"--schedule {self.schedule} {why}")

    @property
    def start(self) -> AffineChoice:
        """How the affine start is found, or where it stands; InputError for a file that cannot be used."""
        return read_choice(self.affine, self.convention, Limits(*self.volume_factor))

    def rule(self, engine_set: EngineSet) -> Rule:
        """From intensities to [0, 1]: the window asked for, or the engine set's rule."""
        return WindowRule(*self.window) if self.window else rule_from_dict(engine_set.intensity)

    def build_schedule(self) -> schedules.Schedule:
        """The schedule these (resolved) options ask for; InputError where they make none."""
        given = {name: getattr(self, field) for field, name in STOP_OPTIONS.items()}
        return schedules.parse_schedule(self.schedule, similarity=self.similarity, **given)
