"""Memoised results of a pair: steps that several schedules share are computed once, keyed by their history.

Schedules of one pair share their beginnings: (1, 2, 1, 1) and (1, 2, 2, 2) have five steps in common, and IterStop with
a smaller delta continues where a larger one ended. `MemoisedPair` stands between the loop and a pair and returns
known results from memory. Each result keeps the seconds it took when it was first computed, and a schedule is charged
for all results it uses, so that its time is that of a run alone.
"""

import functools
import math
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, cast

from ....loop import iterstop

Flow = Any
Key = tuple[Hashable, ...]
OpenPair = Callable[[], iterstop.Pair]  # returns the pair behind a memory, which may have to be encoded first
NUMBER_BYTES = 4  # of a float32
LIMIT = 2 << 30  # bytes of flows kept at most


@dataclass(frozen=True)
class Result:
    """The number of a flow, which identifies its history, or a similarity; and the seconds it took."""

    value: float
    seconds: float


class ResultMemory:
    """Results computed so far for one pair of images on one engine set.

    Flows are kept up to a number of bytes, and the least recently used ones are dropped first; their numbers and
    seconds stay, and no schedule is charged for computing them again. Similarities are always kept.

    Args:
        limit: bytes of flows kept.
        synchronise: waits until a device has finished a flow; None if calls return only when the work is done.
    """

    def __init__(self, limit: int = LIMIT, synchronise: Callable[[Flow], object] | None = None) -> None:
        self._limit, self._synchronise = limit, synchronise
        self._results: dict[Key, Result] = {}
        self._flows: OrderedDict[int, Flow] = OrderedDict()
        self._bytes = self._last = 0
        # By id(flow). An id may be reused once its flow is gone, so the weak reference says whether an entry holds.
        self._numbers: dict[int, tuple[weakref.ref, int]] = {}

    def flow(self, key: Key, pair: OpenPair, operation: str, *arguments: Any) -> tuple[Flow, float]:
        """Return the flow that an operation of the pair computes and the seconds it took, from memory if known."""
        known = self._results.get(key)
        if known is not None and (kept := self._flows.get(cast(int, known.value))) is not None:
            self._flows.move_to_end(cast(int, known.value))
            return kept, known.seconds
        flow, seconds = _timed(getattr(pair(), operation), *arguments)
        if self._synchronise is not None:
            seconds += _timed(self._synchronise, flow)[1]
        if known is None:
            known = self._results[key] = Result(self._new_number(), seconds)
        self._keep(flow, cast(int, known.value))
        return flow, known.seconds

    def similarity(self, key: Key, pair: OpenPair, *arguments: Any) -> tuple[float, float]:
        """Return the similarity that the pair's `score` computes and the seconds it took, from memory if known."""
        if key not in self._results:
            score = pair().score
            self._results[key] = Result(*_timed(lambda: float(score(*arguments))))
        return self._results[key].value, self._results[key].seconds

    def seconds(self, key: Key, spent: float | None = None) -> float | None:
        """Return the seconds stored for a key whose result is not kept, None if there are none; store `spent` first.

        Only the first `spent` of a key is stored.
        """
        if spent is not None:
            self._results.setdefault(key, Result(math.nan, spent))
        return self._results[key].seconds if key in self._results else None

    def number(self, flow: Flow) -> int:
        """Return the number of a flow; an unknown flow gets a new one."""
        reference, number = self._numbers.get(id(flow), (None, 0))
        if reference is None or reference() is not flow:
            number = self._new_number()
            self._register(flow, number)
        return number

    def _new_number(self) -> int:
        self._last += 1
        return self._last

    def _register(self, flow: Flow, number: int) -> None:
        self._numbers[id(flow)] = (weakref.ref(flow), number)

    def _keep(self, flow: Flow, number: int) -> None:
        self._register(flow, number)
        self._flows[number] = flow
        self._bytes += _bytes(flow)
        while self._bytes > self._limit and len(self._flows) > 1:
            self._bytes -= _bytes(self._flows.popitem(last=False)[1])


def _timed(work: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    return work(*arguments), time.perf_counter() - start


def _bytes(flow: Flow) -> int:
    return NUMBER_BYTES * math.prod(flow.shape)


@dataclass
class TimeAccount:
    """Seconds of all results that one schedule used."""

    seconds: float = 0.0


class MemoisedPair:
    """A memoised pair of `runtime.loop.iterstop`.

    Args:
        pair: the pair that computes.
        memory: memory of this pair, shared by all memoised pairs in front of it.
        similarity: the similarity that `score` returns; None: the engine set's.
        smooth: sigma with which `step` smooths residuals; part of the key of its results.
        account: accumulates the seconds of all results used here and in the pairs that `warped` returns.
    """

    def __init__(
        self, pair: iterstop.Pair, memory: ResultMemory, similarity: str | None, smooth: float, account: TimeAccount
    ) -> None:
        self._pair: OpenPair = lambda: pair
        self._memory, self._similarity, self._smooth, self._account = memory, similarity, smooth, account
        self._origin: tuple[int, ...] = ()

    def zero(self, level: int) -> Flow:
        return self._flow((self._origin, level), "zero", level)

    def step(self, level: int, flow: Flow) -> Flow:
        return self._flow((self._origin, level, self._smooth, self._memory.number(flow)), "step", level, flow)

    def upsample(self, flow: Flow) -> Flow:
        return self._flow((self._memory.number(flow),), "upsample", flow)

    def compose(self, flow: Flow, residual: Flow) -> Flow:
        return self._flow((self._memory.number(flow), self._memory.number(residual)), "compose", flow, residual)

    def score(self, level: int, flow: Flow) -> float:
        key = ("score", self._similarity, self._origin, self._memory.number(flow))
        return self._account_for(self._memory.similarity(key, self._pair, level, flow))

    def warped(self, flow: Flow) -> "MemoisedPair":
        """Return the pair of the warped image; it is warped and encoded only when a result is not in memory."""
        other = MemoisedPair(self, self._memory, self._similarity, self._smooth, self._account)
        other._origin = (*self._origin, self._memory.number(flow))
        known = self._memory.seconds(("warped", other._origin))
        other._pair = functools.cache(lambda: self._encoded(flow, other._origin, known is None))
        return self._account_for((other, known or 0.0))

    def _encoded(self, flow: Flow, origin: tuple[int, ...], charge: bool) -> iterstop.Pair:
        pair, seconds = _timed(self._pair().warped, flow)
        stored = self._memory.seconds(("warped", origin), seconds)
        assert stored is not None
        return self._account_for((pair, stored if charge else 0.0))

    def _flow(self, place: Key, operation: str, *arguments: Any) -> Flow:
        return self._account_for(self._memory.flow((operation, *place), self._pair, operation, *arguments))

    def _account_for(self, result: tuple[Any, float]) -> Any:
        """Add the seconds of a result to the account, and return its value."""
        self._account.seconds += result[1]
        return result[0]
