"""Background threads: reading the next files and writing the last ones while something else is computed."""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")


class Job(Generic[Result]):
    """A result that is still being computed. It can be taken only once, so that a job does not hold on to memory."""

    def __init__(self, result: Callable[[], Result]) -> None:
        self._result: Callable[[], Result] | None = result

    def take(self) -> Result:
        """Wait for the result and return it, or raise what the function raised."""
        result, self._result = self._result, None
        assert result is not None  # it can be taken only once
        return result()


class Jobs:
    """A pool of at most `threads` - 1 background threads; with one thread, each function runs when its job is taken.

    A context manager: leaving it cancels jobs that have not begun and waits for the rest. It pays off for work that
    releases Python's global interpreter lock: files, compression, NumPy on large arrays.

    Attributes:
        beside: whether there are background threads.
    """

    def __init__(self, threads: int) -> None:
        self.beside = threads > 1
        self._pool = ThreadPoolExecutor(threads - 1) if self.beside else None

    def start(self, function: Callable[..., Result], *arguments: Any) -> Job[Result]:
        """Start ``function(*arguments)`` as soon as a thread is free, and return its job."""
        if self._pool:
            return Job(self._pool.submit(function, *arguments).result)
        return Job(functools.partial(function, *arguments))

    def __enter__(self) -> "Jobs":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)
