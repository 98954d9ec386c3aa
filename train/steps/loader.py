"""The pairs of the steps to come, made beside training where workers are asked for."""

import contextlib
import itertools
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection

import torch

from runtime.errors import InputError, ScarceError, system_reason
from runtime.host.stopping import end_with_parent
from train.data.image_pair import ImagePair
from train.data.sources import Sources
from train.steps.distributed import Processes


@dataclass(frozen=True)
class Batch:
    """The pairs of a step: `accumulate` in each of the processes.

    Step s, from 0, consists of the `size` pairs from s * size on; a process takes those whose index leaves its rank
    when divided by the number of processes. So a step is the same however many processes share it.
    """

    accumulate: int
    processes: Processes

    @property
    def size(self) -> int:
        return self.accumulate * self.processes.count

    def mine(self, step: int) -> range:
        """Indices of this process's pairs in a step."""
        first = step * self.size
        return range(first + self.processes.rank, first + self.size, self.processes.count)

    def twins(self, steps: range) -> Iterator[list[int]]:
        """Indices of this process, those together of which one pair is the other the other way round (equal n // 2).

        They go to the same worker, so a generated scene is made once and not by two workers at a time.
        """
        indices = (index for step in steps for index in self.mine(step))
        return (list(twins) for _, twins in itertools.groupby(indices, lambda index: index // 2))


def feed(sources: Sources, steps: range, batch: Batch, workers: int) -> Iterator[list[ImagePair]]:
    """Yield this process's pairs, a list for each of `steps`; what they are does not depend on `workers`.

    Raises:
        InputError: a scan cannot be used.
        ScarceError: workers cannot be started, or one was killed.
    """
    if workers:
        groups = _made_by_workers(sources, steps, batch, workers)
    else:
        groups = ([sources.pair(index) for index in indices] for indices in batch.twins(steps))
    pairs = itertools.chain.from_iterable(groups)
    for _ in steps:
        yield list(itertools.islice(pairs, batch.accumulate))


def _made_by_workers(sources: Sources, steps: range, batch: Batch, workers: int) -> Iterator[list[ImagePair]]:
    """Yield the pairs of `Batch.twins`, of which each worker makes every `workers`-th, one ahead.

    Each sends arrays through a pipe of its own, whose end is seen even in the middle of an array when the worker is
    killed. PyTorch's DataLoader waits for ever then, and where shared memory is small, as in containers.
    """
    started: list[tuple[Connection, multiprocessing.Process]] = []
    try:
        for number in range(workers):
            started.append(_start(sources.pair, steps, batch, number, workers))
        for _, (arriving, process) in zip(batch.twins(steps), itertools.cycle(started), strict=False):
            yield _received(arriving, process)
    finally:
        for arriving, process in started:
            arriving.close()
            process.kill()
            process.join()


def _start(
    pair: Callable[[int], ImagePair], steps: range, batch: Batch, number: int, workers: int
) -> tuple[Connection, multiprocessing.Process]:
    try:
        arriving, sending = multiprocessing.Pipe(duplex=False)
        arguments = (sending, pair, steps, batch, number, workers)
        process = multiprocessing.Process(target=_make, args=arguments, daemon=True)
        process.start()
    except OSError as error:  # no process or file handle left
        raise ScarceError(f"workers: got {workers}, cannot be started ({system_reason(error)}); give 0") from error
    sending.close()  # the worker has it: with the last holder ends the pipe
    return arriving, process


def _make(
    sending: Connection, pair: Callable[[int], ImagePair], steps: range, batch: Batch, number: int, workers: int
) -> None:
    """Make and send pairs until nobody takes them, in a process of its own."""
    end_with_parent()
    for name in (signal.SIGINT, signal.SIGTERM):
        # A signal to the whole group of processes ends training after its step; until then workers are needed.
        signal.signal(name, signal.SIG_IGN)
    torch.set_num_threads(1)
    with contextlib.suppress(BrokenPipeError, ConnectionError):
        for indices in itertools.islice(batch.twins(steps), number, None, workers):
            try:
                pairs = [pair(index) for index in indices]
            except InputError as error:
                sending.send(error)
                return
            sending.send([[tensor.numpy() for tensor in one.tensors()] for one in pairs])


def _received(arriving: Connection, process: multiprocessing.Process) -> list[ImagePair]:
    try:
        packed = arriving.recv()
    except (EOFError, OSError) as error:
        process.join()
        if process.exitcode and process.exitcode > 0:
            raise InputError(f"workers: one ended with exit code {process.exitcode}; give 0 to see why") from error
        raise ScarceError(
            "workers: one was killed, most likely for want of memory; give fewer, or 0, and --resume"
        ) from error
    if isinstance(packed, InputError):
        raise packed
    return [ImagePair(*map(torch.from_numpy, arrays)) for arrays in packed]
