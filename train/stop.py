"""Ctrl-C as a wish: the run ends after the step it is at."""

import signal
import threading


class StopRequest:
    """Turns the first SIGINT or SIGTERM into `asked`; a further SIGINT ends the program, where `insist` allows it.

    `torchrun` passes signals on to processes that may have had them already, and `make` does so with SIGTERM: there a
    second one says nothing new.
    Outside the main thread signals stay as they are.
    """

    def __init__(self, insist: bool = True) -> None:
        self.asked, self._insist = False, insist
        self._before: dict = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._before = {name: signal.signal(name, self._ask) for name in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _ask(self, number: int, _: object) -> None:
        if self.asked and self._insist and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *_: object) -> None:
        for name, handler in self._before.items():
            signal.signal(name, handler)
