"""How to register: what a user may choose, checked before any work."""

from dataclasses import dataclass, replace

from runtime import iterstop
from runtime.geometry.errors import InputError
from runtime.geometry.intensity import Rule, WindowRule, rule_from_dict
from runtime.geometry.similarity import SIMILARITIES
from runtime.manifest import EngineSet


@dataclass(frozen=True)
class Options:
    """How to register. What is None follows the engine set.

    Attributes:
        affine: "auto" (centres of mass, rigid, affine), "none" (headers only) or a path to a 4x4 text file, RAS mm,
            fixed -> moving.
        schedule: "iterstop", "a,b,c,d" (iterations at levels 4 to 1) or "cascade:t".
        similarity: "ncc", "lncc" or "mse", what IterStop watches.
        delta: smallest improvement, one value or four (levels 4 to 1).
        max_iterations: per level, one value or four.
        on_stop: "keep" (released code) or "revert" (Algorithm 1 as printed).
        window: (low, high) intensities mapped to [0, 1] instead of the set's rule, for CT.
    """

    affine: str = "auto"
    schedule: str = "iterstop"
    similarity: str | None = None
    delta: float | tuple[float, ...] | None = None
    max_iterations: int | tuple[int, ...] | None = None
    on_stop: str | None = None
    window: tuple[float, float] | None = None

    def resolved(self, engine_set: EngineSet) -> "Options":
        """The same with every None replaced by the engine set's default.

        Raises:
            InputError: an unknown similarity, or an option that this schedule would ignore.
        """
        stop = engine_set.stop
        similarity = stop["similarity"] if self.similarity is None else self.similarity
        if similarity not in SIMILARITIES:
            raise InputError(f"--similarity: got {similarity!r}, expected one of {', '.join(SIMILARITIES)}")
        if self.schedule.strip().lower() != "iterstop":
            self._refuse_stop_options()
            return replace(self, similarity=similarity)
        delta = stop["delta"] if similarity == stop["similarity"] else iterstop.DEFAULT_DELTA[similarity]
        return replace(
            self,
            similarity=similarity,
            delta=delta if self.delta is None else self.delta,
            max_iterations=stop["limit"] if self.max_iterations is None else self.max_iterations,
            on_stop=stop["on_stop"] if self.on_stop is None else self.on_stop,
        )

    def _refuse_stop_options(self) -> None:
        """An option that would be ignored is an error."""
        for name in ("delta", "max_iterations", "on_stop"):
            if (value := getattr(self, name)) is not None:
                raise InputError(
                    f"--{name.replace('_', '-')}: got {value}, but --schedule {self.schedule} has no stop rule; "
                    "leave it out or use --schedule iterstop"
                )

    def rule(self, engine_set: EngineSet) -> Rule:
        """From intensities to [0, 1]: the window asked for, or the engine set's rule."""
        return WindowRule(*self.window) if self.window else rule_from_dict(engine_set.intensity)

    def build_schedule(self) -> iterstop.Schedule:
        """The schedule these (resolved) options ask for; InputError where they make none."""
        rule = {"similarity": self.similarity, "delta": self.delta, "limit": self.max_iterations}
        return iterstop.parse_schedule(self.schedule, **rule, on_stop=self.on_stop)
