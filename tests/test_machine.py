"""What the machine says of itself: limits of containers and batch jobs, peaks, and systems that say less."""

import math
import resource
import sys

import numpy as np
import pytest

from runtime import machine
from runtime.example import example_pair

GIB = 2**30
FREE = 64 * GIB


class TestLimits:
    """Control groups, version 2; this process is in the group job/step."""

    @pytest.fixture
    def limit(self, tmp_path, monkeypatch):
        """Sets up a group: its limit, what is used of it, and how much of that is file contents nobody needs."""
        own = tmp_path / "own"
        own.write_text("1:name=systemd:/other\n0::/job/step\n")
        monkeypatch.setattr(machine, "OWN_CGROUP", own)
        monkeypatch.setattr(machine, "CGROUP", tmp_path / "groups")
        monkeypatch.setattr(machine, "_free_memory", lambda: FREE)

        def make(group, most, used=0, inactive=0):
            folder = tmp_path / "groups" / group
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "memory.max").write_text(f"{most}\n")
            (folder / "memory.current").write_text(f"{used}\n")
            (folder / "memory.stat").write_text(f"anon 1\ninactive_file {inactive}\nactive_file 2\n")
            return folder

        return make

    def test_file_contents_that_nobody_needs_are_available(self, limit):
        limit("job/step", 10 * GIB, 9 * GIB, inactive=6 * GIB)
        assert machine.available_bytes() == 7 * GIB

    def test_the_limit_may_be_that_of_a_group_around_ours(self, limit):
        """The batch system limits the job, not its steps."""
        limit("job/step", "max", GIB)
        limit("job", 4 * GIB, GIB)
        limit("other", GIB)
        assert machine.available_bytes() == 3 * GIB

    def test_the_tightest_counts(self, limit):
        limit("job/step", 9 * GIB)
        limit("job", 8 * GIB)
        limit("", 7 * GIB)
        assert machine.available_bytes() == 7 * GIB

    def test_in_a_container_the_groups_own_path_may_not_exist(self, limit):
        limit("", 2 * GIB, 3 * GIB)
        assert machine.available_bytes() == 0

    @pytest.mark.parametrize("name", ["memory.max", "memory.current", "memory.stat"])
    def test_a_missing_file_is_no_limit(self, limit, name):
        (limit("job/step", GIB) / name).unlink()
        assert machine.available_bytes() == FREE

    @pytest.mark.parametrize("text", ["", "4:memory:/job/step\n", None])
    def test_without_version_2_there_is_no_limit(self, limit, text):
        limit("job/step", GIB)
        machine.OWN_CGROUP.unlink() if text is None else machine.OWN_CGROUP.write_text(text)
        assert machine.available_bytes() == FREE


class TestPeak:
    def test_it_is_the_systems_high_water_mark(self, tmp_path, monkeypatch):
        monkeypatch.setattr(machine, "STATUS", tmp_path / "status")
        (tmp_path / "status").write_text("Name:\tpython\nVmHWM:\t  5 kB\nVmRSS:\t  4 kB\n")
        assert machine.peak_bytes() == 5 * 1024

    @pytest.mark.parametrize("text", ["Name:\tpython\nVmRSS:\t  4 kB\n", None])
    def test_where_that_is_not_told_it_is_what_getrusage_says(self, tmp_path, monkeypatch, text):
        monkeypatch.setattr(machine, "STATUS", tmp_path / "status")
        if text:
            (tmp_path / "status").write_text(text)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        assert machine.peak_bytes() >= peak > 0


def test_a_fixed_scan_holds_what_a_further_moving_one_is_spared(engines):
    fixed, _ = example_pair((32, 32, 32))
    side = engines.fixed_side(fixed, "ncc")
    held = sum(buffer.nbytes for buffer in side.inputs.values())
    assert machine.SIDE * math.prod(fixed.shape) <= held <= machine.LOOP * math.prod(fixed.shape)


def test_memory_that_lies_unused_here_is_spared_too():
    from runtime.heap import ARRAYS

    ARRAYS.clear()
    working, before = 10**7, machine.needed_bytes(10**7, again=True)
    assert before < machine.needed_bytes(working)
    memory = ARRAYS.empty((2**24,))
    assert machine.needed_bytes(working, again=True) == before
    del memory
    assert machine.needed_bytes(working, again=True) == before - 2**24 * np.float32().nbytes
    ARRAYS.clear()
