"""Compilation happens once: after the warm-up nothing is compiled, neither in another process nor in a fresh copy."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from runtime.registration import warmup

ROOT = Path(__file__).resolve().parents[2]
COUNT = """
    import json, sys
    from numba.core import event

    class Compilations(event.Listener):
        names = []
        def on_start(self, event):
            self.names.append(event.data["dispatcher"].py_func.__qualname__)
        def on_end(self, event):
            pass

    event.register("numba:compile", Compilations())
    from runtime.registration import warmup
    from runtime.host.compiled import KERNELS
    cold = warmup.is_cold()
    for step in warmup.STEPS.values():
        step()
    unused = [kernel.py_func.__qualname__ for kernel in KERNELS if not kernel.signatures]
    print(json.dumps({"cold": cold, "compiled": Compilations.names, "unused": unused, "kernels": len(KERNELS)}))
"""


@pytest.fixture(scope="module")
def warm():
    warmup.warm_up()


def counted(folder: Path) -> dict:
    """Return what a new process, in a folder with the package, compiles when it uses every kernel."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(COUNT)], cwd=folder, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def here(warm):
    return counted(ROOT)


def test_another_process_compiles_nothing(here):
    assert not here["cold"]
    assert here["compiled"] == []


def test_the_warm_up_uses_every_kernel(here):
    assert here["kernels"] > 10
    assert set(here["unused"]) <= {"repeat_block"}  # only the benchmark asks for it


def test_a_fresh_copy_compiles_nothing(warm, tmp_path):
    """Reinstalled, or cloned elsewhere: other folders, other dates, the same contents."""
    shutil.copytree(ROOT / "runtime", tmp_path / "runtime", ignore=shutil.ignore_patterns("__pycache__"))
    for path in tmp_path.rglob("*.py"):
        os.utime(path, (1e9, 1e9))
    found = counted(tmp_path)
    assert not found["cold"]
    assert found["compiled"] == []


def test_a_changed_kernel_is_compiled_again(warm, tmp_path):
    shutil.copytree(ROOT / "runtime", tmp_path / "runtime", ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "runtime" / "backends" / "fields" / "cpu_cells.py").open("a") as file:
        file.write("# another\n")
    code = "from runtime.registration.warmup import is_cold; print(is_cold())"
    environment = os.environ | {"RPNET_CACHE": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "True", done.stderr


def test_the_command_says_in_one_line_what_it_does(warm, monkeypatch, capsys):
    warmup.main([])
    assert capsys.readouterr().out.count("\n") == 1
    monkeypatch.setattr(warmup, "is_cold", lambda: True)
    monkeypatch.setattr(warmup, "warm_up", lambda: None)
    warmup.main([])
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "Compiling" in said


def test_without_a_second_process_all_is_compiled_in_this_one(monkeypatch, tmp_path):
    done = []
    monkeypatch.setattr(warmup, "STEPS", {name: lambda name=name: done.append(name) for name in "abc"})
    monkeypatch.setattr(warmup, "_stamp", lambda: tmp_path / "stamp")
    monkeypatch.setattr(sys, "executable", None)
    warmup.warm_up()
    assert done == ["a", "b", "c"]
    assert not warmup.is_cold()
