"""The pairs of the coming steps, made in parallel to training if there are workers."""

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
    """The pairs of a step: `accumulate` of them in each process.

    Step s, from 0, consists of the `size` pairs from s * size on; a process takes the pairs whose index modulo the
    number of processes is its rank. So a step is the same for any number of processes that share it.
    """

    accumulate: int
    processes: Processes

    @property
    def size(self) -> int:
        return self.accumulate * self.processes.count

    def mine(self, step: int) -> range:
        """Return the indices of this process's pairs in a step."""
        first = step * self.size
        return range(first + self.processes.rank, first + self.size, self.processes.count)

    def direction_groups(self, steps: range) -> Iterator[list[int]]:
        """Return the indices of this process, grouped so that the two directions of a pair (equal n // 2) are together.

        A group goes to one worker, so a generated scene is made only once, not by two workers at the same time.
        """
        indices = (index for step in steps for index in self.mine(step))
        return (list(direction_groups) for _, direction_groups in itertools.groupby(indices, lambda index: index // 2))


def feed(sources: Sources, steps: range, batch: Batch, workers: int) -> Iterator[list[ImagePair]]:
    """Yield this process's pairs, one list for each of `steps`; the pairs do not depend on `workers`.

    Raises:
        InputError: a scan cannot be used.
        ScarceError: workers cannot be started, or one was killed.
    """
    if workers:
        groups = _made_by_workers(sources, steps, batch, workers)
    else:
        groups = ([sources.pair(index) for index in indices] for indices in batch.direction_groups(steps))
    pairs = itertools.chain.from_iterable(groups)
    for _ in steps:
        yield list(itertools.islice(pairs, batch.accumulate))


def _made_by_workers(sources: Sources, steps: range, batch: Batch, workers: int) -> Iterator[list[ImagePair]]:
    """Yield the pairs of the groups of `Batch.direction_groups`; each worker makes every `workers`-th group, one ahead.

    Each worker sends arrays through its own pipe. If it is killed, the pipe ends, which is noticed even in the middle
    of an array. PyTorch's DataLoader would wait forever, also where shared memory is small, as in containers.
    """
    started: list[tuple[Connection, multiprocessing.Process]] = []
    try:
        for number in range(workers):
            started.append(_start(sources.pair, steps, batch, number, workers))
        for _, (arriving, process) in zip(batch.direction_groups(steps), itertools.cycle(started), strict=False):
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
    sending.close()  # now only the worker holds this end, so the pipe ends with the worker
    return arriving, process


def _make(
    sending: Connection, pair: Callable[[int], ImagePair], steps: range, batch: Batch, number: int, workers: int
) -> None:
    """Make and send pairs in a worker process until they are no longer received."""
    end_with_parent()
    for name in (signal.SIGINT, signal.SIGTERM):
        # A signal to the whole process group ends training after the current step; until then workers are needed.
        signal.signal(name, signal.SIG_IGN)
    torch.set_num_threads(1)
    with contextlib.suppress(BrokenPipeError, ConnectionError):
        for indices in itertools.islice(batch.direction_groups(steps), number, None, workers):
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
            "workers: one was killed, most likely because memory ran out; give fewer, or 0, and --resume"
        ) from error
    if isinstance(packed, InputError):
        raise packed
    return [ImagePair(*map(torch.from_numpy, arrays)) for arrays in packed]
