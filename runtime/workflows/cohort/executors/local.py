"""A cohort in this process: signals end it between pairs, and a pair that takes too long starts it again."""

import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from ..records import CohortFolder
from ..table import CohortRow
from ..work import CohortChoices, work

STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))


def work_here(
    rows: Sequence[CohortRow], choices: CohortChoices, folder: CohortFolder, tell: Callable[[str], None]
) -> tuple[Counter[str], bool]:
    """Register pairs in this process.

    SIGTERM and SIGUSR1 end the work after the present pair; a second one, or Ctrl-C, ends it at once.

    Returns:
        Number of pairs by state (`runtime.workflows.cohort.work.work`), and whether a signal ended the work.
    """
    with _between_pairs() as asked:
        counts = work(rows, choices, folder, asked, tell, _start_again)
        return counts, asked()


@contextmanager
def _between_pairs() -> Iterator[Callable[[], bool]]:
    """Give a function that tells whether a signal has asked to stop."""
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}

    def answer(number: int, _: object) -> None:
        came.append(number)
        for one, handler in before.items():  # the next one is answered as usual
            signal.signal(one, handler if callable(handler) else signal.SIG_DFL)

    for number in STOP_SIGNALS:
        signal.signal(number, answer)
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _start_again() -> None:
    """Replace this process by a new one with the same command, which goes on with the next pair."""
    sys.stderr.flush()
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
