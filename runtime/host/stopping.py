"""Signals that stop the program: Ctrl-C and SIGTERM unwind it, so that temporary files go, and end with a message."""

import _thread
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

WORDS: dict[int, str] = {signal.SIGINT: "Ctrl-C (SIGINT)", signal.SIGTERM: "SIGTERM"}
AGAIN_SECONDS = 0.01  # delay after which an exception that was swallowed is raised again
_asked: list[int] = []  # signals received since `raise_on_signals`


class Stopped(KeyboardInterrupt):
    """The exception raised in the main thread when a signal asks the program to stop.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {WORDS[number]}")
        self.number = number


def check_asked() -> None:
    """Raise `Stopped` if the program was asked to stop; for threads that write files, which signals do not reach.

    Raises:
        Stopped: a signal asked the program to stop.
    """
    if _asked:
        raise Stopped(_asked[0])


def asked() -> int | None:
    """Return the signal that asked the program to stop since `raise_on_signals`; None if none did."""
    return _asked[0] if _asked else None


def exit_code(number: int) -> int:
    """Return the exit code of a program ended by a signal, as shells expect it: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + number


def end_on_signals() -> None:
    """Make signals end the program at once with a message, as long as there is nothing to clean up."""
    _answer_with(lambda number, _: _end(number))


def raise_on_signals() -> None:
    """Make the first signal raise `Stopped`; while that unwinds the program, a second Ctrl-C ends it at once.

    Python swallows an exception that is raised in a destructor or a weak reference's callback (`sys.unraisablehook`).
    It is raised again a moment later, so that the signal is not lost.
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
    """Send a signal to the main thread, waking it if the system can do that."""
    if hasattr(signal, "pthread_kill"):
        main_thread = threading.main_thread().ident
        assert main_thread is not None  # it has been started
        signal.pthread_kill(main_thread, number)
    else:
        _thread.interrupt_main(signal.Signals(number))


def ignore_signals() -> None:
    """Ignore signals once all is done: during its shutdown, Python would end on one without a message."""
    _answer_with(signal.SIG_IGN)


def end_with_parent() -> None:
    """Make a process of `multiprocessing` end with the one that started it, however that one ends.

    Otherwise a process that waits for work from a killed one, or for space in its pipe, would wait for ever.
    """
    import multiprocessing

    def watch() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None  # as in every process of `multiprocessing`
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def held_signals() -> Iterator[None]:
    """Delay Ctrl-C and SIGTERM until the end of the block. Also works as a decorator.

    For libraries that call back into Python: the exception that a signal raises would be swallowed there, or crash
    them. Only the main thread receives signals, so in other threads nothing is done.
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


def _answer_with(handler: Callable[[int, object], object] | signal.Handlers) -> None:
    for number in WORDS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # ignored under nohup, for instance
            signal.signal(number, handler)


def _end(number: int) -> None:
    if sys.stderr is not None:
        os.write(2, f"Stopped by {WORDS[number]}\n".encode())
    os._exit(exit_code(number))
