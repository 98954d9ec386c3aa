"""Kernels that work through the slices of an array, shared out among threads.

numba can do this itself (`parallel=True`), but then every kernel takes twice as long to compile, and, with OpenMP,
its threads keep a core busy for milliseconds after each call, which the engine that runs next has to do without, and
cannot be used after a fork. Here a compiled function does slices `begin` to `end` and lets go of Python's lock.
"""

import contextlib
import functools
import inspect
import itertools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np

from ..errors import InputError, first_line
from ..types import Array
from .compiled import compiled

SMALL = 1 << 15  # numbers in the largest array, up to which a second thread costs more than it brings
SHARES = 4  # per thread: a thread that is held up leaves slices to the others


def in_slices(over: str | Callable[..., int], **options) -> Callable:
    """Compiles ``kernel(begin, end, ...)`` for calls without these two.

    Args:
        over: name of the argument along whose first axis the kernel works, or a function that takes the kernel's other
            arguments and returns how many slices there are.
        options: of `numba.njit`, beside those that are given here.

    Slices run in any order and at the same time, on as many threads as `numba.get_num_threads` says; a kernel writes
    what belongs to its slices alone. Results then do not depend on the number of threads. Arguments that are only read
    may be read-only arrays.
    """

    def decorate(function: Callable) -> Callable:
        kernel = compiled(nogil=True, error_model="numpy", **options)(function)
        count = over if callable(over) else _length_of(over, function)

        @functools.wraps(function)
        def call(*arguments) -> None:
            _run(kernel, count(*arguments), [_writeable(argument) for argument in arguments])

        call.kernel = kernel
        return call

    return decorate


@contextlib.contextmanager
def on_threads(count: int) -> Iterator[None]:
    """Holds numba, in this Python thread, to so many threads, or as many as it was started with; leaves it as it was.

    Raises:
        InputError: numba cannot start threads as it is told to.
    """
    before = _threads()
    numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))
    try:
        yield
    finally:
        numba.set_num_threads(before)


def _threads() -> int:
    try:
        return numba.get_num_threads()
    except ValueError as error:
        raise InputError(f"NUMBA_THREADING_LAYER: {first_line(error)}; unset it") from None


def _length_of(name: str, function: Callable) -> Callable[..., int]:
    place = list(inspect.signature(function).parameters).index(name) - 2
    return lambda *arguments: len(arguments[place])


def _run(kernel: Callable, count: int, arguments: list) -> None:
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
            if not helper.cancel():  # not begun: nothing is left to do
                helper.result()


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, numba.config.NUMBA_NUM_THREADS - 1), "kernels")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads stay behind


class _Alias:
    """Passes for an array that may be written to, and holds the one it stands for."""

    def __init__(self, array: Array) -> None:
        self._array = array
        self.__array_interface__ = array.__array_interface__ | {"data": (array.ctypes.data, False)}


def _writeable(argument):
    """Read-only arrays are another type to numba, for which it would compile the kernel again."""
    if isinstance(argument, np.ndarray) and not argument.flags.writeable:
        return np.asarray(_Alias(argument))
    return argument
