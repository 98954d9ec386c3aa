"""Memory is reused, but never while it is still referenced."""

import gc
import platform
import subprocess
import sys

import numpy as np
import pytest

from runtime.host.memory import LARGE, ArrayPool

SHAPE = (LARGE // 4, 2)


def place(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def test_memory_serves_the_next_array_of_its_size():
    pool = ArrayPool()
    first = pool.empty(SHAPE)
    assert first.shape == SHAPE and first.dtype == np.float32 and first.flags.c_contiguous and first.flags.writeable
    before = place(first)
    del first
    assert place(pool.empty(SHAPE[::-1])) == before


def test_not_while_it_is_held_and_not_while_a_view_of_it_is():
    pool = ArrayPool()
    first = pool.empty(SHAPE)
    before = place(first)
    other = pool.empty(SHAPE)
    assert place(other) != before
    view = np.moveaxis(first.reshape(2, -1, 2)[1:], -1, 0)
    del first
    gc.collect()
    held = pool.empty(SHAPE)
    assert place(held) not in (before, place(other))
    del view
    assert place(pool.empty(SHAPE)) == before


def test_another_size_gets_memory_of_its_own():
    pool = ArrayPool()
    first = pool.empty(SHAPE)
    before = place(first)
    del first
    assert place(pool.empty((LARGE, 2))) != before


def test_clear_lets_go_of_what_is_unused(monkeypatch):
    pool = ArrayPool()
    kept = pool.empty(SHAPE)
    kept[:] = 7
    pool.empty(SHAPE)
    assert len(pool._unused) == 1
    pool.clear()
    assert not pool._unused and (kept == 7).all()


def test_only_so_much_is_kept(monkeypatch):
    from runtime.host import memory

    monkeypatch.setattr(memory, "MOST_KEPT", 3 * LARGE)
    pool = ArrayPool()
    arrays = [pool.empty(SHAPE) for _ in range(3)]
    del arrays
    assert sum(memory.nbytes for memory in pool._unused) <= 3 * LARGE


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="tells glibc what to do")
@pytest.mark.parametrize("keep", [True, False])
def test_pages_of_what_is_freed_stay_only_if_they_are_to(keep):
    code = f"""
import numpy as np
from runtime.host.memory import keep_freed_memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

assert not {keep} or keep_freed_memory()
before = resident()
np.ones(1 << 23)
print((resident() - before) / (8 << 23))
"""
    kept = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert float(kept) == pytest.approx(float(keep), abs=0.2)  # share of the freed bytes that the process still holds
