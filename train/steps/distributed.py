"""Training of one network by several processes started by `torchrun`; a single process runs the same code.

Every process holds the same weights, computes the gradient of its share of a step's pairs, and takes the same step with
the sum. The network is small (less than 2 MB), so its gradients are exchanged as one vector after the last backward
pass; overlapping communication with computation, the purpose of `DistributedDataParallel`, would gain nothing.
"""

import contextlib
import datetime
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed

# Imported before any process group exists. Default arguments in this module hold the group that exists when it is
# imported. An optimiser's first step would import it too late: the group's threads would then outlive the group until
# the interpreter ends, where they abort the process.
import torch.distributed.nn.functional
from torch import Tensor

from runtime.errors import InputError, first_line

# Time limit of an exchange: the others wait while the first process writes, or has more validation pairs to register.
PATIENCE = datetime.timedelta(hours=1)


def is_first() -> bool:
    """Return whether this process is the one that reports and writes; true for a single process."""
    return int(os.environ.get("RANK", "0")) == 0


@dataclass(frozen=True)
class Processes:
    """The processes that train together.

    Attributes:
        rank: number of this process, from 0.
        count: number of processes.
        local_rank: number of this process on this machine.
        local_count: number of processes on this machine.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1

    @property
    def first(self) -> bool:
        """True in the process that writes."""
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
        """Return the first process's clock, and whether any process was asked to stop; the same in all processes."""
        if self.alone:
            return seconds, asked
        words = torch.tensor([seconds if self.first else 0.0, float(asked)], dtype=torch.float64, device=device)
        torch.distributed.all_reduce(words)
        seconds, asked_in = words.tolist()
        return seconds, asked_in > 0

    def gather(self, rows: list) -> list:
        """Return the rows of all processes, those of the first one first; the same in all processes."""
        if self.alone:
            return rows
        gathered: list = [None] * self.count
        torch.distributed.all_gather_object(gathered, rows)
        return [row for part in gathered for row in part]


@contextlib.contextmanager
def joined(device_type: str) -> Iterator[Processes]:
    """Connect the processes that `torchrun` describes in the environment (RANK, WORLD_SIZE ...), by gloo or nccl.

    Args:
        device_type: "cpu", connected by gloo, or "cuda", by nccl; each process on a machine uses the GPU of its number.

    Yields:
        The processes.

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
        raise InputError(f"processes: {count} were announced but cannot be connected ({first_line(error)[:160]}); "
                         "start them with torchrun") from error  # fmt: skip
    try:
        yield processes
    finally:
        torch.distributed.destroy_process_group()


def _take_gpu(processes: Processes) -> None:
    gpus = torch.cuda.device_count()
    if processes.local_count > gpus:
        raise InputError(f"processes: got {processes.local_count} on this machine, which has {gpus} CUDA device(s); "
                         "start one for each")  # fmt: skip
    torch.cuda.set_device(processes.local_rank)
