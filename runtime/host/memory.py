"""Large arrays on the host: memory that is reused, kept by the process, or returned to the system.

The system clears every page of new memory when it is first touched. For the features and flows of a registration, that
takes as long as several of the kernels that fill them.
"""

import contextlib
import ctypes
import math
import threading

import numpy as np

from ..types import Array

LARGE = 1 << 20  # bytes from which on reuse pays off
MOST_KEPT = 1 << 30  # bytes that may be kept unused
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # option numbers from glibc's malloc.h


class ArrayPool:
    """A pool of arrays: once an array and all its views are gone, its memory serves the next array of that size."""

    def __init__(self) -> None:
        self._unused: list[Array] = []  # flat, longest unused first
        self._lock = threading.RLock()  # reentrant: an array may be garbage-collected anywhere, also in here

    def empty(self, shape: tuple[int, ...]) -> Array:
        """Return a contiguous float32 array with arbitrary content."""
        size = math.prod(shape)
        if 4 * size < LARGE:
            return np.empty(shape, np.float32)
        with self._lock:
            place = next((n for n, memory in enumerate(self._unused) if memory.size == size), None)
            memory = np.empty(size, np.float32) if place is None else self._unused.pop(place)
        return np.asarray(_Lease(memory, self)).reshape(shape)

    @property
    def unused_bytes(self) -> int:
        """The bytes that are kept but unused."""
        with self._lock:
            return sum(memory.nbytes for memory in self._unused)

    def clear(self) -> None:
        """Release the unused memory."""
        with self._lock:
            self._unused.clear()

    def _take_back(self, memory: Array) -> None:
        with self._lock:
            self._unused.append(memory)
            while self.unused_bytes > MOST_KEPT:
                self._unused.pop(0)


class _Lease:
    """The owner of an array's memory as NumPy sees it: it lives as long as the array and all views of it."""

    def __init__(self, memory: Array, pool: ArrayPool) -> None:
        self.__array_interface__ = memory.__array_interface__
        self._memory, self._pool = memory, pool

    def __del__(self) -> None:
        self._pool._take_back(self._memory)


ARRAYS = ArrayPool()


def keep_freed_memory() -> bool:
    """Make the C library keep freed pages for later allocations; return False if it is not glibc.

    This helps work that allocates the same large tensors over and over, such as training; the peak does not change.
    """
    try:
        options = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 1 << 28))
        return all([ctypes.CDLL(None).mallopt(name, value) == 1 for name, value in options])
    except (OSError, AttributeError, TypeError):
        return False


def return_freed_memory() -> None:
    """Return freed memory to the system if its C library is glibc; takes about a millisecond."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
