"""Registration methods to compare: schedules, thresholds and stop rules of the command line, and the paper's."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product

from ...backends.engine_set import EngineSet
from ...loop.stop_rules import ON_STOP, STOP_RULES, StopRule, stop_rule
from ...registration.options import STOP_OPTIONS, Options, ignored

BEFORE, TRANSFORM = "before", "transform"  # the affine initialisation alone; another tool's transform
PLACEHOLDER = "t"
NO_ITERATION, RP_NET, ITERSTOP = "0,0,0,0", "1,1,1,1", "iterstop"
SWEPT = {"on_stop": "on_stops", "stability": "stabilities", "delta": "deltas"}  # stop option -> field of `Choices`
# Families of the paper's Figure 5, and the thresholds of its Table 3.
FAMILIES = ("t,1,1,1", "1,t,1,1", "1,1,t,1", "1,1,1,t", "t,t,t,t", "cascade:t")
PAPER_DELTAS = (0.01, 0.005, 0.001, 0.0005)
PAPER_TIMES = tuple(range(1, 11))
FamilyMember = tuple[str, int]


@dataclass(frozen=True)
class Method:
    """A registration method.

    Attributes:
        name: name in tables, unique on an engine set.
        options: resolved options; None for another tool's transform.
        families: families of iteration counts it belongs to, and its t in each.
        engines: name of the engine set; empty if only one is used.
    """

    name: str
    options: Options | None = None
    families: tuple[FamilyMember, ...] = ()
    engines: str = ""

    @property
    def title(self) -> str:
        """Engine set and name, unique among all methods."""
        return f"{self.engines}: {self.name}" if self.engines else self.name

    @property
    def settings(self) -> Options:
        """The options of a method that registers: not another tool's transform."""
        assert self.options is not None
        return self.options

    @property
    def schedule(self) -> str:
        """The schedule as `register` takes it; empty for another tool's transform."""
        return self.options.schedule if self.options else ""

    @property
    def stops(self) -> bool:
        """True if a stop rule ends its levels, not a fixed count."""
        return stop_rule(self.schedule) is not None


@dataclass(frozen=True)
class Choices:
    """Choices of the command line; every valid combination is a method.

    Attributes:
        schedules: as `register` takes them; a `t` stands for each of `times`.
        deltas: thresholds of stop rules; empty: the engine set's, or the rule's.
        stabilities: stability thresholds of tci; empty: as for `deltas`.
        on_stops: "keep" or "revert", for iterstop; empty: the engine set's.
        similarities: similarities that stop rules watch; empty: the engine set's.
        max_iterations: per level, one value or four; None: the engine set's.
        smooths: sigmas that smooth residual flows, voxels, each with every schedule that iterates; empty: no smoothing.
        times: values that replace `t` in a schedule.
        paper: adds everything of the paper's Tables 1 and 3 and Figure 5, and every stop rule.
    """

    schedules: tuple[str, ...] = ()
    deltas: tuple[float, ...] = ()
    stabilities: tuple[float, ...] = ()
    on_stops: tuple[str, ...] = ()
    similarities: tuple[str, ...] = ()
    max_iterations: tuple[int, ...] | None = None
    smooths: tuple[float, ...] = ()
    times: tuple[int, ...] = PAPER_TIMES
    paper: bool = False


def methods(choices: Choices, engine_set: EngineSet, engines: str = "") -> tuple[Method, ...]:
    """Return the affine initialisation alone, then the methods that `choices` give on an engine set, each once.

    Args:
        choices: see `Choices`; without schedules and `paper`, RP-Net and IterStop with its settings in the set.
        engine_set: gives the defaults of options.
        engines: name of the engine set; empty if only one is used.

    Raises:
        InputError: options that are invalid or that no schedule uses.
    """
    found: dict[Options, Method] = {}
    for options, member in ((Options(schedule=NO_ITERATION), None), *_requested(choices)):
        options = options.resolved(engine_set)
        options.build_schedule()
        method = found.setdefault(options, Method(_name(options, engine_set), options, engines=engines))
        if member is not None and member not in method.families:
            found[options] = replace(method, families=(*method.families, member))
    return tuple(found.values())


def _requested(choices: Choices) -> Iterator[tuple[Options, FamilyMember | None]]:
    """Yield every schedule with every smoothing, and the family and t of those that belong to one."""
    for options, member in _scheduled(choices):
        for sigma in choices.smooths or (0.0,):
            smooth = 0.0 if options.schedule == NO_ITERATION else sigma
            yield replace(options, smooth=smooth), member and (_smoothed(member[0], sigma), member[1])


def _smoothed(name: str, sigma: float) -> str:
    """Append the smoothing to the name of a schedule or family."""
    return f"{name} smooth {sigma:g}" if sigma else name


def _scheduled(choices: Choices) -> Iterator[tuple[Options, FamilyMember | None]]:
    schedules = [_tidy(schedule) for schedule in choices.schedules]
    if not schedules and not choices.paper:
        schedules = [RP_NET, ITERSTOP]
    rules = [*filter(stop_rule, schedules), *(STOP_RULES if choices.paper else ())]
    _refuse_ignored(choices, rules)
    for schedule in schedules:
        if is_family(schedule):
            yield from _family(schedule, choices.times)
        elif stop_rule(schedule):
            yield from ((options, None) for options in _ruled(schedule, choices))
        else:
            yield Options(schedule=schedule), None
    if choices.paper:
        yield from _paper(choices)


def _tidy(schedule: str) -> str:
    """Normalise the spelling of a schedule."""
    return "".join(schedule.split()).lower()


def _refuse_ignored(choices: Choices, rules: Iterable[str]) -> None:
    """Raise an InputError for an option that no schedule uses."""
    used = {name for rule in filter(None, map(stop_rule, rules)) for name in rule.takes}
    for field, name in STOP_OPTIONS.items():
        value = getattr(choices, SWEPT.get(field, field))
        if value and name not in used:
            raise ignored(field, value, "no schedule uses it")


def is_family(schedule: str) -> bool:
    """Return True if a schedule holds a `t`."""
    return PLACEHOLDER in schedule.removeprefix("cascade:").split(",")


def _family(schedule: str, times: Iterable[int]) -> Iterator[tuple[Options, FamilyMember]]:
    head, colon, tail = schedule.rpartition(":")
    for t in times:
        counts = ",".join(str(t) if part == PLACEHOLDER else part for part in tail.split(","))
        yield Options(schedule=f"{head}{colon}{counts}"), (schedule, t)


def _ruled(schedule: str, choices: Choices) -> Iterator[Options]:
    """Yield a stop rule with every combination of the choices that it takes."""
    rule = stop_rule(schedule)
    assert rule is not None
    takes = rule.takes
    on_stops, stabilities, deltas = (
        getattr(choices, several) if STOP_OPTIONS[field] in takes else () for field, several in SWEPT.items()
    )
    swept = (values or (None,) for values in (choices.similarities, on_stops, stabilities, deltas))
    for similarity, on_stop, stability, delta in product(*swept):
        yield Options(
            schedule=schedule,
            similarity=similarity,
            delta=delta,
            stability=stability,
            on_stop=on_stop,
            max_iterations=choices.max_iterations,
        )


def _paper(choices: Choices) -> Iterator[tuple[Options, FamilyMember | None]]:
    yield from ((Options(schedule=schedule), None) for schedule in (RP_NET, ITERSTOP))
    for rule in STOP_RULES:
        swept = choices
        if rule == ITERSTOP:
            swept = replace(choices, deltas=choices.deltas or PAPER_DELTAS, on_stops=ON_STOP)
        yield from ((options, None) for options in _ruled(rule, swept))
    for schedule in FAMILIES:
        yield from _family(schedule, choices.times)


def _name(options: Options, engine_set: EngineSet) -> str:
    """Return the name in tables: the schedule, the settings of a stop rule, and the smoothing."""
    if options.schedule == NO_ITERATION:
        return BEFORE
    rule = stop_rule(options.schedule)
    words = [options.schedule, *(_rule_settings(rule, options, engine_set) if rule else ())]
    return _smoothed(" ".join(words), options.smooth)


def _rule_settings(rule: StopRule, options: Options, engine_set: EngineSet) -> Iterator[str]:
    """Yield the settings of a stop rule without those at their defaults, except the threshold."""
    assert options.similarity is not None
    if options.on_stop is not None:
        yield options.on_stop
    if options.delta is not None:
        yield _numbers(options.delta)
    if options.stability not in (None, rule.thresholds.get("stability", {}).get(options.similarity)):
        yield f"stability {_numbers(options.stability)}"
    if options.similarity != engine_set.stop["similarity"]:
        yield options.similarity
    if options.max_iterations not in (None, engine_set.stop["limit"]):
        yield f"at most {_numbers(options.max_iterations)}"


def _numbers(value: float | tuple[float, ...]) -> str:
    values = value if isinstance(value, tuple) else (value,)
    return ",".join(f"{number:g}" for number in values)
