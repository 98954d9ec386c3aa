"""The coarse-to-fine loop, driven by a scripted pair: no network, no image, every path.

A flow is its history, as text: "z4" is zero at level 4, "+" is one more iteration, "^" an
upsampling. So a test can say exactly which flow a level must end with.
"""

import math
from types import SimpleNamespace

import pytest

from runtime.errors import InputError
from runtime.loop import iterstop, stop_rules
from runtime.loop.schedules import LEVELS, cascade_schedule, fixed_schedule
from runtime.loop.stop_rules import ON_STOP, iterstop_schedule, parse_schedule, tci_schedule, thrift_schedule
from runtime.registration.options import Options

NAN = math.nan


class ScriptedPair:
    """A pair that returns the next scripted score of a level whenever that level is scored, and records all calls."""

    def __init__(self, scores: dict[int, list[float]], log: list | None = None) -> None:
        self.scores = {level: list(values) for level, values in scores.items()}
        self.log = [] if log is None else log

    def zero(self, level):
        return f"z{level}"

    def step(self, level, flow):
        self.log.append(("step", level))
        return flow + "+"

    def score(self, level, flow):
        self.log.append(("score", level, flow))
        return self.scores[level].pop(0)

    def upsample(self, flow):
        return flow + "^"

    def compose(self, flow, residual):
        return f"({flow} o {residual})"

    def warped(self, flow):
        self.log.append(("warped", flow))
        return ScriptedPair(self.scores, self.log)


def run(scores, **options):
    pair = ScriptedPair(scores)
    return iterstop.run(pair, iterstop_schedule(**options)), pair


def traces(result):
    return {trace.level: trace for trace in result.passes[0]}


def test_keep_is_the_released_behaviour():
    """Level 4: the first is kept untested, the failing second undone. Finer levels keep the failing candidate."""
    result, _ = run({4: [0.5, 0.501], 3: [0.6, 0.7, 0.701], 2: [0.75, 0.752], 1: [0.7521]}, on_stop="keep")
    assert result.counts == ((1, 3, 2, 1),)
    assert result.flow == "z4+^+++^++^+"
    assert result.similarity == 0.7521
    assert [len(trace.decisions) for trace in result.passes[0]] == [2, 3, 2, 1]


def test_revert_is_algorithm_1_as_printed():
    """Every failing candidate is undone; a level may keep no iteration at all."""
    result, _ = run({4: [0.4, 0.5, 0.501], 3: [0.6, 0.6], 2: [0.6], 1: [0.7, 0.7]}, on_stop="revert")
    assert result.counts == ((1, 1, 0, 1),)
    assert result.flow == "z4+^+^^+"
    assert result.similarity == 0.7


@pytest.mark.parametrize("on_stop", ON_STOP)
def test_nothing_is_scored_twice(on_stop):
    """One score per candidate; `revert` also needs the start's. A level reuses the score the last one ended with."""
    values = {level: [0.1 * n for n in range(1, 3)] + [0.2] for level in LEVELS}
    _, pair = run({**values, 3: [0.3, 0.3], 2: [0.4, 0.4], 1: [0.5, 0.5]}, on_stop=on_stop)
    steps = sum(entry[0] == "step" for entry in pair.log)
    scores = [entry for entry in pair.log if entry[0] == "score"]
    assert len(scores) == steps + (on_stop == "revert")
    flows = [entry[2] for entry in scores]
    assert len(set(flows)) == len(flows)


def test_the_start_of_a_level_is_what_was_kept_before():
    """After an undone candidate the next level compares with the score before it, not with the undone one."""
    result, _ = run({4: [0.5, 0.4], 3: [0.45], 2: [0.44], 1: [0.43]}, on_stop="keep")
    decisions = [trace.decisions[0] for trace in result.passes[0]]
    assert [decision.before for decision in decisions] == [None, 0.5, 0.45, 0.44]


def test_limit_ends_a_level():
    rising = {level: [0.1 * level + 0.01 * n for n in range(20)] for level in LEVELS}
    result, _ = run({4: rising[1], 3: rising[2], 2: rising[3], 1: rising[4]}, limit=(2, 3, 1, 4))
    assert result.counts == ((2, 3, 1, 4),)
    assert {trace.reason for trace in result.passes[0]} == {"limit"}


def test_delta_is_per_level_and_margins_are_recorded():
    result, _ = run({4: [0.5, 0.52], 3: [0.53, 0.54], 2: [0.55], 1: [0.56]}, delta=(0.1, 0.02, 0.03, 0.04))
    found = traces(result)
    assert found[4].decisions[0].margin is None, "the untested first iteration has no margin"
    assert found[4].decisions[1].margin == pytest.approx(0.02 - 0.1)
    assert found[3].decisions[0].margin == pytest.approx(0.03 - 0.02)
    assert found[3].decisions[1].margin == pytest.approx(0.01 - 0.02)
    assert [found[level].decisions[0].delta for level in LEVELS] == [0.1, 0.02, 0.03, 0.04]


def test_improvement_equal_to_delta_goes_on():
    result, _ = run({4: [0.5, 0.75, 0.75], 3: [0.75], 2: [0.75], 1: [0.75]}, delta=0.25)
    assert result.counts[0][0] == 2


@pytest.mark.parametrize("bad", [NAN, math.inf, -math.inf])
@pytest.mark.parametrize("on_stop", ON_STOP)
def test_a_score_that_is_not_finite_stops_the_level_and_undoes_the_candidate(bad, on_stop):
    start = [0.4] if on_stop == "revert" else []
    result, _ = run({4: [*start, 0.5, bad], 3: [bad], 2: [0.9, 0.9], 1: [0.9, 0.9]}, on_stop=on_stop)
    found = traces(result)
    assert found[4].reason == found[3].reason == "similarity not finite"
    assert (found[4].iterations, found[3].iterations) == (1, 0)
    assert result.flow.startswith("z4+^^+")


def test_a_start_that_is_not_finite_is_left_by_the_first_finite_candidate():
    result, _ = run({4: [NAN, 0.5, 0.5], 3: [0.5], 2: [0.5], 1: [0.5]}, on_stop="revert")
    assert result.counts == ((1, 0, 0, 0),)


def test_a_known_start_is_not_scored_again():
    scores = {4: [0.5, 0.5], 3: [0.5], 2: [0.5], 1: [0.5]}
    pair = ScriptedPair(scores)
    result = iterstop.run(pair, iterstop_schedule(on_stop="revert"), start=0.4)
    assert result.passes[0][0].decisions[0].before == 0.4
    assert ("score", 4, "z4") not in pair.log


@pytest.mark.parametrize("on_stop", ON_STOP)
def test_nothing_but_nan_ends_in_an_error_not_in_a_loop(on_stop):
    with pytest.raises(InputError, match=r"^--fixed, --moving: their similarity is nan after registration"):
        run({level: [NAN] * 3 for level in LEVELS}, on_stop=on_stop)


def run_tci(scores, start=None, **options):
    pair = ScriptedPair(scores)
    return iterstop.run(pair, tci_schedule(**options), start=start), pair


def test_tci_asks_for_convergence_only_once_it_is_stable():
    """0.10 and 0.06 exceed 0.05, 0.04 is stable, 0.03 is still an improvement, 0.01 is not."""
    scores = {4: [0.1, 0.2, 0.26, 0.3, 0.33, 0.34], 3: [0.34, 0.34], 2: [0.34, 0.34], 1: [0.34, 0.34]}
    result, _ = run_tci(scores, delta=0.02, stability=0.05)
    found = traces(result)[4]
    assert [decision.test for decision in found.decisions] == ["stability"] * 3 + ["improvement"] * 2
    assert [decision.passed for decision in found.decisions] == [True] * 4 + [False]
    assert result.counts == ((5, 2, 2, 2),), "every candidate is kept, the one that ended the level too"
    assert found.reason == "improvement below delta"
    margins = [decision.margin for decision in found.decisions]
    assert margins == pytest.approx([0.05 - 0.1, 0.05 - 0.06, 0.05 - 0.04, 0.03 - 0.02, 0.01 - 0.02])
    assert [decision.delta for decision in found.decisions] == [0.05] * 3 + [0.02] * 2


def test_tci_goes_on_where_one_bad_iteration_ends_iterstop():
    """A decrease does not indicate convergence, since the registration is not stable. Once stable, it does."""
    scores = {4: [0.5, 0.3, 0.6, 0.61, 0.4], 3: [0.4, 0.4], 2: [0.4, 0.4], 1: [0.4, 0.4]}
    result, _ = run_tci(scores, delta=0.02, stability=0.05)
    assert result.counts[0][0] == 4
    assert traces(result)[4].decisions[0].margin == pytest.approx(0.05 - 0.2), "however large the fall"
    alone, _ = run({**scores, 4: [0.5, 0.3], 3: [0.4]}, delta=0.02)
    assert alone.counts[0][0] == 1


def test_tci_takes_at_least_two_iterations_a_level_and_scores_none_twice():
    result, pair = run_tci({4: [0.5, 0.5], 3: [0.5, 0.5], 2: [0.5, 0.5], 1: [0.5, 0.5]}, start=0.5)
    assert result.counts == ((2, 2, 2, 2),)
    scored = [entry[2] for entry in pair.log if entry[0] == "score"]
    assert len(scored) == len(set(scored)) == 8


def test_tci_ends_at_the_limit_whether_stable_or_not():
    wild = [0.1, 0.5, 0.1, 0.5]
    result, pair = run_tci({4: wild, 3: wild[:3], 2: [0.5], 1: [0.5, 0.5]}, start=0.9, limit=(4, 3, 1, 2))
    assert result.counts == ((4, 3, 1, 2),)
    assert [trace.reason for trace in result.passes[0]] == ["limit"] * 3 + ["improvement below delta"]
    assert sum(entry[0] == "step" for entry in pair.log) == 10, "no iteration is sent ahead beyond the limit"


@pytest.mark.parametrize("bad", [NAN, math.inf, -math.inf])
def test_tci_undoes_a_candidate_whose_score_is_not_finite(bad):
    """This holds in either stage; an iteration that was started ahead of the score is dropped too."""
    scores = {4: [0.5, bad], 3: [0.501, bad], 2: [0.5, 0.5], 1: [0.5, 0.5]}
    result, _ = run_tci(scores, start=0.3)
    found = traces(result)
    assert found[4].reason == found[3].reason == "similarity not finite"
    assert [decision.test for decision in found[3].decisions] == ["stability", "improvement"]
    assert result.counts == ((1, 1, 2, 2),)
    assert result.flow == "z4+^+^++^++"


def test_tci_leaves_a_start_that_is_not_finite():
    result, _ = run_tci({4: [0.5, 0.5, 0.5], 3: [0.5, 0.5], 2: [0.5, 0.5], 1: [0.5, 0.5]}, start=NAN)
    assert result.counts == ((3, 2, 2, 2),), "from NaN to a number is not a stable iteration"


def test_the_next_iteration_is_sent_before_a_score_that_cannot_end_the_level():
    """A device continues while the score is copied: in TCI's first stage, and after IterStop's untested iteration."""

    class Late(float):
        def __new__(cls, value, log):
            late = super().__new__(cls, value)
            late.log = log
            return late

        def __float__(self):
            self.log.append(("waited",))
            return super().__float__()

    class LatePair(ScriptedPair):
        def score(self, level, flow):
            return Late(super().score(level, flow), self.log)

    def order(schedule, scores):
        pair = LatePair({**{level: [0.5] * 9 for level in LEVELS}, 4: scores})
        iterstop.run(pair, schedule, start=0.0)
        return [entry[0] for entry in pair.log]

    first, second = ["step", "score", "step", "waited"], ["score", "waited"]
    assert order(iterstop_schedule(), [0.5, 0.5])[:6] == first + second
    assert order(tci_schedule(), [0.5, 0.5, 0.5])[:9] == [*first, "score", "step", "waited", *second]
    assert order(thrift_schedule(), [0.5, 0.5])[:6] == ["step", "score", "waited"] * 2


def test_thrift_asks_of_an_iteration_what_its_work_is_worth():
    """With the same improvements at every level, a cheaper level continues longer."""
    gains, scores, value = [0.4, 0.2, 0.1, 0.05, 0.025], {}, 0.0
    for level, taken in zip(LEVELS, (5, 3, 2, 1), strict=True):
        scores[level] = [value := value + gain for gain in gains[:taken]]
    result = iterstop.run(ScriptedPair(scores), thrift_schedule(delta=0.45), start=0.0)
    deltas = [trace.decisions[0].delta for trace in result.passes[0]]
    assert deltas == pytest.approx([0.45 * math.sqrt(work) for work in (0.01, 0.08, 0.5, 1)])
    assert result.counts == ((5, 3, 2, 1),), "the candidate that ends a level is kept"


def test_work_of_an_iteration_is_that_of_its_estimators_convolutions():
    """27 multiplications for each pair of channels and each voxel; a level has an eighth of the next one's voxels."""

    def convolutions(features, q, blocks=2):
        return 27 * (2 * features * q + blocks * q * q + q * q // 2 + q // 2 * 3)

    work = {
        level: convolutions(f, q) / 8 ** (level - 1)
        for level, f, q in ((4, 32, 32), (3, 32, 32), (2, 16, 32), (1, 8, 16))
    }
    for level in LEVELS:
        assert stop_rules.WORK[level] == pytest.approx(work[level] / work[1], rel=0.1)


def test_fixed_counts_score_only_the_result():
    pair = ScriptedPair({1: [0.8]})
    result = iterstop.run(pair, fixed_schedule((1, 2, 0, 3)))
    assert result.counts == ((1, 2, 0, 3),)
    assert result.flow == "z4+^++^^+++"
    assert [entry for entry in pair.log if entry[0] == "score"] == [("score", 1, result.flow)]
    assert result.similarity == 0.8


def test_cascade_registers_the_image_warped_so_far_and_composes():
    pair = ScriptedPair({1: [0.8]})
    result = iterstop.run(pair, cascade_schedule(3))
    one = "z4+^+^+^+"
    assert [entry for entry in pair.log if entry[0] == "warped"] == [("warped", one), ("warped", f"({one} o {one})")]
    assert result.flow == f"(({one} o {one}) o {one})"
    assert result.counts == ((1, 1, 1, 1),) * 3


def test_progress_hears_of_every_iteration_before_it_runs():
    heard = []
    pair = ScriptedPair({1: [0.8]})
    iterstop.run(pair, fixed_schedule((1, 2, 1, 1)), lambda *at: heard.append(at))
    assert heard == [(1, 4, 1), (1, 3, 1), (1, 3, 2), (1, 2, 1), (1, 1, 1)]


@pytest.mark.parametrize(
    ("text", "counts", "passes"),
    [("1,2,3,4", (1, 2, 3, 4), 1), (" 0,0,1,0 ", (0, 0, 1, 0), 1), ("cascade:5", (1,) * 4, 5)],
)
def test_schedules_as_text(text, counts, passes):
    schedule = parse_schedule(text)
    assert tuple(schedule.rules[level].limit for level in LEVELS) == counts
    assert schedule.passes == passes


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("sometimes", {}, "schedule: got 'sometimes'"),
        ("1,2,3", {}, "schedule: got 3 counts"),
        ("1,2,3,-1", {}, "--schedule, --max-iterations: got -1"),
        ("1,2,3,1000000", {}, "--schedule, --max-iterations: got 1000000"),
        ("cascade:0", {}, "--schedule cascade: got 0"),
        ("cascade:x", {}, "schedule: got 'cascade:x'"),
        ("iterstop", {"on_stop": "maybe"}, "on-stop: got 'maybe'"),
        ("iterstop", {"similarity": "mi"}, "similarity: got 'mi'"),
        ("iterstop", {"delta": (0.1, 0.2)}, "delta: got 2 values"),
        ("iterstop", {"delta": NAN}, "delta: got nan"),
        ("iterstop", {"delta": -0.1}, "--delta: got -0.1, expected 0 or more"),
        ("iterstop", {"limit": 0}, "max-iterations: got 0"),
        ("iterstop", {"limit": (1, 2, 3)}, "max-iterations: got 3 values"),
        ("tci", {"stability": -1}, "--stability: got -1, expected 0 or more"),
        ("tci", {"stability": (1, 2)}, "--stability: got 2 values"),
        ("tci", {"similarity": "mi"}, "similarity: got 'mi'"),
        ("thrift", {"delta": (1, 2, 3, 4)}, r"--delta: got \(1, 2, 3, 4\), but --schedule thrift takes one value"),
        ("thrift", {"limit": 0}, "max-iterations: got 0"),
    ],
)
def test_schedules_that_make_no_sense_say_so(text, options, message):
    with pytest.raises(InputError, match=message):
        parse_schedule(text, **options)


STOP = {"similarity": "ncc", "delta": 0.004, "limit": 7, "on_stop": "revert"}


def resolved(**options):
    return Options(**options).resolved(SimpleNamespace(stop=STOP))


def test_iterstop_follows_the_engine_set_and_the_other_rules_their_own_thresholds():
    """An engine set's delta and stop mode apply to IterStop; its limit applies to all rules."""
    iterated, tci, thrift = (resolved(schedule=name) for name in ("iterstop", " TCI ", "thrift"))
    assert (iterated.delta, iterated.stability, iterated.on_stop) == (0.004, None, "revert")
    assert (tci.delta, tci.stability, tci.on_stop) == (0.005, 0.02, None)
    assert (thrift.delta, thrift.stability, thrift.on_stop) == (0.01, None, None)
    assert {options.max_iterations for options in (iterated, tci, thrift)} == {7}
    assert resolved(schedule="iterstop", similarity="mse").delta == 0.0005, "the set's delta is that of its similarity"
    assert resolved(schedule="1,1,1,1").max_iterations is None


def test_options_reach_the_rules():
    rules = resolved(schedule="tci", delta=0.1, stability=(0.4, 0.3, 0.2, 0.1), max_iterations=3).build_schedule().rules
    assert [(rules[level].delta, rules[level].stability, rules[level].limit) for level in LEVELS] == [
        (0.1, stability, 3) for stability in (0.4, 0.3, 0.2, 0.1)
    ]
    rules = resolved(schedule="thrift", delta=0.1, max_iterations=(4, 3, 2, 1)).build_schedule().rules
    assert [rules[level].limit for level in LEVELS] == [4, 3, 2, 1]
    assert rules[1].delta == 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"schedule": "iterstop", "stability": 0.1},
            "--stability: got 0.1, but --schedule iterstop does not use it; .*tci",
        ),
        (
            {"schedule": "thrift", "stability": 0.1},
            "--stability: got 0.1, but --schedule thrift does not use it; .*tci",
        ),
        (
            {"schedule": "1,1,1,1", "stability": 0.1},
            "--stability: got 0.1, but --schedule 1,1,1,1 has no stop rule; .*tci",
        ),
        ({"schedule": "tci", "on_stop": "keep"}, "--on-stop: got keep, but --schedule tci does not use it; .*iterstop"),
        ({"schedule": "thrift", "on_stop": "keep"}, "--on-stop: got keep, but --schedule thrift does not use it"),
        (
            {"schedule": "cascade:2", "max_iterations": 3},
            "--max-iterations: got 3, but --schedule cascade:2 has no stop",
        ),
    ],
)
def test_an_option_that_would_be_ignored_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        resolved(**options)
