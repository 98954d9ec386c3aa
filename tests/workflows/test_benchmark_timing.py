"""The timing wrappers: results are unchanged, and every call below the loop is recorded."""

import dataclasses
import inspect
from types import SimpleNamespace

import numpy as np
import pytest

from runtime.backends.engine_set import load_engine_set
from runtime.backends.engines import OpenEngines
from runtime.backends.pair import Fields, Networks
from runtime.backends.parity import example_pair
from runtime.loop import iterstop
from runtime.loop.schedules import LEVELS
from runtime.loop.stop_rules import parse_schedule
from runtime.registration.arrays import register_arrays
from runtime.workflows.benchmark.contenders.contender import EngineRunner, RunSettings, solve
from runtime.workflows.benchmark.contenders.timing import (
    HostClock,
    Recorder,
    TimedFields,
    TimedNetworks,
    clock_of,
    timed,
)

SHAPE = (32, 24, 40)


@pytest.fixture(scope="module")
def pair():
    return example_pair(SHAPE)


def operations(protocol):
    return {name for name, _ in inspect.getmembers(protocol, inspect.isfunction) if not name.startswith("_")}


@pytest.mark.parametrize(("protocol", "wrapper"), [(Networks, TimedNetworks), (Fields, TimedFields)])
def test_every_verb_of_the_protocols_is_wrapped(protocol, wrapper):
    assert operations(protocol) <= set(vars(wrapper))


@pytest.mark.parametrize("schedule", ["iterstop", "1,0,2,1", "cascade:2"])
def test_a_timed_run_is_the_same_run(engines, pair, schedule):
    schedule = parse_schedule(schedule)
    expected = register_arrays(engines, *pair, schedule)
    run = solve(EngineRunner(engines), RunSettings(schedule, "ncc"), pair[1], pair[0])
    np.testing.assert_array_equal(run.flow, expected.flow)
    assert (run.counts, run.similarity) == (expected.counts, expected.similarity)


class Counted:
    """A wrapper that forwards everything and counts the calls of public methods."""

    def __init__(self, inner, calls):
        self._inner, self._calls = inner, calls

    def __getattr__(self, name):
        value = getattr(self._inner, name)
        if not callable(value) or name == "threads":
            return value

        def call(*arguments):
            self._calls.append(name)
            result = value(*arguments)
            return Counted(result, self._calls) if name == "scorer" else result

        return call

    def __call__(self, *arguments):
        self._calls.append("score")
        return self._inner(*arguments)


def test_every_call_below_the_loop_leaves_a_span(engines, pair):
    calls = []
    halves = {"networks": Counted(engines.networks, calls), "fields": Counted(engines.fields, calls)}
    runner = EngineRunner(dataclasses.replace(engines, **halves))
    run = solve(runner, RunSettings(parse_schedule("1,2,1,1"), "ncc"), pair[1], pair[0])
    before, in_finish = ["to_device", "to_device"], ["warp", "to_host", "to_host", "folded_share"]
    assert calls[:2] == before, "both images are in the device's memory before anything is timed"
    assert sorted(calls[-4:]) == sorted(in_finish), "the finish is one span, however many calls it makes"
    assert len(run.spans) == len(calls) - len(before) - len(in_finish) + 1


def test_spans_carry_the_right_level_and_stay_within_the_whole(engines, pair):
    run = solve(EngineRunner(engines), RunSettings(parse_schedule("2,1,3,1"), "ncc"), pair[1], pair[0])
    for stage in ("warp", "estimator", "compose"):
        found = [span.level for span in run.spans if span.stage == stage]
        assert found == [4, 4, 3, 2, 2, 2, 1]
    assert [span.level for span in run.spans if span.stage == "upsample"] == [3, 2, 1]
    assert {span.level for span in run.spans if span.stage == "fill fixed half"} == set(LEVELS)
    assert sum(span.stage == "encode" for span in run.spans) == 2
    finish = sum(span.seconds for span in run.spans if span.stage == "finish")
    loop = sum(span.seconds for span in run.spans) - finish
    assert 0 < loop <= run.seconds["loop"] and finish <= run.seconds["finish"]
    assert 0 < run.seconds["fixed side"] < run.seconds["loop"]


def test_smoothing_is_timed_level_by_level(engines, pair):
    timed_engines, recorder = timed(engines)
    recorder.begin(SHAPE)
    with engines.running():
        side = timed_engines.fixed_side(pair[0], "ncc").with_smoothing(1.5)
        found = iterstop.run(side.pair(pair[1]), parse_schedule("1,2,1,1"))
    expected = register_arrays(engines, *pair, parse_schedule("1,2,1,1"), smooth=1.5)
    np.testing.assert_array_equal(engines.fields.to_host(found.flow), expected.flow)
    assert [span.level for span in recorder.spans() if span.stage == "smooth"] == [4, 3, 3, 2, 1]
    assert {span.level for span in recorder.spans() if span.stage == "smooth set-up"} == set(LEVELS)


def test_one_fixed_side_serves_many_and_gives_the_same(engines, pair):
    runner, task = EngineRunner(engines), RunSettings(parse_schedule("1,1,1,1"), "ncc")
    whole = solve(runner, task, pair[1], pair[0])
    with runner.running():
        side = runner.fixed_side(runner.upload(pair[0]), "ncc")
    for _ in range(2):
        run = solve(runner, task, pair[1], side=side)
        np.testing.assert_array_equal(run.flow, whole.flow)
        assert sum(span.stage == "encode" for span in run.spans) == 1


def test_executed_counts_the_candidate_that_was_undone(engines, pair):
    schedule = parse_schedule("iterstop", delta=1.0, on_stop="revert")
    run = solve(EngineRunner(engines), RunSettings(schedule, "ncc"), pair[1], pair[0])
    assert run.counts == ((0, 0, 0, 0),) and run.executed == ((1, 1, 1, 1),)


class Ticks:
    """A clock with marks 1, 2, 3, ..., like a device's events, that must be read only after the run."""

    def __init__(self):
        self.now, self.read = 0, False

    def mark(self):
        assert not self.read, "asking for seconds may wait for the device; not during a run"
        self.now += 1
        return self.now

    def seconds(self, start, stop):
        self.read = True
        return float(stop - start)


def test_a_span_within_a_span_belongs_to_the_outer_one():
    recorder = Recorder(Ticks())
    recorder.begin((16, 16, 16))
    with recorder.span("outer", 2):
        recorder.call("inner", 1, lambda: None)
    recorder.call("next", None, lambda: None)
    assert recorder.spans() == [("outer", 2, 1.0), ("next", None, 1.0)]


def test_a_number_that_is_still_to_come_is_not_waited_for():
    class Coming:
        def __float__(self):
            raise AssertionError("nothing but the loop may wait for the number")

    class Fields:
        def scorer(self, fixed, similarity):
            return lambda moving, flow: coming

    recorder, coming, image = Recorder(Ticks()), Coming(), np.zeros((16, 16, 16))
    recorder.begin(image.shape)
    scorer = TimedFields(Fields(), recorder).scorer(image, "ncc")
    assert scorer(image, np.zeros((2, 2, 2, 3))) is coming
    assert recorder.spans() == [("score set-up", None, 1.0), ("score", 4, 1.0)]


class GpuClock(Ticks):
    """The part of a device that the benchmark uses."""

    peak_bytes = 5
    driver = SimpleNamespace(memory=lambda: (30, 100))


def test_memory_of_a_gpu_is_its_arrays_and_all_that_is_in_use(engines, pair):
    class DeviceFields(Counted):
        def clock(self):
            return GpuClock()

    on_gpu = EngineRunner(dataclasses.replace(engines, fields=DeviceFields(engines.fields, [])))
    assert on_gpu.gpu_memory() == {"peak": 5, "used": 70}
    assert EngineRunner(engines).gpu_memory() is None


def test_a_timed_run_on_a_gpu_is_the_same_run(engine_dir, pair):
    """On the stand-in for a GPU: its events are the clock, and images are in its memory before the loop begins."""
    from runtime.backends.fields.cuda import CudaFields
    from runtime.backends.networks.onnxruntime_cuda import CudaOnnxRuntimeNetworks
    from tests.backends.host_gpu.gpu import open_host_device

    device, engine_set, schedule = open_host_device(), load_engine_set(engine_dir), parse_schedule("iterstop")
    networks = CudaOnnxRuntimeNetworks(engine_set, device, provider="CPUExecutionProvider", memory="cpu")
    engines = OpenEngines(engine_set, "cuda", "asked for", "fp32", 1, networks, CudaFields(device))
    expected, runner = register_arrays(engines, *pair, schedule), EngineRunner(engines)
    run = solve(runner, RunSettings(schedule, "ncc"), pair[1], pair[0])
    np.testing.assert_array_equal(run.flow, expected.flow)
    assert (run.counts, run.similarity) == (expected.counts, expected.similarity)
    assert runner.recorder.clock is device and runner.gpu_memory()["peak"] > 8 * pair[0].nbytes
    stages = {span.stage for span in run.spans}
    assert {"encode", "warp", "estimator", "compose", "upsample", "score", "finish"} <= stages


def test_a_device_brings_its_own_clock(engines, pair):
    class DeviceFields(Counted):
        def clock(self):
            return Ticks()

    fields = DeviceFields(engines.fields, [])
    assert isinstance(clock_of(fields), Ticks) and isinstance(clock_of(engines.fields), HostClock)
    runner = EngineRunner(dataclasses.replace(engines, fields=fields))
    run = solve(runner, RunSettings(parse_schedule("1,1,1,1"), "ncc"), pair[1], pair[0])
    assert all(span.seconds == 1 for span in run.spans)
    # start, ready and end, and two marks a span between start and end
    assert run.seconds["loop"] == 2 * (len(run.spans) - 1) + 2
