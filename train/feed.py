"""The pairs of the steps to come, made beside training where workers are asked for."""

import itertools
import signal
from collections.abc import Iterator
from dataclasses import dataclass

from torch.utils.data import DataLoader, Dataset, Sampler

from train.distributed import Processes
from train.image_pair import ImagePair
from train.sources import Sources


class _Twins(Sampler[list[int]]):
    """This process's indices, those together of which one pair is the other the other way round (n // 2 is the same).

    They go to the same worker, so a generated scene is made once and not by two workers at a time.
    """

    def __init__(self, steps: range, batch: "Batch") -> None:
        self.steps, self.batch = steps, batch

    def __iter__(self) -> Iterator[list[int]]:
        indices = (index for step in self.steps for index in self.batch.mine(step))
        return (list(twins) for _, twins in itertools.groupby(indices, lambda index: index // 2))


class _Pairs(Dataset):
    def __init__(self, sources: Sources) -> None:
        self.sources = sources

    def __getitem__(self, indices: list[int]) -> list[ImagePair]:
        return [self.sources.pair(index) for index in indices]


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


def feed(sources: Sources, steps: range, batch: Batch, workers: int) -> Iterator[list[ImagePair]]:
    """This process's pairs, a list for each of `steps`; what they are does not depend on `workers`."""
    loader = DataLoader(
        _Pairs(sources),
        batch_size=None,
        sampler=_Twins(steps, batch),
        num_workers=workers,
        worker_init_fn=_ignore_signals,
    )
    pairs = itertools.chain.from_iterable(loader)
    for _ in steps:
        yield list(itertools.islice(pairs, batch.accumulate))


def _ignore_signals(_: int) -> None:
    """A signal to the whole group of processes ends training after its step; until then workers are needed."""
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)
