"""Two processes on this machine, started by torchrun, train the same weights as one, with one set of files."""

import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from runtime.errors import InputError
from tests.train.training import generated_run, rows, weights, write_subjects
from train.fit import fit
from train.steps import distributed
from train.steps.distributed import Processes
from train.steps.loader import Batch

pytestmark = pytest.mark.usefixtures("own_threads")
ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 240
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def start(output: Path, validation: Path, *more: str) -> subprocess.Popen:
    """The run of `alone`, by two processes with one pair each."""
    words = shlex.split(
        "--generated --shape 16,16,16 --precision fp32 --device cpu --threads 1 --average 0.9 --validate-every 2 "
        "--validation-pairs 3 --schedule cosine --warmup 2 --learning-rate 1e-3 --clip 1 --seed 5 --dice 0.5 "
        "--iterations 1,2,1,2 --pictures 1"
    )
    command = (*TORCHRUN, "cli.py", "train", *words, "--validation", validation, "--output", output, *more)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        list(map(str, command)), cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@pytest.fixture
def validation(tmp_path):
    return write_subjects(tmp_path, count=3)


@pytest.fixture
def alone(tmp_path, validation):
    """The same run in this process, with two pairs per step."""
    return generated_run(
        tmp_path / "alone", validation_pairs=3, accumulate=2, dice=0.5, iterations=(1, 2, 1, 2), pictures=1,
        validation=str(validation),
    )  # fmt: skip


def close(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.allclose(a[name], b[name], rtol=0, atol=1e-6) for name in a)


def test_two_processes_are_one_with_twice_the_pairs(alone, validation, tmp_path):
    started = start(tmp_path / "both", validation, "--steps", "6")
    expected = fit(alone)
    printed, errors = started.communicate(timeout=PATIENCE)
    assert started.returncode == 0, errors
    both = replace(expected, last_path=tmp_path / "both" / "last.pt", log_path=tmp_path / "both" / "log.csv")
    assert close(expected.last_path, both.last_path) and close(expected.best_path, tmp_path / "both" / "best.pt")
    skipped = ("seconds",)
    tables = [[{k: v for k, v in row.items() if k not in skipped} for row in rows(r)] for r in (expected, both)]
    assert tables[0] == tables[1], "validation is shared out, and its mean is that of all pairs"
    assert printed.count("finished after 6 steps") == 1, "only the first process speaks"
    names = {path.name for path in (tmp_path / "both").iterdir()}
    assert names == {path.name for path in alone.output.iterdir()}


def test_ctrl_c_ends_both_after_the_same_step_and_one_process_can_go_on(alone, validation, tmp_path):
    started = start(tmp_path / "both", validation, "--steps", "100000")
    log, deadline = tmp_path / "both" / "log.csv", time.monotonic() + PATIENCE
    while not log.exists() or len(log.read_text().splitlines()) < 4:
        assert started.poll() is None and time.monotonic() < deadline, started.communicate()[1]
        time.sleep(0.05)
    started.send_signal(signal.SIGINT)
    printed, errors = started.communicate(timeout=PATIENCE)
    assert "interrupted, --resume continues" in printed, errors
    done = len(log.read_text().splitlines()) - 1
    resumed = replace(alone, output=tmp_path / "both", steps=100000, resume=True)
    result = fit(resumed, lambda progress: os.kill(os.getpid(), signal.SIGINT))
    assert result.steps == done + 1 and result.interrupted, "last.pt knew the step that the log ends with"


STEP = """
import os, torch
from train.steps.distributed import joined
layer = torch.nn.Linear(2, 2)
with joined("cpu") as processes:
    layer(torch.ones(2)).sum().backward()
    processes.add_up(weight.grad for weight in layer.parameters())
    torch.optim.Adam(layer.parameters()).step()
    during = os.listdir("/proc/self/task")
print(len(during) > 1, *(open(f"/proc/self/task/{thread}/comm").read() for thread in os.listdir("/proc/self/task")))
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are listed as Linux does")
def test_no_thread_of_the_connection_outlives_it(tmp_path):
    (tmp_path / "step.py").write_text(STEP)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*TORCHRUN, tmp_path / "step.py"], env=environment, text=True, capture_output=True)
    assert done.returncode == 0 and done.stdout.count("True") == 2, done.stderr
    assert "gloo" not in done.stdout, "at the interpreter's end it may abort the process"


class TestAProcessAndItsShare:
    def test_a_steps_pairs_are_the_same_however_many_share_them(self):
        for step in (0, 3):
            whole = [*Batch(6, Processes()).mine(step)]
            shares = [[*Batch(3, Processes(rank, 2)).mine(step)] for rank in range(2)]
            assert whole == list(range(6 * step, 6 * step + 6)) == sorted(shares[0] + shares[1])
            assert all(index % 2 == rank for rank in range(2) for index in shares[rank])

    def test_more_processes_than_gpus_are_refused(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        with pytest.raises(InputError, match=r"processes: got 2 on this machine, which has 1 CUDA device"):
            distributed._take_gpu(Processes(1, 2, 1, 2))

    def test_without_torchrun_there_is_one_process(self, monkeypatch):
        for name in ("RANK", "WORLD_SIZE"):
            monkeypatch.delenv(name, raising=False)
        with distributed.joined("cpu") as processes:
            assert processes == Processes() and processes.first and distributed.is_first()

    def test_processes_that_cannot_be_connected_are_one_line(self, monkeypatch):
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.delenv("MASTER_ADDR", raising=False)
        with pytest.raises(InputError, match="processes: 2 were announced"), distributed.joined("cpu"):
            pass
