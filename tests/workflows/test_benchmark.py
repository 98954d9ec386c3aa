"""The benchmark from the user's side: its output, its files, its errors; and its worker processes."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import cli
import export.contender
import runtime.workflows.benchmark.options as options_module
from runtime.backends.registry import PRECISIONS
from runtime.errors import InputError
from runtime.loop.stop_rules import parse_schedule
from runtime.workflows.benchmark import BenchmarkOptions, parse_shapes, render, run_benchmark
from runtime.workflows.benchmark.contenders.contender import EngineContender, Others, RunSettings
from runtime.workflows.benchmark.contenders.process import Worker, call_once
from runtime.workflows.benchmark.contenders.timing import HostClock, Recorder
from runtime.workflows.benchmark.machine.host import Interference, machine_facts
from runtime.workflows.benchmark.measuring import end_to_end
from runtime.workflows.benchmark.options import SWEEP
from tests import scans

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("machine", "versions", "engine_set", "schedule", "pair", "gate", "contenders", "throughput", "doubts")
OF_A_CONTENDER = {"name", "library", "device", "precision", "loop", "finish", "stages", "samples", "peak_bytes"}


def run(*arguments):
    return CliRunner().invoke(cli.main, ["benchmark", *map(str, arguments)])


@pytest.fixture(scope="module")
def measured(engine_dir, tmp_path_factory):
    """One benchmark of everything but start-up, on two small scans: (what was printed, the record, the folder)."""
    folder = tmp_path_factory.mktemp("benchmark")
    fixed = scans.write_scan(folder / "f.nii.gz", scans.grid())
    moving = scans.write_scan(folder / "m.nii.gz", scans.grid(), scans.bend)
    arguments = ("--engine-dir", engine_dir, "--fixed", fixed, "--moving", moving, "--crop-to", "24,32,16")
    arguments += ("--backend", "onnxruntime", "--against", "torch", "--runs", 1, "--schedule", "1,1,1,1")
    arguments += ("--no-start-up", "--json", folder / "b.json", "--plot", folder / "b.png")
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout, json.loads((folder / "b.json").read_text()), folder


class TestRecord:
    def test_has_every_part(self, measured):
        _, record, _ = measured
        assert record["format"] == "rpnet-benchmark" and set(PARTS) <= record.keys()
        assert record["pair"]["shape"] == [24, 32, 16]
        assert {precision: len(graphs) for precision, graphs in record["engine_set"]["sha256"].items()} == {
            "fp32": 5,
            "fp16": 5,
        }
        assert {"cpu", "flags", "cores", "memory_bytes", "system", "load_average"} <= record["machine"].keys()

    def test_contenders_carry_raw_samples_and_what_was_made_of_them(self, measured):
        _, record, _ = measured
        ours, torch = record["contenders"]
        assert (ours["name"], torch["name"]) == ("onnxruntime fp32", "torch fp32")
        for row in (ours, torch):
            assert row.keys() >= OF_A_CONTENDER and len(row["samples"]) == 1
            assert row["loop"]["n"] == 1 and row["peak_bytes"] > 0
            assert row["loop"]["min"] == min(sample["seconds"]["loop"] for sample in row["samples"])
            assert all(sample["executed"] == [[1, 1, 1, 1]] for sample in row["samples"])
            assert row["account"]["gflop"]["total"] > 0 and row["account"]["peak_gflops"] > 0

    def test_the_gate_was_passed_against_the_definition(self, measured):
        _, record, _ = measured
        assert record["gate"]["reference"].startswith("the eager PyTorch reference implementation")
        reference, ours = record["gate"]["rows"]
        assert reference["reference"] and ours["voxels"]["max"] < 0.01 and ours["counts_equal"]

    def test_the_ratio_is_of_rounds(self, measured):
        _, record, _ = measured
        found = record["against"]["torch fp32"]["onnxruntime fp32"]
        assert found["n"] == 1 and found["min"] <= found["median"] <= found["max"]

    def test_whole_registrations_ran_both_ways_on_the_whole_scans(self, measured):
        _, record, _ = measured
        ways = record["whole"]["onnxruntime fp32"]
        assert ways.keys() == {"api", "command"}
        assert ways["api"]["working_shape"] == ways["command"]["working_shape"] == [40, 48, 40]
        assert ways["command"]["peak_bytes"] > 0 and "write" in ways["command"]["stages"]
        assert ways["command"]["seconds"]["min"] > sum(ways["command"]["stages"].values()) / 2

    def test_all_that_was_printed_is_in_the_record(self, measured):
        printed, record, _ = measured
        assert render(record).split() == printed.split()
        for title in ("Accuracy", "Speed", "Stages", "Where the time goes", "Times faster", "Whole registrations"):
            assert f"## {title}\n" in printed

    def test_the_picture_is_one(self, measured):
        assert (measured[2] / "b.png").read_bytes().startswith(b"\x89PNG")
        assert {path.name for path in measured[2].iterdir()} == {"b.json", "b.png", "f.nii.gz", "m.nii.gz"}


def test_a_sweep_fits_a_line_through_the_volumes(engine_dir, tmp_path):
    shapes = ("--shapes", "16,16,16 24,16,16", "--json", tmp_path / "b.json", "--plot", tmp_path / "b.svg")
    result = run("--engine-dir", engine_dir, *shapes, "--backend", "onnxruntime", "--runs", 1, "--warmup", 0)
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "b.json").read_text())
    assert record["schedule"]["name"] == "1,1,1,1"
    assert [row["shape"] for row in record["shapes"]] == [[16, 16, 16], [24, 16, 16]]
    assert all(row["gate"]["rows"][1]["voxels"]["max"] < 0.01 for row in record["shapes"])
    assert record["fits"]["onnxruntime fp32"].keys() == {"slope", "intercept", "deviation"}
    assert "ms per megavoxel" in result.stdout and render(record).split() == result.stdout.split()
    assert (tmp_path / "b.svg").read_text().startswith("<?xml")


def test_what_was_measured_is_kept_when_a_later_part_fails(engine_dir, tmp_path):
    path = tmp_path / "b.json"
    options = BenchmarkOptions(engine_dir, shape=(16, 16, 16), backends=("onnxruntime",), runs=1, warmup=0, json=path)
    others = Others(references=(EngineContender(engine_dir, "onnxruntime", "fp32"),))
    command = (sys.executable, "-c", "import sys; sys.exit('no such command')")
    with pytest.raises(InputError, match="fp32 failed: no such command"):
        run_benchmark(options, lambda on_gpu: others, command=command)
    record = json.loads(path.read_text())
    assert record["contenders"][0]["loop"]["n"] == 1 and "whole" not in record
    assert record["gate"]["reference"] == "the same engine set on onnxruntime fp32"


class TestErrors:
    """One line, no figures, and before any work."""

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("--shape", "20,16,16"), "--shape: got (20, 16, 16), expected three multiples of 8, at least 16"),
            (("--shape", "64,64"), "expected 3 comma-separated int value"),
            (("--shapes", "64"), "--shapes: got '64', expected default, or shapes such as"),
            (("--shapes", "16,16,16", "--shape", "16,16,16"), "--shapes: runs on its own generated pairs"),
            (("--crop-to", "16,16,16"), "--crop-to: is for two scans, but none are given"),
            (("--fixed", "README.md"), "--fixed, --moving: got one, expected both or neither"),
            (("--fixed", "nowhere.nii", "--moving", "README.md"), "--fixed: nowhere.nii does not exist"),
            (("--fixed", "README.md", "--moving", "README.md", "--shape", "16,16,16"), "--shape: is for a generated"),
            (("--backend", "abacus"), "--backend: got 'abacus', expected auto, all, or some of"),
            (("--backend", "onnxruntime,abacus"), "--backend: got 'abacus', expected auto, all, or some of"),
            (("--precision", "fp8"), f"--precision: got 'fp8', expected auto, all, or some of {', '.join(PRECISIONS)}"),
            (("--json", "nowhere/b.json"), "--json: cannot write to nowhere"),
            (("--plot", "nowhere/b.png"), "--plot: cannot write to nowhere"),
            (("--json", "docs"), "--json: docs is a folder"),
            (("--plot", "b.docx"), "--plot: got b.docx, expected a name ending in .png, .svg, .pdf"),
            (("--engine-dir", "nowhere"), "--engine-dir: no folder nowhere"),
            (("--schedule", "now"), "--schedule: got 'now', expected iterstop"),
            (("--threads", "5000", "--shape", "16,16,16"), "--threads: got 5000, expected 1 to"),
            (("--runs", "0"), "0 is not in the range"),
        ],
    )
    def test_bad_input(self, monkeypatch, arguments, message):
        monkeypatch.chdir(Path(cli.__file__).parent)
        assert message in failure(run(*arguments))

    def test_what_only_one_backend_cannot_do_is_refused(self, engine_dir):
        arguments = ("--engine-dir", engine_dir, "--backend", "onnxruntime", "--precision", "bf16")
        assert "--precision: onnxruntime computes in fp32" in failure(run(*arguments))

    def test_torch_that_is_not_there(self, monkeypatch):
        monkeypatch.setattr(export.contender.importlib.util, "find_spec", lambda name: None)
        message = "--against: torch needs torch and onnx, not installed; pip install -r requirements.txt"
        assert message in failure(run("--against", "torch"))

    def test_matplotlib_that_is_not_there(self, monkeypatch, tmp_path):
        monkeypatch.setattr(options_module.importlib.util, "find_spec", lambda name: None)
        assert "--plot: needs the package matplotlib" in failure(run("--plot", tmp_path / "b.png"))

    def test_a_gate_that_is_not_passed_tells_no_speed(self, engine_dir, shipped, tmp_path):
        """The reference is built from other weights than the timed engines."""
        reported, others = [], Others(references=(export.contender.TorchContender(shipped),))
        options = BenchmarkOptions(engine_dir, shape=(16, 16, 16), backends=("onnxruntime",), json=tmp_path / "b.json")
        with pytest.raises(InputError, match="onnxruntime fp32 is not timed: its flow differs by"):
            run_benchmark(options, lambda on_gpu: others, echo=reported.append)
        assert not (tmp_path / "b.json").exists()
        assert len(reported) == 1 and reported[0].startswith("# Benchmark") and "ms" not in reported[0].split()


def failure(result) -> str:
    assert result.exit_code != 0 and isinstance(result.exception, SystemExit), result.exception
    lines = result.stderr.splitlines()
    assert lines[-1].startswith("Error: ") and not result.stdout
    return lines[-1]


def test_shapes_of_a_sweep():
    assert parse_shapes("default") == SWEEP and SWEEP[0] == (64, 64, 64) and SWEEP[-1] == (192, 224, 192)
    assert parse_shapes("16,16,16  24,24,24") == ((16, 16, 16), (24, 24, 24))


@dataclass
class Target:
    """What a worker holds in these tests."""

    start: int

    def add(self, number):
        self.start += number
        return self.start, os.getpid()

    def fail(self, kind):
        raise kind("two\nlines")

    def end(self):
        os._exit(3)

    def variable(self, name):
        return os.environ.get(name)

    progress: Callable[[str], None] = print

    def speak(self, words):
        self.progress(words)
        return len(words)


class TestWorker:
    def test_holds_its_object_in_a_process_of_its_own(self):
        with Worker(Target(1), "t") as worker:
            assert [worker.call("add", n)[0] for n in (1, 2)] == [2, 4]
            assert worker.call("add", 0)[1] != os.getpid()

    def test_errors_come_back_as_one_line_and_it_lives_on(self):
        with Worker(Target(1), "t") as worker:
            for kind, words in (
                (InputError, "two lines"),
                (MemoryError, "benchmark: t failed in fail: MemoryError: two lines"),
            ):
                with pytest.raises(InputError) as caught:
                    worker.call("fail", kind)
                assert str(caught.value) == words
            assert worker.call("add", 1)[0] == 2

    def test_what_it_says_on_the_way_is_passed_on(self):
        reported = []
        with Worker(Target(1), "t", progress=reported.append) as worker:
            assert worker.call("speak", "building") == 8 and reported == ["t: building"]
            assert worker.call("add", 1)[0] == 2

    def test_its_end_is_an_error(self):
        with Worker(Target(1), "t") as worker, pytest.raises(InputError, match=r"t ended unexpectedly \(exit code 3\)"):
            worker.call("end")

    def test_environment_is_the_workers_only(self, monkeypatch):
        monkeypatch.delenv("RPNET_TEST", raising=False)
        assert call_once(Target(0), "t", "variable", "RPNET_TEST", environment={"RPNET_TEST": "x"}) == "x"
        assert "RPNET_TEST" not in os.environ


@dataclass(frozen=True)
class Scripted:
    """A contender without a network, to test the order of calls."""

    name: str = "scripted"
    words: str = "nothing"

    def open(self, progress):
        return self

    facts = {"backend": "none"}  # noqa: RUF012
    recorder = Recorder(HostClock())

    def running(self):
        import contextlib

        return contextlib.nullcontext()

    def upload(self, image):
        return image

    def fixed_side(self, fixed, similarity):
        return fixed

    def pair(self, side, moving):
        return StillPair(), 0.5

    def finish(self, flow):
        return np.zeros((3, 16, 16, 16), np.float32), 0.0


class StillPair:
    def score(self, level, flow):
        time.sleep(0.001)
        return 0.5

    def __getattr__(self, name):
        return lambda *arguments: None


@dataclass(frozen=True)
class NoKernels:
    def compile(self):
        assert os.listdir(os.environ["RPNET_CACHE"]) == []
        return 1.5


def test_start_up_is_measured_in_an_empty_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(end_to_end, "Kernels", NoKernels)
    np.savez(tmp_path / "pair.npz", fixed=np.zeros((16, 16, 16)), moving=np.zeros((16, 16, 16)))
    stages = []
    task = RunSettings(parse_schedule("1,1,1,1"), "ncc")
    found = end_to_end.start_up([Scripted()], tmp_path / "pair.npz", task, stages.append)
    assert found["kernels"] == 1.5
    times = found["contenders"]["scripted"]
    assert times.keys() == {"cold", "warm"}
    assert all(times[state].keys() == {"start", "open", "first", "steady"} for state in times)
    assert stages == ["compiling kernels in an empty cache", "scripted, cold start", "scripted, warm start"]


def test_machine_facts_are_plain():
    facts = machine_facts()
    assert json.loads(json.dumps(facts)) == facts and facts["cores"] >= 1


def test_memory_is_this_programs():
    """A new one's: where the peak is gigabytes, so is the block that raises it."""
    code = "from runtime.host.machine import peak_bytes; before = peak_bytes(); block = b'x' * (before + 2**24)"
    code += "; assert before > 0 and peak_bytes() >= before + 2**24 and block"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_own_work_is_not_others_work():
    with Interference() as seen:
        end = time.process_time() + 0.05
        while time.process_time() < end:
            pass
    assert seen.processor_seconds >= 0.05
    assert seen.others is None or 0 <= seen.others <= 1
