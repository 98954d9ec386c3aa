"""Work beside the caller: reading the next files and writing the last while something else is computed."""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")


class Job(Generic[Result]):
    """Something that is being worked out. Its result can be taken once, so that memory is not held here."""

    def __init__(self, result: Callable[[], Result]) -> None:
        self._result: Callable[[], Result] | None = result

    def take(self) -> Result:
        """Waits; gives the result, or raises what the function raised."""
        result, self._result = self._result, None
        return result()


class Jobs:
    """Runs functions beside the caller in at most `threads` - 1 Python threads; with one thread, when they are taken.

    A context manager: leaving it drops what has not begun and waits for the rest. It pays for what leaves the
    interpreter's lock alone: files, compression, NumPy on large arrays.

    Attributes:
        beside: whether there are such threads.
    """

    def __init__(self, threads: int) -> None:
        self.beside = threads > 1
        self._pool = ThreadPoolExecutor(threads - 1) if self.beside else None

    def start(self, function: Callable[..., Result], *arguments: Any) -> Job[Result]:
        """``function(*arguments)``, begun as soon as a thread is free."""
        if self._pool:
            return Job(self._pool.submit(function, *arguments).result)
        return Job(functools.partial(function, *arguments))

    def __enter__(self) -> "Jobs":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)
