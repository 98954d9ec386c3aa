"""Delayed signals: exceptions must not be raised where a library calls back into Python."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from runtime.host.compiled import compiled
from runtime.host.stopping import held_signals

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals")


class Asked(Exception):
    """The exception raised by the signal."""


@pytest.fixture(autouse=True)
def handler():
    """A handler of SIGTERM that raises an exception, as in the command line."""

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
    """LLVM calls back into Python while compiling."""

    @compiled()
    def doubled(value):
        return 2 * value

    monkeypatch.setattr(doubled._cache, "load_overload", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Asked):
        doubled(1.0)
    assert len(doubled.signatures) == 1 and doubled(2.0) == 4.0


LOST = """
import os, signal, sys, time, weakref
from runtime.host.stopping import Stopped, raise_on_signals

class Thing:
    pass

def stop(_):
    os.kill(os.getpid(), getattr(signal, sys.argv[1]))
    time.sleep(0.001)

raise_on_signals()
thing = Thing()
reference = weakref.ref(thing, stop)
try:
    del thing
    print("went on")
    time.sleep(30)
except Stopped as stopped:
    print(stopped)
"""


@pytest.mark.parametrize("number, name", [("SIGTERM", "SIGTERM"), ("SIGINT", "Ctrl-C (SIGINT)")])
def test_one_in_a_destructor_which_python_ignores_is_raised_again(number, name):
    done = subprocess.run([sys.executable, "-c", LOST, number], cwd=ROOT, text=True, capture_output=True, timeout=20)
    assert (done.stdout, done.stderr) == (f"went on\nstopped by {name}\n", "")
