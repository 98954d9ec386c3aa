"""Several pairs in flight on one card: while the host decides about one, another one computes."""

import contextlib
import queue
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from runtime import iterstop
from runtime.backends.table import BACKENDS
from runtime.engines import SHIPPED, Engines, open_set
from runtime.geometry.errors import InputError
from runtime.manifest import load_engine_set
from runtime.registration import register_arrays
from runtime.stages import Progress, silent

Array = np.ndarray


def register_many(
    pairs: Iterable[tuple[Array, Array]],
    engine_dir: Path | str = SHIPPED,
    backend: str = "auto",
    precision: str = "auto",
    in_flight: int = 2,
    schedule: iterstop.Schedule | None = None,
    similarity: str = "ncc",
    progress: Progress = silent,
) -> Iterator[iterstop.Iterations]:
    """Registers pairs of images (fixed, moving), several at a time on a card; each result is `register_arrays`'s.

    Every pair in flight has engines, buffers and a stream of its own: about 1 GB at 160 x 192 x 160 in fp16. On a
    processor, which is busy with one, they are registered one after the other.

    Args:
        pairs: as for `runtime.register_arrays`; taken as results are, a few ahead.
        engine_dir, backend, precision, progress: as for `runtime.open_engines`.
        in_flight: pairs at a time, 1 to 16.
        schedule, similarity: as for `runtime.register_arrays`.

    Yields:
        Results, in the order of the pairs.

    Raises:
        InputError: as `runtime.open_engines` and `register_arrays`; the first pair that fails ends the series.
    """
    if not 1 <= in_flight <= 16:
        raise InputError(f"in_flight: got {in_flight}, expected 1 to 16 pairs at a time")
    engine_set = load_engine_set(engine_dir)
    lanes: queue.SimpleQueue[Engines] = queue.SimpleQueue()

    def one(fixed: Array, moving: Array) -> iterstop.Iterations:
        engines = lanes.get()
        try:
            return register_arrays(engines, fixed, moving, schedule, similarity)
        finally:
            lanes.put(engines)

    with contextlib.ExitStack() as stack:
        first = stack.enter_context(open_set(engine_set, backend, None, precision, progress))
        lanes.put(first)
        for _ in range(1, in_flight if BACKENDS[first.backend].card else 1):
            lanes.put(stack.enter_context(open_set(engine_set, first.backend, None, first.precision, progress)))
        threads = stack.enter_context(ThreadPoolExecutor(lanes.qsize()))
        waiting: deque[Future[iterstop.Iterations]] = deque()
        stack.callback(lambda: [future.cancel() for future in waiting])
        for fixed, moving in pairs:
            waiting.append(threads.submit(one, fixed, moving))
            if len(waiting) > in_flight:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
