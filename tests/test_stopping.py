"""Signals that have to wait: exceptions must not be raised where a library calls Python back."""

import os
import signal
import threading

import pytest

from runtime.compiled import compiled
from runtime.stopping import held_signals

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals")


class Asked(Exception):
    """Raised by a signal."""


@pytest.fixture(autouse=True)
def handler():
    """What SIGTERM is answered with: an exception, as in the command line."""

    def answer(number, _):
        raise Asked(number)

    before = signal.signal(signal.SIGTERM, answer)
    yield answer
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("number, error", [(signal.SIGTERM, Asked), (signal.SIGINT, KeyboardInterrupt)])
def test_they_come_at_the_end(handler, number, error):
    done = []
    with pytest.raises(error), held_signals():
        os.kill(os.getpid(), number)
        done.append("inside")
    assert done == ["inside"]
    assert signal.getsignal(signal.SIGTERM) is handler and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_within_each_other_they_come_at_the_end_of_the_outer_one():
    done = []
    with pytest.raises(Asked), held_signals():
        with held_signals():
            os.kill(os.getpid(), signal.SIGTERM)
        done.append("between")
    assert done == ["between"]


def test_where_none_came_nothing_is_raised(handler):
    with held_signals():
        pass
    assert signal.getsignal(signal.SIGTERM) is handler


def test_other_threads_which_never_see_one_hold_none(handler):
    seen = []

    def look():
        with held_signals():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [handler]


def test_a_kernel_is_compiled_to_its_end(monkeypatch):
    """Whose code LLVM asks Python for, and gives to it."""

    @compiled()
    def doubled(value):
        return 2 * value

    monkeypatch.setattr(doubled._cache, "load_overload", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Asked):
        doubled(1.0)
    assert len(doubled.signatures) == 1 and doubled(2.0) == 4.0
