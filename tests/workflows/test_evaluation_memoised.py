"""The memoised pair: same results, nothing computed twice, full time counted for every schedule."""

import itertools

import numpy as np
import pytest

from runtime.loop import iterstop
from runtime.loop.stop_rules import parse_schedule
from runtime.workflows.evaluation.scoring import memoised_pair
from runtime.workflows.evaluation.scoring.memoised_pair import MemoisedPair, ResultMemory, TimeAccount

SCHEDULES = ("1,1,1,1", "1,2,1,1", "1,2,2,2", "0,0,0,0", "cascade:2", "cascade:3", "iterstop", "1,1,1,1")


class CountingPair:
    """A pair whose flows are small arrays that count their steps; its calls are logged."""

    def __init__(self, log=None, moved: float = 0.0) -> None:
        self.log, self.moved = [] if log is None else log, moved

    def _flow(self, name, value):
        self.log.append(name)
        return np.full((2, 2, 2, 3), value, np.float32)

    def zero(self, level):
        return self._flow("zero", 0)

    def step(self, level, flow):
        return self._flow("step", flow.flat[0] + level + self.moved)

    def score(self, level, flow):
        self.log.append("score")
        return 1 - 1 / (2 + float(flow.flat[0]) + self.moved)

    def upsample(self, flow):
        return self._flow("upsample", 2 * flow.flat[0])

    def compose(self, flow, residual):
        return self._flow("compose", flow.flat[0] + residual.flat[0])

    def warped(self, flow):
        self.log.append("warped")
        return CountingPair(self.log, self.moved + float(flow.flat[0]))


@pytest.fixture
def clock(monkeypatch):
    """A clock that advances one second per reading, so that every computation takes one second."""
    ticks = itertools.count()
    monkeypatch.setattr(memoised_pair.time, "perf_counter", lambda: float(next(ticks)))


def run(pair, schedule):
    return iterstop.run(pair, parse_schedule(schedule))


def through(pair, memory, schedule, similarity="ncc", smooth=0.0):
    account = TimeAccount()
    return run(MemoisedPair(pair, memory, similarity, smooth, account), schedule), account.seconds


@pytest.mark.parametrize("limit", [1, 400, 1 << 20], ids=["keeps one flow", "keeps a few", "keeps all"])
def test_every_schedule_gives_what_it_gives_alone(limit):
    memory, pair = ResultMemory(limit), CountingPair()
    for schedule in SCHEDULES:
        found, _ = through(pair, memory, schedule)
        alone = run(CountingPair(), schedule)
        assert (found.passes, found.similarity) == (alone.passes, alone.similarity)
        np.testing.assert_array_equal(found.flow, alone.flow)


def test_nothing_is_computed_twice():
    memory, pair = ResultMemory(), CountingPair()
    through(pair, memory, "1,2,1,1")
    pair.log.clear()
    through(pair, memory, "1,2,1,1")
    assert pair.log == []
    through(pair, memory, "1,2,1,2")
    assert pair.log == ["step", "score"]
    pair.log.clear()
    through(pair, memory, "1,2,2,1")  # the second step of level 2, and all of level 1
    assert pair.log == ["step", "upsample", "step", "score"]


def test_a_longer_cascade_goes_on_where_a_shorter_one_ended():
    memory, pair = ResultMemory(), CountingPair()
    through(pair, memory, "cascade:2")
    pair.log.clear()
    through(pair, memory, "cascade:3")
    assert pair.log.count("warped") == 1 and pair.log.count("step") == 4


def test_the_image_is_not_warped_where_all_that_follows_is_known():
    memory, pair = ResultMemory(), CountingPair()
    through(pair, memory, "cascade:2")
    pair.log.clear()
    through(pair, memory, "cascade:2")
    assert pair.log == []


@pytest.mark.parametrize("schedule", ["1,2,1,1", "iterstop", "cascade:3"])
@pytest.mark.parametrize("limit", [1, 1 << 20])
def test_a_schedule_is_charged_for_all_it_asks_for(clock, schedule, limit):
    """One second for each call of the pair, whether computed or taken from memory."""
    memory, pair = ResultMemory(limit), CountingPair()
    _, first = through(pair, memory, schedule)
    calls = len(pair.log)
    assert first == calls
    through(pair, memory, "1,2,2,2")
    assert through(pair, memory, schedule)[1] == first


def test_similarities_are_told_apart():
    memory, pair = ResultMemory(), CountingPair()
    through(pair, memory, "1,1,1,1", "ncc")
    pair.log.clear()
    through(pair, memory, "1,1,1,1", "mse")
    assert pair.log == ["score"]


def test_smoothed_and_plain_steps_are_told_apart():
    memory, plain, smoothed = ResultMemory(), CountingPair(), CountingPair(moved=0.5)
    for schedule in ("1,1,1,1", "iterstop", "cascade:2"):
        for pair, smooth in ((plain, 0.0), (smoothed, 1.5)):
            found, _ = through(pair, memory, schedule, smooth=smooth)
            alone = run(CountingPair(moved=pair.moved), schedule)
            assert (found.passes, found.similarity) == (alone.passes, alone.similarity)
            np.testing.assert_array_equal(found.flow, alone.flow)


def test_flows_are_kept_up_to_the_limit():
    flow_bytes = 2 * 2 * 2 * 3 * 4
    memory, pair = ResultMemory(3 * flow_bytes), CountingPair()
    seen = MemoisedPair(pair, memory, "ncc", 0.0, TimeAccount())
    flows = [seen.zero(level) for level in (4, 3, 2, 1)]
    pair.log.clear()
    assert [seen.zero(level) is flow for level, flow in zip((3, 2, 1), flows[1:], strict=True)] == [True] * 3
    assert pair.log == []
    seen.zero(4)
    assert pair.log == ["zero"]


def test_a_device_is_waited_for():
    waited = []
    MemoisedPair(CountingPair(), ResultMemory(synchronise=waited.append), "ncc", 0.0, TimeAccount()).zero(4)
    assert len(waited) == 1


def test_on_real_engines_bit_for_bit(engines):
    """Several schedules, smoothed and not, through one memory, against the loop alone."""
    from runtime.backends.parity import example_pair
    from runtime.registration.arrays import register_arrays

    fixed, moving = example_pair((24, 32, 16))
    memory, ways = ResultMemory(), list(itertools.product(SCHEDULES, (0.0, 1.5, 0.7)))
    with engines.running():
        pair = engines.fixed_side(engines.fields.to_device(fixed), "ncc").pair(engines.fields.to_device(moving))
        found = [through(pair.with_smoothing(smooth), memory, schedule, smooth=smooth)[0] for schedule, smooth in ways]
    for (schedule, smooth), result in zip(ways, found, strict=True):
        alone = register_arrays(engines, fixed, moving, parse_schedule(schedule), smooth=smooth)
        np.testing.assert_array_equal(engines.fields.to_host(result.flow), alone.flow)
        assert result.passes == alone.passes
