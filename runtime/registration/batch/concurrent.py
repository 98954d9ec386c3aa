"""Several pairs in flight on one GPU: while the host processes one pair's results, the GPU computes another."""

import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ...backends.engine_set import load_engine_set
from ...backends.engines import SHIPPED, OpenEngines, open_set
from ...backends.registry import BACKENDS
from ...errors import InputError
from ...host.progress import Progress, silent
from ...loop.schedules import Schedule
from ...loop.trace import Iterations
from ...types import Array
from ..arrays import register_arrays


def register_many(
    pairs: Iterable[tuple[Array, Array]],
    engine_dir: Path | str = SHIPPED,
    backend: str = "auto",
    precision: str = "auto",
    in_flight: int = 2,
    schedule: Schedule | None = None,
    similarity: str = "ncc",
    progress: Progress = silent,
    smooth: float = 0.0,
) -> Iterator[Iterations]:
    """Register pairs of images (fixed, moving), several at a time on a GPU; results are those of `register_arrays`.

    Every pair in flight has engines, buffers and a stream of its own: about 1 GB at 160 x 192 x 160 in fp16. On a CPU,
    which one pair keeps busy, pairs are registered one after another.

    Args:
        pairs: as for `runtime.register_arrays`; consumed a few ahead of the results.
        engine_dir, backend, precision, progress: as for `runtime.open_engines`.
        in_flight: pairs at a time, 1 to 16.
        schedule, similarity, smooth: as for `runtime.register_arrays`.

    Yields:
        Results, in the order of the pairs.

    Raises:
        InputError: as `runtime.open_engines` and `register_arrays`; the first pair that fails ends the series.
    """
    if not 1 <= in_flight <= 16:
        raise InputError(f"in_flight: got {in_flight}, expected 1 to 16 pairs at a time")
    engine_set = load_engine_set(engine_dir)
    pairs, how = iter(pairs), (schedule, similarity, smooth)

    def opened(alone: bool, backend: str = backend, precision: str = precision) -> OpenEngines:
        return open_set(engine_set, backend, None, precision, progress, alone)

    with contextlib.ExitStack() as stack:
        first = _Lane(stack, lambda: opened(in_flight == 1))
        for pair in itertools.islice(pairs, 1):
            # The first pair alone: what libraries compile for the GPU at a new size is then cached for the other lanes.
            yield first.send(pair, how, rest=in_flight > 1).result()
        more = in_flight - 1 if BACKENDS[first.engines.backend].gpu else 0
        found = first.engines.backend, first.engines.precision
        lanes = [first, *(_Lane(stack, lambda: opened(False, *found)) for _ in range(more))]
        waiting: deque[Future[Iterations]] = deque()
        stack.callback(lambda: [future.cancel() for future in waiting])
        for number, pair in enumerate(pairs):
            waiting.append(lanes[number % len(lanes)].send(pair, how))
            if len(waiting) > len(lanes):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class _Lane:
    """Engines and the single thread that uses them: ONNX Runtime's memory grows with every further thread."""

    def __init__(self, stack: contextlib.ExitStack, opened: Callable[[], OpenEngines]) -> None:
        self._thread = stack.enter_context(ThreadPoolExecutor(1))
        self.engines = self._thread.submit(opened).result()
        stack.callback(lambda: self._thread.submit(self.engines.__exit__).result())

    def send(self, pair: tuple[Array, Array], how: tuple[Any, ...], rest: bool = False) -> Future[Iterations]:
        """Queue a pair: `how` holds `register_arrays`' further arguments; with `rest`, engines are idled afterwards."""

        def work() -> Iterations:
            found = register_arrays(self.engines, *pair, *how)
            if rest:
                with self.engines.running():
                    self.engines.networks.rest()
            return found

        return self._thread.submit(work)
