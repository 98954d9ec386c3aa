"""Kernels in slices: every slice is processed once, whatever the number of threads and the calling thread."""

import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numba
import numpy as np
import pytest

from runtime.host.kernels import SMALL, in_slices

LARGE = 2 * SMALL


@in_slices(over="out")
def doubled(begin, end, source, out):
    for n in range(begin, end):
        out[n] += 2 * source[n]


@in_slices(over=lambda out, width: len(out) // width)
def marked(begin, end, out, width):
    for n in range(begin, end):
        out[n * width : (n + 1) * width] += n


@in_slices(over="values")
def failing(begin, end, values):
    for n in range(begin, end):
        if values[n] < 0:
            raise ValueError("negative")


@pytest.fixture(params=[1, 2, numba.config.NUMBA_NUM_THREADS])
def threads(request):
    before = numba.get_num_threads()
    numba.set_num_threads(min(request.param, numba.config.NUMBA_NUM_THREADS))
    yield request.param
    numba.set_num_threads(before)


@pytest.mark.parametrize("size", [0, 1, 7, SMALL - 1, LARGE + 13])
def test_every_slice_is_done_once(threads, size):
    source, out = np.arange(size, dtype=np.float32), np.zeros(size, np.float32)
    doubled(source, out)
    np.testing.assert_array_equal(out, 2 * source)


@pytest.mark.slow
def test_slices_may_be_counted_by_a_function(threads):
    out = np.zeros(LARGE, np.float32)
    marked(out, 64)
    np.testing.assert_array_equal(out.reshape(-1, 64), np.repeat(np.arange(LARGE // 64), 64).reshape(-1, 64))


def test_errors_of_any_thread_arrive(threads):
    values = np.ones(LARGE)
    values[-1] = -1
    with pytest.raises(ValueError, match="negative"):
        failing(values)


def test_read_only_arguments_are_taken_and_not_compiled_for():
    source, out = np.ones(LARGE, np.float32), np.zeros(LARGE, np.float32)
    doubled(source, out)
    source.flags.writeable = False
    doubled(source, out)
    doubled(np.frombuffer(source.tobytes(), np.float32), out)
    assert np.all(out == 6)
    assert len(doubled.kernel.signatures) == 1


def test_several_callers_at_once():
    def call(value):
        source, out = np.full(LARGE, value, np.float32), np.zeros(LARGE, np.float32)
        for _ in range(20):
            doubled(source, out)
        return np.all(out == 40 * value)

    with ThreadPoolExecutor(4) as callers:
        assert all(callers.map(call, range(8)))
    assert threading.active_count() < 50


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="no fork on this system")
def test_kernels_run_after_a_fork():
    """Threads do not survive a fork, as in `multiprocessing` on Linux; OpenMP would end the process."""
    code = """
        import os, warnings
        import numpy as np
        warnings.simplefilter("ignore")
        from tests.host.test_kernels import LARGE, doubled
        source, out = np.ones(LARGE, np.float32), np.zeros(LARGE, np.float32)
        doubled(source, out)
        child = os.fork()
        doubled(source, out)
        if not child:
            os._exit(0 if np.all(out == 4) else 1)
        assert os.waitpid(child, 0)[1] == 0 and np.all(out == 4)
    """
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=root, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
