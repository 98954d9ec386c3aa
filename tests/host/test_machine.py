"""Facts about the machine: limits of containers and batch jobs, peak memory, and systems that report less."""

import gzip
import importlib.util
import math
import os
import re
import resource
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from runtime.backends.parity import example_pair
from runtime.errors import InputError, ScarceError
from runtime.host import limits, machine
from runtime.images.volume import read_volume
from tests import scans

ROOT = Path(__file__).resolve().parents[2]
GIB = 2**30
FREE = 64 * GIB


class TestLimits:
    """Control groups, version 2; this process is in the group job/step."""

    @pytest.fixture
    def limit(self, tmp_path, monkeypatch):
        """Set up a group: its limit, the memory used, and how much of that is file cache that can be dropped."""
        own = tmp_path / "own"
        own.write_text("1:name=systemd:/other\n0::/job/step\n")
        monkeypatch.setattr(limits, "OWN_CGROUP", own)
        monkeypatch.setattr(limits, "CGROUP", tmp_path / "groups")
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
        limits.OWN_CGROUP.unlink() if text is None else limits.OWN_CGROUP.write_text(text)
        assert machine.available_bytes() == FREE

    def test_what_is_left_is_not_what_could_be_had(self, limit):
        limit("job", 4 * GIB, 3 * GIB)
        assert (machine.available_bytes(), machine.most_bytes()) == (GIB, 4 * GIB)


class TestOlderControlGroups:
    """Version 1: a tree for each controller; this process is in the group /job of most."""

    @pytest.fixture
    def group(self, tmp_path, monkeypatch):
        """Write files of a group, by controller and path."""
        own = tmp_path / "own"
        own.write_text("11:cpu,cpuacct:/job\n4:memory:/job\n1:name=systemd:/x\n0::/\n")
        monkeypatch.setattr(limits, "OWN_CGROUP", own)
        monkeypatch.setattr(limits, "CGROUP", tmp_path / "groups")
        monkeypatch.setattr(machine, "_free_memory", lambda: FREE)
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(8))
        for name in limits.PROCESSORS:
            monkeypatch.delenv(name, raising=False)

        def make(group, **files):
            folder = tmp_path / "groups" / group
            folder.mkdir(parents=True, exist_ok=True)
            for name, value in files.items():
                (folder / name.replace("__", ".")).write_text(f"{value}\n")

        return make

    @pytest.mark.parametrize("place", ["memory/job", "memory"])
    def test_memory(self, group, place):
        stat = "cache 5\ninactive_file 1\ntotal_inactive_file 1000"
        group(place, memory__limit_in_bytes=GIB, memory__usage_in_bytes=4000, memory__stat=stat)
        assert machine.available_bytes() == GIB - 3000

    @pytest.mark.parametrize("place", ["cpu,cpuacct/job", "cpu/job", "cpuacct", "cpu"])
    @pytest.mark.parametrize("quota, cores", [(50_000, 1), (150_000, 2), (200_000, 2), (-1, 8), (0, 8), ("", 8)])
    def test_processors(self, group, place, quota, cores):
        group(place, cpu__cfs_quota_us=quota, cpu__cfs_period_us=100_000)
        assert machine.cores() == cores

    @pytest.mark.parametrize("text, cores", [("50000 100000", 1), ("250000 100000", 3), ("max 100000", 8), ("x", 8)])
    def test_processors_of_version_2(self, group, text, cores):
        group("", cpu__max=text)
        assert machine.cores() == cores


class TestVariables:
    @pytest.mark.parametrize("name", ["SLURM_CPUS_PER_TASK", "NUMBA_NUM_THREADS"])
    @pytest.mark.parametrize("text, cores", [("3", 3), ("99", 8), ("0", 8), ("many", 8), ("", 8)])
    def test_what_a_batch_system_says(self, monkeypatch, tmp_path, name, text, cores):
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(8))
        monkeypatch.setattr(limits, "OWN_CGROUP", tmp_path / "none")
        for other in limits.PROCESSORS:
            monkeypatch.delenv(other, raising=False)
        monkeypatch.setenv(name, text)
        assert machine.cores() == cores

    @pytest.mark.parametrize("line, message", [
        ("NUMBA_NUM_THREADS=1", "asked for 2, got 1"),
        ("NUMBA_THREADING_LAYER=tbb", r"InputError: NUMBA_THREADING_LAYER: No threading layer could be loaded"),
        ("NUMBA_DISABLE_JIT=1", "InputError: NUMBA_DISABLE_JIT: got 1, but the kernels only run compiled; unset it"),
    ])  # fmt: skip
    def test_what_numba_is_told(self, line, message):
        """Two threads are requested but numba has one; impossible settings are one-line errors."""
        if "tbb" in line and importlib.util.find_spec("tbb"):
            pytest.skip("tbb is installed")
        code = """
            import numba
            import runtime.images.resampling.kernels
            from runtime.host.kernels import on_threads
            with on_threads(2):
                print("asked for 2, got", numba.get_num_threads())
        """
        surroundings = os.environ | dict([line.split("=")])
        command = [sys.executable, "-c", textwrap.dedent(code)]
        done = subprocess.run(command, env=surroundings, cwd=ROOT, capture_output=True, text=True)
        assert re.search(message, done.stdout + done.stderr), done.stderr


def test_the_address_space_is_a_limit(monkeypatch, tmp_path):
    """``ulimit -v``, as some batch systems set it."""
    monkeypatch.setattr(limits, "OWN_CGROUP", tmp_path / "none")
    monkeypatch.setattr(limits, "STATUS", tmp_path / "status")
    (tmp_path / "status").write_text("VmSize:\t 1048576 kB\nVmData:\t 1 kB\n")
    most = {resource.RLIMIT_AS: 3 * GIB, resource.RLIMIT_DATA: resource.RLIM_INFINITY}
    monkeypatch.setattr(resource, "getrlimit", lambda limit: (most[limit], most[limit]))
    assert limits.memory_limits() == [limits.MemoryLimit(3 * GIB, 2 * GIB)]


class TestMemoryThatIsNotThere:
    @pytest.mark.parametrize("most, free, kind, message", [
        (1, 1, InputError, "1.0 GiB is available in total; crop the fixed image"),
        (64, 1, ScarceError, "1.0 GiB is available; crop the fixed image"),
    ])  # fmt: skip
    def test_what_never_fits_is_bad_input_what_does_not_now_is_scarce(self, monkeypatch, most, free, kind, message):
        self.have(monkeypatch, most, free)
        with pytest.raises(InputError, match=message) as caught:
            machine.check_fits((160, 192, 160), 1, 1)
        assert type(caught.value) is kind

    @pytest.mark.parametrize("most, free, kind", [(1, 1, InputError), (64, 1, ScarceError)])
    def test_an_image_is_refused_by_its_header_likewise(self, tmp_path, monkeypatch, most, free, kind):
        """A gzip file of zeros that would be 2 GiB; only its header is read."""
        path = scans.write_scan(tmp_path / "large.nii.gz", scans.grid())
        header = bytearray(gzip.decompress(path.read_bytes())[:352])
        header[40:48] = struct.pack("<4h", 3, 1024, 1024, 1024)
        path.write_bytes(gzip.compress(bytes(header) + bytes(3_000_000)) + bytes(3_000_000))
        self.have(monkeypatch, most, free)
        with pytest.raises(InputError, match=r"--fixed: .*million voxels needs about .* GiB") as caught:
            read_volume(path, "--fixed")
        assert type(caught.value) is kind

    def test_an_image_that_the_system_refuses_memory_for_is_scarce(self, tmp_path, monkeypatch):
        """The limit is one that the system does not report."""

        def refuse(*_):
            raise MemoryError

        path = scans.write_scan(tmp_path / "f.nii.gz", scans.grid())
        monkeypatch.setattr("runtime.images.formats.image_file.np.empty", refuse)
        with pytest.raises(ScarceError, match=r"--fixed: .*f\.nii\.gz needs .* GiB, which is not available"):
            read_volume(path, "--fixed")

    @staticmethod
    def have(monkeypatch, most: int, free: int) -> None:
        monkeypatch.setattr(machine, "most_bytes", lambda: most * GIB)
        monkeypatch.setattr(machine, "available_bytes", lambda: free * GIB)


class TestPeak:
    def test_it_is_the_systems_high_water_mark(self, tmp_path, monkeypatch):
        monkeypatch.setattr(limits, "STATUS", tmp_path / "status")
        (tmp_path / "status").write_text("Name:\tpython\nVmHWM:\t  5 kB\nVmRSS:\t  4 kB\n")
        assert machine.peak_bytes() == 5 * 1024

    @pytest.mark.parametrize("text", ["Name:\tpython\nVmRSS:\t  4 kB\n", None])
    def test_where_that_is_not_told_it_is_what_getrusage_says(self, tmp_path, monkeypatch, text):
        monkeypatch.setattr(limits, "STATUS", tmp_path / "status")
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
    from runtime.host.memory import ARRAYS

    ARRAYS.clear()
    working, before = 10**7, machine.needed_bytes(10**7, again=True)
    assert before < machine.needed_bytes(working)
    memory = ARRAYS.empty((2**24,))
    assert machine.needed_bytes(working, again=True) == before
    del memory
    assert machine.needed_bytes(working, again=True) == before - 2**24 * np.float32().nbytes
    ARRAYS.clear()
