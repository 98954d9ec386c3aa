"""Kernels that process the slices of an array, distributed among threads.

numba can do this itself (`parallel=True`), but then every kernel takes twice as long to compile, and with OpenMP its
threads cannot be used after a fork and spin for milliseconds after each call, on cores that the engine needs next.
Here a compiled function processes slices `begin` to `end` and releases Python's global interpreter lock.
"""

import contextlib
import functools
import inspect
import itertools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import numba
import numpy as np

from ..errors import InputError, first_line
from ..types import Array
from .compiled import compiled

SMALL = 1 << 15  # size of the largest array up to which a second thread costs more than it gains
SHARES = 4  # per thread, so that other threads take over the slices of one that is held up


def in_slices(over: str | Callable[..., int], **options: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Compile ``kernel(begin, end, ...)`` into a function that is called without `begin` and `end`.

    Args:
        over: name of the argument whose first axis is divided into slices, or a function that takes the kernel's other
            arguments and returns the number of slices.
        options: of `numba.njit`, besides those set here.

    Slices run concurrently and in any order, on as many threads as `numba.get_num_threads` says. A kernel must write
    only what belongs to its slices; then results do not depend on the number of threads. Arguments that are only read
    may be read-only arrays.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        kernel = compiled(nogil=True, error_model="numpy", **options)(function)
        count = over if callable(over) else _length_of(over, function)

        @functools.wraps(function)
        def call(*arguments: Any) -> None:
            _run(kernel, count(*arguments), [_writeable(argument) for argument in arguments])

        call.kernel = kernel  # type: ignore[attr-defined]  # functions declare no attributes
        return call

    return decorate


@contextlib.contextmanager
def on_threads(count: int) -> Iterator[None]:
    """Limit numba in this Python thread to `count` threads, or to all it was started with; restore it on leaving.

    Raises:
        InputError: numba cannot start the threading layer that NUMBA_THREADING_LAYER asks for.
    """
    before = _threads()
    numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))
    try:
        yield
    finally:
        numba.set_num_threads(before)


def _threads() -> int:
    try:
        return cast(int, numba.get_num_threads())
    except ValueError as error:
        raise InputError(f"NUMBA_THREADING_LAYER: {first_line(error)}; unset it") from None


def _length_of(name: str, function: Callable[..., None]) -> Callable[..., int]:
    place = list(inspect.signature(function).parameters).index(name) - 2  # `begin` and `end` come first
    return lambda *arguments: len(arguments[place])


def _run(kernel: Callable[..., None], count: int, arguments: list[Any]) -> None:
    threads = min(numba.get_num_threads(), count)
    if threads < 2 or max(argument.size for argument in arguments if isinstance(argument, np.ndarray)) < SMALL:
        kernel(0, count, *arguments)
        return
    share = max(1, count // (SHARES * threads))
    begins = itertools.count(0, share)  # `next` is atomic

    def work() -> None:
        while (begin := next(begins)) < count:
            kernel(begin, min(begin + share, count), *arguments)

    helpers = [_pool().submit(work) for _ in range(threads - 1)]
    try:
        work()
    finally:
        for helper in helpers:
            if not helper.cancel():  # a helper that has not begun has nothing left to do
                helper.result()


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, numba.config.NUMBA_NUM_THREADS - 1), "kernels")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork


class _Alias:
    """A stand-in for a read-only array that claims to be writeable; it keeps the original alive."""

    def __init__(self, array: Array) -> None:
        self._array = array
        self.__array_interface__ = array.__array_interface__ | {"data": (array.ctypes.data, False)}


def _writeable(argument: Any) -> Any:
    """Return arrays as writeable ones: numba compiles a kernel again for read-only arrays, which are another type."""
    if isinstance(argument, np.ndarray) and not argument.flags.writeable:
        return np.asarray(_Alias(argument))
    return argument
