"""Ctrl-C and SIGTERM as requests: the run ends after the current step, or at once while it waits for pairs."""

import contextlib
import signal
import threading
from collections.abc import Iterator


class WaitEndedError(Exception):
    """The end of a wait because the run was asked to stop."""


class StopRequest:
    """A context that records the first SIGINT or SIGTERM; if `alone`, a further SIGINT ends the program.

    `torchrun` passes signals on to processes that may have received them already, and `make` does so with SIGTERM: in
    these cases a second signal is not a new request. Outside the main thread, signal handlers are not changed.

    Args:
        alone: whether no other process trains the same network; otherwise all must end after the same step.

    Attributes:
        signal: number of the first signal, or None.
    """

    def __init__(self, alone: bool = True) -> None:
        self.signal: int | None = None
        self._alone, self._waits = alone, False
        self._before: dict = {}

    @property
    def asked(self) -> bool:
        """True once a signal has arrived."""
        return self.signal is not None

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._before = {name: signal.signal(name, self._ask) for name in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _ask(self, number: int, _: object) -> None:
        if self.asked and self._alone and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = self.signal or number
        if self._waits:
            raise WaitEndedError

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Let a signal interrupt the body, which must not change the state of the run; only if `alone`.

        Raises:
            WaitEndedError: a signal arrived.
        """
        self._waits = self._alone
        try:
            yield
        finally:
            self._waits = False

    def __exit__(self, *_: object) -> None:
        for name, handler in self._before.items():
            signal.signal(name, handler)
