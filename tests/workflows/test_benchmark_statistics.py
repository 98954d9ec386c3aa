"""The arithmetic of the benchmark: summaries, ratios, line fits, work, and sums that must agree."""

import subprocess
from types import SimpleNamespace

import numpy as np
import pytest

from runtime.backends.engine_set import load_engine_set
from runtime.workflows.benchmark.contenders.arithmetic import MatrixProduct, NetworkWork
from runtime.workflows.benchmark.machine import gpu as facts
from runtime.workflows.benchmark.measuring.rounds import account, run_warnings, stage_rows
from runtime.workflows.benchmark.measuring.statistics import line_fit, percentile, ratios, spread, summary
from runtime.workflows.benchmark.options import BenchmarkOptions
from runtime.workflows.benchmark.report.cells import ms
from runtime.workflows.benchmark.report.plot import parts_of

BUS = "0000:65:00.0"


@pytest.mark.parametrize("count", [1, 2, 7, 10, 99, 100, 250])
@pytest.mark.parametrize("percent", [50, 90, 95, 99])
def test_percentiles_are_observed_values_of_nearest_rank(count, percent):
    values = np.random.default_rng(count).random(count).tolist()
    expected = np.percentile(values, percent, method="inverted_cdf")
    assert percentile(values, percent) == expected and expected in values


def test_p99_of_few_runs_is_the_largest_and_nothing_better():
    assert summary(list(range(1, 11)))["p99"] == 10
    assert summary(list(range(1, 201)))["p99"] == 198


def test_summary_of_known_numbers():
    expected = {"n": 4, "min": 1, "p10": 1, "median": 2.5, "mean": 4, "p90": 10, "p95": 10, "p99": 10, "max": 10}
    assert summary([3, 1, 10, 2]) == expected


def test_spread_sees_the_slow_tenth_and_not_the_one_outlier_above_it():
    assert spread([2.0] * 5) == 0
    assert spread([1.0] * 10 + [9.0]) == 0
    assert spread([1.0] * 8 + [2.0, 2.0]) == 1


def test_ratios_are_taken_round_by_round():
    """A machine that slows down for both contenders in one round does not change the ratio."""
    assert ratios([4, 40, 4], [2, 20, 2]) == {"median": 2, "min": 2, "max": 2, "n": 3}
    with pytest.raises(ValueError):
        ratios([1, 2], [1])


def test_line_fit():
    x = np.array([1.0, 2.0, 4.0])
    fit = line_fit(x, 3 * x + 1)
    assert fit["slope"] == pytest.approx(3) and fit["intercept"] == pytest.approx(1)
    assert fit["deviation"] == pytest.approx(0, abs=1e-9)
    assert line_fit([1, 2, 3], [1, 2.3, 3])["deviation"] == pytest.approx(0.2 / 2.1)
    assert line_fit([2.0], [6.0]) == {"slope": 3.0, "intercept": 0.0, "deviation": 0.0}


class TestWork:
    def test_by_hand(self, engine_dir):
        """One voxel costs 2 x 27 x channels in x channels out; a level has 1/8 of the voxels of the one before."""
        work, voxels = NetworkWork.of(load_engine_set(engine_dir)), 16 * 24 * 32
        assert work.encode((16, 24, 32)) == 54 * voxels * (1 * 8 + 8 * 16 / 8 + 16 * 32 / 64 + 32 * 32 / 512)
        fine = 16 * 16 + 2 * 16 * 16 + 16 * 8 + 8 * 3
        coarse = 64 * 32 + 2 * 32 * 32 + 32 * 16 + 16 * 3
        assert work.estimator(1, (16, 24, 32)) == 54 * voxels * fine
        assert work.estimator(4, (16, 24, 32)) == 54 * voxels * coarse / 512

    def test_as_torch_counts_it(self, engine_dir):
        import torch
        from torch.utils.flop_counter import FlopCounterMode

        from train.model.network import NetworkConfig, RPNet

        work, network = NetworkWork.of(load_engine_set(engine_dir)), RPNet(NetworkConfig())
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            features = network.encode(torch.zeros(1, 1, 16, 24, 32))
        assert work.encode((16, 24, 32)) == counter.get_total_flops()
        for level, maps in features.items():
            with FlopCounterMode(display=False) as counter, torch.inference_mode():
                network.estimate(level, maps, maps)
            assert work.estimator(level, (16, 24, 32)) == counter.get_total_flops()

    def test_a_registration_is_two_encodings_and_its_iterations(self, engine_dir):
        work, shape = NetworkWork.of(load_engine_set(engine_dir)), (16, 16, 16)
        one = work.registration(shape, [(1, 0, 2, 0)])
        assert one["encode"] == pytest.approx(2 * work.encode(shape) / 1e9)
        expected = work.estimator(4, shape) + 2 * work.estimator(2, shape)
        assert one["estimator"] == pytest.approx(expected / 1e9)
        assert one["total"] == one["encode"] + one["estimator"]
        assert work.registration(shape, [(1, 1, 1, 1)] * 3)["encode"] == pytest.approx(4 * work.encode(shape) / 1e9)

    def test_matrix_product_gives_a_rate(self):
        assert MatrixProduct(1, size=64).measured_peak() > 0


def sample(loop, spans, finish=1.0, others=0.0):
    return {"seconds": {"loop": loop, "finish": finish, "fixed side": 0.0}, "spans": spans, "others": others}


SAMPLES = [
    sample(10.0, [("encode", None, 1.0), ("estimator", 1, 4.0), ("estimator", 1, 2.0), ("warp", 1, 2.0)]),
    sample(14.0, [("encode", None, 3.0), ("estimator", 1, 6.0), ("estimator", 1, 2.0), ("warp", 1, 2.0)]),
]


def test_stage_rows_are_per_call_and_shares_per_run():
    rows = {(row["stage"], row["level"]): row for row in stage_rows(SAMPLES)}
    assert next(iter(rows)) == ("estimator", 1), "the largest share comes first"
    estimator = rows["estimator", 1]
    assert estimator["calls"] == 2 and estimator["seconds"]["n"] == 4 and estimator["seconds"]["max"] == 6
    assert estimator["share"] == pytest.approx(14 / 26)


def test_the_account_adds_up_to_the_loop():
    found = account(SAMPLES, {"encode": 10.0, "estimator": 50.0, "total": 60.0}, peak=20.0)
    parts = [found[name] for name in ("estimator", "encode", "fields", "overhead")]
    assert parts == [7, 2, 2, 1] and sum(parts) == found["loop"] == 12
    assert found["gflops"] == 5 and found["share_of_peak"] == 0.25 and found["share_of_peak_fastest"] == 0.3
    assert found["floor"] == {"encode": 0.5, "estimator": 2.5, "total": 3.0}


def test_without_a_measured_peak_there_is_no_floor():
    found = account(SAMPLES, {"encode": 10.0, "estimator": 50.0, "total": 60.0}, peak=None)
    assert "floor" not in found and found["gflops"] == 5


def test_a_picture_shows_all_of_the_time():
    row = {"stages": stage_rows(SAMPLES), "loop": {"mean": 12.0}, "finish": {"mean": 1.0}}
    parts = parts_of(row)
    assert sum(parts.values()) == pytest.approx(13) and parts["estimator 1"] == 7 and parts["other"] == 2


def test_milliseconds_have_three_digits_and_microseconds_at_most():
    assert [ms(value) for value in (1.2345, 0.012345, 0.0012345, 0.00012345, 0.0, None)] == [
        *("1234", "12.3", "1.23", "0.123", "0.000", "-")
    ]


class TestRounds:
    def test_more_of_them_on_a_gpu(self):
        assert BenchmarkOptions().rounds(on_gpu=False) == (10, 1)
        assert BenchmarkOptions().rounds(on_gpu=True) == (40, 3)

    @pytest.mark.parametrize("on_gpu", [True, False])
    def test_what_is_asked_for_holds_everywhere(self, on_gpu):
        assert BenchmarkOptions(runs=2, warmup=0).rounds(on_gpu) == (2, 0)


class TestGpuFacts:
    answer = "580.10, 2520, 3105, 10501, [N/A], 41, 450.00, 812, 37, Enabled, Default"

    def asked(self, answer, monkeypatch):
        monkeypatch.setattr(facts.shutil, "which", lambda name: name)
        return facts.smi_facts(BUS, lambda command, **options: SimpleNamespace(stdout=f"{answer}\n"))

    def test_what_nvidia_smi_says(self, monkeypatch):
        found = self.asked(self.answer, monkeypatch)
        assert found["clock_mhz"] == 2520 and found["power_limit_w"] == 450 and found["persistence_mode"] == "Enabled"
        assert found["driver_version"] == "580.10" and "largest_memory_clock_mhz" not in found

    def test_nvidia_smi_that_is_not_there_or_fails(self, monkeypatch):
        def fail(*arguments, **options):
            raise subprocess.CalledProcessError(9, "nvidia-smi")

        monkeypatch.setattr(facts.shutil, "which", lambda name: name)
        assert facts.smi_facts(BUS, fail) == {}
        monkeypatch.setattr(facts.shutil, "which", lambda name: None)
        assert facts.smi_facts(BUS, fail) == {}

    def test_a_gpu_in_a_line(self, monkeypatch):
        gpu = {"name": "RTX", "capability": (8, 9), "memory_bytes": 24 * 2**30, "driver": (13, 0)}
        assert facts.gpu_words(gpu) == "RTX: 24.0 GiB, compute capability 8.9, for CUDA 13.0"
        words = facts.gpu_words({**gpu, **self.asked(self.answer, monkeypatch)})
        assert "2520 of 3105 MHz, at most 450 W" in words

    def test_a_busy_gpu_is_doubted(self):
        assert facts.gpu_warnings({"used_percent": 37.0}) == [
            "the GPU was 37% busy before the start; other processes use it"
        ]
        assert facts.gpu_warnings({"used_percent": 0.0}) == facts.gpu_warnings(None) == []


def test_doubts_are_told():
    assert run_warnings("a", SAMPLES[:1] * 3) == []
    assert "a: runs spread by 33%" in run_warnings("a", SAMPLES)[0]
    assert "other processes used 50% of the machine" in run_warnings("a", [sample(1.0, [], others=0.5)])[0]
    assert "exceeds the measured peak" in run_warnings("a", SAMPLES[:1], {"share_of_peak_fastest": 1.1})[0]
