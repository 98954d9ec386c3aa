"""The coarse-to-fine loop, driven by a scripted pair: no network, no image, every path.

A flow is the history of what was done to it, as text: "z4" is zero at level 4, "+" is one more iteration, "^" an
upsampling. So a test can say exactly which flow a level must end with.
"""

import math

import pytest

from runtime import iterstop
from runtime.geometry.errors import InputError
from runtime.iterstop import LEVELS

NAN = math.nan


class ScriptedPair:
    """Gives the next scripted score of a level whenever that level is scored, and writes down what it was asked."""

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
    return iterstop.run(pair, iterstop.iterstop_schedule(**options)), pair


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


@pytest.mark.parametrize("on_stop", iterstop.ON_STOP)
def test_nothing_is_scored_twice(on_stop):
    """One score a candidate; `revert` also needs the start's. A level starts from the score the last one ended with."""
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
@pytest.mark.parametrize("on_stop", iterstop.ON_STOP)
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
    result = iterstop.run(pair, iterstop.iterstop_schedule(on_stop="revert"), start=0.4)
    assert result.passes[0][0].decisions[0].before == 0.4
    assert ("score", 4, "z4") not in pair.log


@pytest.mark.parametrize("on_stop", iterstop.ON_STOP)
def test_nothing_but_nan_ends_in_an_error_not_in_a_loop(on_stop):
    with pytest.raises(InputError, match="similarity: got nan"):
        run({level: [NAN] * 3 for level in LEVELS}, on_stop=on_stop)


def test_fixed_counts_score_only_the_result():
    pair = ScriptedPair({1: [0.8]})
    result = iterstop.run(pair, iterstop.fixed_schedule((1, 2, 0, 3)))
    assert result.counts == ((1, 2, 0, 3),)
    assert result.flow == "z4+^++^^+++"
    assert [entry for entry in pair.log if entry[0] == "score"] == [("score", 1, result.flow)]
    assert result.similarity == 0.8


def test_cascade_registers_the_image_warped_so_far_and_composes():
    pair = ScriptedPair({1: [0.8]})
    result = iterstop.run(pair, iterstop.cascade_schedule(3))
    one = "z4+^+^+^+"
    assert [entry for entry in pair.log if entry[0] == "warped"] == [("warped", one), ("warped", f"({one} o {one})")]
    assert result.flow == f"(({one} o {one}) o {one})"
    assert result.counts == ((1, 1, 1, 1),) * 3


def test_progress_hears_of_every_iteration_before_it_runs():
    heard = []
    pair = ScriptedPair({1: [0.8]})
    iterstop.run(pair, iterstop.fixed_schedule((1, 2, 1, 1)), lambda *at: heard.append(at))
    assert heard == [(1, 4, 1), (1, 3, 1), (1, 3, 2), (1, 2, 1), (1, 1, 1)]


@pytest.mark.parametrize(
    ("text", "counts", "passes"),
    [("1,2,3,4", (1, 2, 3, 4), 1), (" 0,0,1,0 ", (0, 0, 1, 0), 1), ("cascade:5", (1,) * 4, 5)],
)
def test_schedules_as_text(text, counts, passes):
    schedule = iterstop.parse_schedule(text)
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
    ],
)
def test_schedules_that_make_no_sense_say_so(text, options, message):
    with pytest.raises(InputError, match=message):
        iterstop.parse_schedule(text, **options)
