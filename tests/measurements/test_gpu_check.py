"""The GPU check without a GPU: its arithmetic, its verdicts, and its parts on stand-ins."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

from measurements import gpu_check
from measurements.gpu import kernel_tests, kernel_times, latency, machine, part, throughput
from measurements.gpu.agreement import Agreement, Candidate, Scans, compare, of_the_gpu
from runtime.backends.fields.cuda import CudaFields
from runtime.backends.fields.cuda_traffic import traffic
from runtime.errors import InputError, NotAvailableError
from runtime.images.overlap import common_labels
from runtime.workflows.benchmark.contenders.contender import EngineContender
from tests import scans
from tests.backends.host_gpu import gpu

SHAPE = (24, 32, 16)


def run(*arguments):
    return CliRunner().invoke(gpu_check.main, list(map(str, arguments)))


class TestCommand:
    def test_without_a_gpu_it_ends_with_one_line(self, monkeypatch, tmp_path):
        monkeypatch.setattr(gpu_check, "find_gpu", lambda: "this computer has no NVIDIA driver")
        result = run("--output", tmp_path / "out")
        assert result.exit_code == 1 and not (tmp_path / "out").exists()
        line = "Error: this check needs an NVIDIA GPU, but this computer has no NVIDIA driver; nothing was checked\n"
        assert result.output == line

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("--fixed", "a.nii"), "--fixed, --moving: expected both"),
            (("--fixed-labels", "a.nii"), "--fixed, --moving: expected both, and labels only with them"),
            (("--fixed", "a.nii", "--moving", "b.nii"), "--fixed: a.nii does not exist"),
            (("--fixed", "a", "--moving", "b", "--moving-labels", "c"), "got one, expected both or neither"),
        ],
    )
    def test_bad_input_ends_with_one_line(self, monkeypatch, arguments, message):
        monkeypatch.setattr(gpu_check, "find_gpu", lambda: object())
        result = run(*arguments)
        assert result.exit_code == 1 and message in result.output and result.output.count("\n") == 1

    @pytest.mark.parametrize("wrong", [[], ["a kernel"]])
    def test_what_is_wrong_decides_the_exit_code_and_is_written(self, monkeypatch, tmp_path, wrong):
        monkeypatch.setattr(gpu_check, "find_gpu", lambda: object())
        parts = [part.Part("First", ["a line"], {"a": 1}), part.Part("Second", wrong=wrong)]
        monkeypatch.setattr(gpu_check.Check, "parts", lambda check: iter(parts))
        result = run("--output", tmp_path)
        assert result.exit_code == bool(wrong)
        record = json.loads((tmp_path / part.DATA).read_text())
        assert record["finished"] and [each["title"] for each in record["parts"]] == ["First", "Second"]
        text = (tmp_path / part.TEXT).read_text()
        assert text.split() == result.stdout.partition("\nRecord:")[0].split()
        assert ("Wrong: 1.\n- Second: a kernel" if wrong else "Nothing is wrong.") in text


class TestPart:
    def test_one_broken_part_does_not_take_the_others_with_it(self):
        def broken():
            raise RuntimeError("two\nlines")

        def refused():
            raise InputError("in a line")

        assert part.guarded("a", broken).wrong == ["RuntimeError: two"]
        assert part.guarded("a", refused).wrong == ["in a line"]
        assert part.guarded("a", lambda: part.Part("a")).wrong == []

    def test_an_unfinished_record_says_so(self, tmp_path):
        part.write(tmp_path, "# Head", [part.Part("a", ["x"], {"shape": (1, 2)})], done=False)
        assert (tmp_path / part.TEXT).read_text().endswith("Not finished.\n")
        assert not json.loads((tmp_path / part.DATA).read_text())["finished"]

    def test_the_machine_is_told_with_and_without_a_gpu(self):
        found = machine.machine()
        assert found.lines[0].startswith("- GPU: ") and json.dumps(found.record)
        assert "numpy" in found.record["libraries"]


REPORT = """<testsuites><testsuite>
<testcase classname="tests.a" name="one"/><testcase classname="tests.a" name="two"><failure message="x"/></testcase>
<testcase classname="tests.b" name="three"><error message="y"/></testcase>
<testcase classname="tests.b" name="four"><skipped message="no such"/></testcase>
<testcase classname="tests.b" name="five"><skipped message="no such"/></testcase>
</testsuite></testsuites>"""


class TestKernelTests:
    def test_failures_and_errors_are_wrong_and_skips_are_told_once(self):
        found = kernel_tests.read_outcome(REPORT)
        assert found == kernel_tests.KernelTestOutcome(1, ("tests.a::two", "tests.b::three"), ("no such",))
        assert found.wrong() == ["failed: tests.a::two", "failed: tests.b::three"]

    def test_nothing_run_is_not_all_right(self):
        assert kernel_tests.KernelTestOutcome(0, (), ("no GPU",)).wrong() == ["no test ran on the GPU"]
        assert kernel_tests.KernelTestOutcome(1, (), ()).wrong() == []

    def test_the_sanitizers_first_complaint(self):
        output = "========= COMPUTE-SANITIZER\n========= Invalid __global__ read of size 4 bytes\n=========     at f\n"
        assert kernel_tests.sanitizer_summary(output) == "Invalid __global__ read of size 4 bytes"
        assert kernel_tests.sanitizer_summary("no device\nsupported") == "supported"

    def test_a_command_that_takes_too_long_is_ended(self):
        code, words = kernel_tests._run(["sleep", "30"], seconds=0.01)
        assert code == -1 and "more than" in words


class TestTraffic:
    """The traffic is the bytes of all input and output arrays."""

    def flow(self, scale=1):
        return np.zeros((*(size // scale for size in SHAPE), 3), np.float32).nbytes

    def image(self):
        return np.zeros(SHAPE, np.float32).nbytes

    def test_of_flows(self):
        assert traffic("compose", SHAPE) == 3 * self.flow()
        assert traffic("upsample", SHAPE, scale=2) == self.flow() + self.flow(2)
        assert traffic("folded_share", SHAPE) == self.flow()

    def test_of_images(self):
        assert traffic("score", SHAPE, scale=8) == 2 * self.image() + self.flow(8)
        assert traffic("warp", SHAPE) == 2 * self.image() + self.flow()
        assert traffic("extremes", SHAPE) == self.image()

    @pytest.mark.parametrize("dtype", [np.float16, np.float32])
    def test_of_features(self, dtype):
        features = np.zeros((*SHAPE, 8), dtype)
        assert traffic("warp_into", SHAPE, 8, dtype) == 2 * features.nbytes + self.flow()
        assert traffic("carry", SHAPE, 8, dtype) == 2 * features.nbytes


def result(counts=((1, 2, 2, 2),), dice=None):
    return {"counts": counts, "similarity": 0.9, "dice": dice}


def voxels(**values):
    return {"max": 0.0, "mean": 0.0, "p95": 0.0, "p99": 0.0, **values}


class TestVerdict:
    def test_fp32_is_held_to_the_worst_voxel_and_equal_counts(self):
        assert compare(result(), result(), voxels(max=0.01), "fp32")["refusal"] is None
        assert "(largest)" in compare(result(), result(), voxels(max=0.011), "fp32")["refusal"]
        assert "iterations" in compare(result(((1, 3, 2, 2),)), result(), voxels(), "fp32")["refusal"]

    def test_fp16_is_held_to_the_mean(self):
        other = result(((1, 3, 2, 2),))
        assert compare(other, result(), voxels(max=2.0, mean=0.05), "fp16")["refusal"] is None
        assert "(mean)" in compare(other, result(), voxels(mean=0.06), "fp16")["refusal"]

    @pytest.mark.parametrize("precision", ["fp32", "fp16"])
    def test_dice_may_differ_by_a_little_either_way(self, precision):
        for dice, passes in ((0.701, True), (0.699, True), (0.703, False), (0.697, False), (math.nan, False)):
            row = compare(result(dice=dice), result(dice=0.7), voxels(), precision)
            assert (row["refusal"] is None) == passes

    def test_what_is_not_a_number_fails(self):
        assert compare(result(), result(), voxels(max=math.nan, mean=math.nan), "fp16")["refusal"]

    def test_labels_count_that_both_have_enough_of(self):
        fixed, moving = (np.repeat([0, 1, 2, 3], [900, 50, 50, 49]), np.repeat([0, 1, 3, 4], [900, 50, 99, 99]))
        assert common_labels(fixed, moving) == [1]


class TestAgreement:
    """Runs on backends of the CPU, in place of the GPU's."""

    def test_every_backend_of_a_gpu_is_a_candidate_in_each_precision(self, engine_dir):
        names = {contender.name for contender in of_the_gpu(engine_dir)}
        assert {"tensorrt-rtx fp16", "tensorrt-rtx fp32", "tensorrt fp16", "cuda fp32", "cuda fp16"} <= names
        assert not names & {"onnxruntime fp32", "native fp32"}

    def test_right_and_wrong_candidates_on_a_generated_pair_and_on_scans(self, engine_dir, shipped, tmp_path):
        place_, files = scans.grid(), {}
        for name, move in (("fixed", lambda points: points), ("moving", scans.bend)):
            files[name] = scans.write_scan(tmp_path / f"{name}.nii.gz", place_, move)
            files[f"{name}_labels"] = scans.write_labels(tmp_path / f"{name}_labels.nii.gz", place_, move)
        same, other = (EngineContender(folder, "onnxruntime", "fp32") for folder in (engine_dir, shipped))
        not_here = EngineContender(engine_dir, "tensorrt", "fp16")
        agreement = Agreement(engine_dir, SHAPE, Scans(**files), [same, other, not_here])
        found = agreement.part()
        assert agreement.passed == [same] and agreement.failed == [other]
        first = found.record["rows"][0]
        assert [row["pair"] for row in found.record["rows"]] == ["a generated pair 24x32x16", "moving.nii.gz"] * 2
        assert first["voxels"]["max"] == 0 and first["refusal"] is None and first["dice"] is None
        assert 0 < found.record["rows"][1]["dice"] <= 1 and found.record["rows"][1]["dice_difference"] == 0
        assert found.record["not opened"][0]["name"] == "tensorrt fp16"
        assert all("onnxruntime fp32, " in line for line in found.wrong) and found.wrong
        text = found.text()
        assert "passes" in text and "fails" in text and "- not opened: tensorrt fp16: --backend: " in text

    def test_what_is_not_here_is_told_apart_from_what_is_broken(self):
        def opening(error):
            def open(progress):
                raise error

            return Candidate(SimpleNamespace(open=open))

        assert opening(NotAvailableError("no GPU")).try_open() == {"not_here": "no GPU"}
        with pytest.raises(InputError, match="another hash"):
            opening(InputError("another hash")).try_open()

    def test_no_backend_at_all_is_wrong(self, engine_dir):
        found = Agreement(engine_dir, SHAPE, candidates=[EngineContender(engine_dir, "tensorrt", "fp16")]).part()
        assert found.wrong == ["no backend of the GPU could be opened"]


def contenders(*names):
    return [EngineContender("engines", *name.split()) for name in names]


class TestLatency:
    def test_what_is_timed_has_passed_in_every_precision(self):
        passed = contenders("tensorrt-rtx fp16", "cuda fp32")
        assert latency.clean(passed, []) == passed
        assert latency.clean(passed, contenders("cuda fp16")) == passed[:1]

    def test_arguments(self):
        passed = contenders("tensorrt-rtx fp16", "tensorrt-rtx fp32", "cuda fp32")
        found = " ".join(latency.arguments("engines", passed, (8, 16, 24), None, torch=True, quick=False))
        assert found == (
            "benchmark --engine-dir engines --backend tensorrt-rtx,cuda --precision fp16,fp32 "
            "--shape 8,16,24 --against torch"
        )
        two = Scans("a.nii", "b.nii")
        found = " ".join(latency.arguments("engines", passed, (8, 16, 24), two, torch=False, quick=True))
        assert "--fixed a.nii --moving b.nii --crop-to 8,16,24 --runs 10" in found and "torch" not in found

    def test_a_refusal_is_wrong_and_leaves_no_record(self):
        found, record = latency.latency(["benchmark", "--backend", "abacus"], True)
        assert record is None and found.wrong[0].startswith("Error: --backend: got 'abacus'")

    def test_too_slow_is_noted(self):
        ratio = {"torch fp32 cuda": {"cuda fp32": {"median": 3.0}, "torch autocast cuda": {"median": 2.0}}}
        assert latency._slow({"against": ratio}) == [
            "cuda fp32 is 3.0 times as fast as torch fp32 cuda, target 5",
        ]

    def test_the_parts_of_the_loop_add_up(self):
        account = {"loop": 10.0, "encode": 1.0, "estimator": 6.0, "fields": 2.0, "overhead": 1.0}
        row = {"name": "a", "account": account, "samples": [{"executed": [(1, 2, 1, 1)]}], "card_memory": {"peak": 1}}
        on_host = {**row, "name": "b", "card_memory": None}
        found = latency.stages({"contenders": [row, on_host]})
        (only,) = found.record
        assert only["encode"] + only["estimator"] + only["fields"] + only["idle"] == only["loop"]
        assert only["decisions"] == 5 and "200" in found.text()

    def test_headings_go_below_the_parts_own(self):
        assert latency._one_level_down("# A\ntext\n## B") == ["### A", "text", "#### B"]


def test_throughput_is_relative_to_one_in_flight():
    record = [{"name": "a", "in_flight": n, "seconds": s} for n, s in ((1, 0.02), (2, 0.0125))]
    assert "".join(throughput.table(record)[-1].split()) == "|a|2|12.5|288000|1.60|"


KERNEL_SHAPE = (16, 24, 32)


class Noted:
    """Field operations that record the names of the methods called."""

    def __init__(self, fields, called):
        self._fields, self._called = fields, called

    def __getattr__(self, name):
        self._called.add(name)
        return getattr(self._fields, name)


class TestKernelTimes:
    """Runs on the stand-in for a GPU; checks what is timed and reported, not the times."""

    @pytest.fixture
    def device(self):

        return gpu.open_host_device()

    def test_every_verb_that_computes_is_timed(self, device):
        called = set()
        for case in kernel_times.cases(device, Noted(CudaFields(device), called), KERNEL_SHAPE):
            case.work()
        operations = {"warp_into", "fill_fixed", "compose", "upsample", "scorer", "warp", "folded_share", "extremes"}
        assert called == operations | {"halve", "smoother"}

    def test_the_table_has_a_row_for_every_kernel(self, device):
        found = kernel_times.measure(device, KERNEL_SHAPE, runs=2, copy_bytes=2**12, flush_bytes=2**10)
        assert json.dumps(found) and found["bandwidth"] > 0
        levels = {kernel["level"] for kernel in found["kernels"] if kernel["name"] == "score ncc"}
        assert levels == {1, 2, 3, 4} and all(len(kernel["samples"]) == 2 for kernel in found["kernels"])
        assert len(kernel_times.report(found).lines) == len(found["kernels"]) + 6

    def test_run_once_waits_and_reports_nothing(self, device, monkeypatch):
        gpu.seen(monkeypatch)
        assert kernel_times.run_once() is None


def test_shares_and_misses():
    def found(name, median):
        case = kernel_times.Case(name, 1, 1000, None)
        return kernel_times.row(case, [median, median], reached=1e6)

    rows = [found("score ncc", 0.0019), found("score ncc", 0.0021), found("score lncc", 1.0)]
    assert rows[0]["floor"] == 0.001 and rows[0]["share"] == pytest.approx(0.001 / 0.0019)
    report = kernel_times.report({"shape": (8, 8, 8), "bandwidth": 1e6, "nothing": 0.0, "kernels": rows})
    assert report.notes == ["score ncc, level 1: 2.1 times its floor, target 2"] and not report.wrong


def test_times_are_asked_for_after_all_work_is_sent():
    """Ticks represent events: reading seconds may wait, so it must not happen between two launches."""
    order = []
    device = SimpleNamespace(
        mark=lambda: order.append("mark") or len(order),
        wait=lambda mark: order.append("wait"),
        seconds=lambda start, stop: order.append("read") or float(stop - start),
        empty=lambda shape, dtype: None,
        launch_blocks=lambda *arguments: order.append("flush"),
    )
    flush = SimpleNamespace(size=1)
    found = kernel_times.times(device, lambda: order.append("work"), runs=2, flush=flush)
    assert found == [2.0, 2.0]
    rounds = kernel_times.WARMUP + 2
    assert order == ["flush", "mark", "work", "mark"] * rounds + ["wait"] + ["read"] * 2
