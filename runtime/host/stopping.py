"""Being asked to stop: Ctrl-C and SIGTERM unwind the program, so that temporary files go, and end it with a word."""

import _thread
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

WORDS = {signal.SIGINT: "Ctrl-C (SIGINT)", signal.SIGTERM: "SIGTERM"}
AGAIN_SECONDS = 0.01  # after which an exception that went astray is raised again
_asked: list[int] = []  # signals, since `raise_on_signals`


class Stopped(KeyboardInterrupt):
    """Raised in the main thread when a signal asks the program to stop.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {WORDS[number]}")
        self.number = number


def check_asked() -> None:
    """For threads that write files, which a signal does not reach: raises once the program was asked to stop.

    Raises:
        Stopped: it was.
    """
    if _asked:
        raise Stopped(_asked[0])


def asked() -> int | None:
    """The signal that asked the program to stop, since `raise_on_signals`; None: none did."""
    return _asked[0] if _asked else None


def exit_code(number: int) -> int:
    """Of a program that a signal ended, as shells and batch systems know it: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + number


def end_on_signals() -> None:
    """Before there is anything to tidy up: a signal ends the program with a word."""
    _answer_with(lambda number, _: _end(number))


def raise_on_signals() -> None:
    """The first signal raises `Stopped`; while that unwinds the program, a second Ctrl-C ends it at once.

    An exception that is raised while Python runs a destructor or a weak reference's callback goes no further than that
    (`sys.unraisablehook`). It is raised again a moment later, so that the signal is not lost.
    """
    again: list[int] = []

    def answer(number: int, _: object) -> None:
        if again:
            raise Stopped(again.pop())
        if not _asked:
            _asked.append(number)
            raise Stopped(number)
        if number == signal.SIGINT:
            _end(number)

    def unraisable(caught: Any, hook: Callable[[Any], object] = sys.unraisablehook) -> None:
        if not isinstance(caught.exc_value, Stopped):
            hook(caught)
        elif not again:
            again.append(caught.exc_value.number)
            threading.Timer(AGAIN_SECONDS, _signal_main_thread, [caught.exc_value.number]).start()

    sys.unraisablehook = unraisable
    _answer_with(answer)


def _signal_main_thread(number: int) -> None:
    """Send a signal to the main thread, which it wakes where the system can do that."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident, number)
    else:
        _thread.interrupt_main(number)


def ignore_signals() -> None:
    """Once all is done: Python, on its way out, would fall back on ending without a word."""
    _answer_with(signal.SIG_IGN)


def end_with_parent() -> None:
    """In a process of `multiprocessing`: ends it with the one that started it, however that one ends.

    Otherwise one that waits for a killed process's work, or for room in its pipe, would do so for ever.
    """
    import multiprocessing

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def held_signals() -> Iterator[None]:
    """Lets Ctrl-C and SIGTERM wait for the end of what stands inside. Also a decorator.

    For libraries that Python is called back from: the exception that a signal raises would go astray there, or crash
    them. Other threads than the main one never see it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {number: handler for number in WORDS if callable(handler := signal.getsignal(number))}
    for number in before:
        signal.signal(number, lambda number, _: came.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in came:
            signal.raise_signal(number)


def _answer_with(handler) -> None:
    for number in WORDS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # such as under nohup
            signal.signal(number, handler)


def _end(number: int) -> None:
    if sys.stderr is not None:
        os.write(2, f"Stopped by {WORDS[number]}\n".encode())
    os._exit(exit_code(number))
