"""Ctrl-C and SIGTERM as a request: the run ends after the step it is at, or at once while it waits for pairs."""

import contextlib
import signal
import threading
from collections.abc import Iterator


class WaitEndedError(Exception):
    """A wait ended because the run was asked to stop."""


class StopRequest:
    """Notes the first SIGINT or SIGTERM; a further SIGINT ends the program, where the run is `alone`.

    `torchrun` passes signals on to processes that may have had them already, and `make` does so with SIGTERM: there a
    second one says nothing new. Outside the main thread signals stay as they are.

    Args:
        alone: whether no other process trains the same network: all of them must end after the same step.
    """

    def __init__(self, alone: bool = True) -> None:
        self.signal: int | None = None
        self._alone, self._waits = alone, False
        self._before: dict = {}

    @property
    def asked(self) -> bool:
        """Return whether a signal came."""
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
        """Let a signal break off what stands inside, in which nothing of the run changes.

        Raises:
            WaitEndedError: a signal came.
        """
        self._waits = self._alone
        try:
            yield
        finally:
            self._waits = False

    def __exit__(self, *_: object) -> None:
        for name, handler in self._before.items():
            signal.signal(name, handler)
