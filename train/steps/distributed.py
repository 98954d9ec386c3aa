"""Several processes that train one network together, as `torchrun` starts them; one process alone is the same code.

Every process holds the same weights, computes the gradient of its share of a step's pairs, and takes the same step with
the sum. The network is small (less than 2 MB), so its gradients travel as one vector after the last backward pass;
there is nothing to hide behind the computation, which is what `DistributedDataParallel` is for.
"""

import contextlib
import datetime
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed

# Default arguments in here are the group that exists at the import, which an optimiser's first step would cause, too
# late: that group's threads would then outlive it, into the interpreter's end, where they abort the process.
import torch.distributed.nn.functional
from torch import Tensor

from runtime.errors import InputError, first_line

# The others wait while the first one writes, or has a longer share of the validation pairs.
PATIENCE = datetime.timedelta(hours=1)


def is_first() -> bool:
    """Whether this process is the one that speaks and writes; true where there is only one."""
    return int(os.environ.get("RANK", "0")) == 0


@dataclass(frozen=True)
class Processes:
    """Those that train together. rank: this one's number, from 0; count: how many; `local`: on this computer."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1

    @property
    def first(self) -> bool:
        """Whether this one writes."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        return self.count == 1

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Replace float32 tensors of one device by their sums over all processes, in one exchange."""
        if self.alone:
            return
        tensors = list(tensors)
        summed = torch.cat([tensor.reshape(-1) for tensor in tensors])
        torch.distributed.all_reduce(summed)
        for tensor, part in zip(tensors, summed.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view(tensor.shape))

    def agree(self, seconds: float, asked: bool, device: torch.device) -> tuple[float, bool]:
        """The first process's clock, and whether any process was asked to stop; the same answer everywhere."""
        if self.alone:
            return seconds, asked
        words = torch.tensor([seconds if self.first else 0.0, float(asked)], dtype=torch.float64, device=device)
        torch.distributed.all_reduce(words)
        seconds, asked_in = words.tolist()
        return seconds, asked_in > 0

    def gather(self, rows: list) -> list:
        """Rows of all processes, those of the first one first; the same answer everywhere."""
        if self.alone:
            return rows
        gathered: list = [None] * self.count
        torch.distributed.all_gather_object(gathered, rows)
        return [row for part in gathered for row in part]


@contextlib.contextmanager
def joined(device_type: str) -> Iterator[Processes]:
    """The processes that the environment names (RANK, WORLD_SIZE ... of `torchrun`), connected: gloo, on GPUs nccl.

    Args:
        device_type: "cpu" or "cuda"; each process on a computer takes the GPU of its number.

    Raises:
        InputError: there are more processes than GPUs, or they cannot be connected.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Processes()
        return
    rank, local_rank = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
    processes = Processes(rank, count, local_rank, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    if device_type == "cuda":
        _take_gpu(processes)
    try:
        torch.distributed.init_process_group("nccl" if device_type == "cuda" else "gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"processes: {count} were announced and cannot be connected ({first_line(error)[:160]}); "
                         "start them with torchrun") from error  # fmt: skip
    try:
        yield processes
    finally:
        torch.distributed.destroy_process_group()


def _take_gpu(processes: Processes) -> None:
    gpus = torch.cuda.device_count()
    if processes.local_count > gpus:
        raise InputError(f"processes: got {processes.local_count} on this computer, which has {gpus} CUDA device(s); "
                         "start one for each")  # fmt: skip
    torch.cuda.set_device(processes.local_rank)
