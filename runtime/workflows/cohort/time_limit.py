"""A limit of time for one pair: a thread that ends the process when work on a pair takes too long."""

import threading
from collections.abc import Callable
from types import TracebackType


class TimeLimit:
    """Watches one piece of work at a time.

    Nothing can interrupt compiled code from outside, so the process has to end; what is done is recorded, and whoever
    started the process starts it again.

    Args:
        seconds: that a piece of work may take; None: no limit.
        ends: ends this process.
    """

    def __init__(self, seconds: float | None, ends: Callable[[], None] | None) -> None:
        self._seconds, self._ends = seconds, ends
        self._timer: threading.Timer | None = None

    def begin(self, note: Callable[[str], None]) -> None:
        """Begin to watch a piece of work; `note` records why the process ends."""
        self.end()
        if self._seconds is None or self._ends is None:
            return
        words, ends = f"it took longer than the time limit of {self._seconds:g} s", self._ends

        def late() -> None:
            note(words)
            ends()

        self._timer = threading.Timer(self._seconds, late)
        self._timer.daemon = True
        self._timer.start()

    def end(self) -> None:
        """Stop watching."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def __enter__(self) -> "TimeLimit":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
