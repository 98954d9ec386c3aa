"""How much memory training takes: asked before the first step, and one clear line where it runs out after all."""

import contextlib
import math
from collections.abc import Iterator

import torch

from runtime.errors import ScarceError
from runtime.host.machine import require_memory
from train.steps.run import Run

# Peak bytes for each voxel of the image, fitted to steps measured on a CPU (docs/decisions/0008): one iteration at
# every level, and what each further one at levels 4, 3, 2, 1 keeps for the backward pass.
STEP_BYTES = {"fp32": 1350, "bf16": 1000, "fp16": 1000}
ITERATION_BYTES = {"fp32": (16, 20, 140, 530), "bf16": (32, 15, 110, 350), "fp16": (32, 15, 110, 350)}
TERM_BYTES = 150  # of each term beside similarity and smoothness
VALIDATION_BYTES = 450
ALWAYS_BYTES = 128 * 2**20  # of the process, whatever the size
_SAID = ("can't allocate memory", "out of memory", "bad_alloc")


def step_bytes(
    voxels: int, precision: str, iterations: tuple[int, int, int, int], terms: int = 0, ways: int = 1
) -> int:
    """Peak memory of a training step on a pair of so many voxels each, roughly.

    iterations: at levels 4 to 1. terms: of the loss, beside similarity and smoothness. ways: 2 for both directions.
    """
    further = sum(each * (count - 1) for each, count in zip(ITERATION_BYTES[precision], iterations, strict=True))
    return voxels * ways * (STEP_BYTES[precision] + further + terms * TERM_BYTES)


def needed_bytes(run: Run) -> int:
    """Peak memory of a run's steps and validations, roughly, on top of what its process holds before the first."""
    options = run.options
    trained = math.prod(run.sources.shape) // (8 if options.half_size == 1 else 1)
    validated = max(pair.fixed.numel() for pair in run.sources.validation)
    terms = (options.dice, options.bending, options.log_jacobian, options.inverse_consistency)
    ways = 2 if options.both_directions else 1
    step = step_bytes(trained, run.numerics.precision, options.iterations, sum(term > 0 for term in terms), ways)
    return ALWAYS_BYTES + max(step, VALIDATION_BYTES * validated)


def check_memory(run: Run) -> None:
    """Refuse a run that would not fit; processes on one computer share its memory, each GPU has its own.

    Raises:
        InputError: more memory is needed than there is.
        ScarceError: more memory is needed than is free.
    """
    needed, subject = needed_bytes(run), f"shape: training on {run.sources.shape} in {run.numerics.precision}"
    if run.numerics.device.type != "cuda":
        require_memory(needed * run.processes.local_count, subject, _remedy(run))
    elif needed > (free := torch.cuda.mem_get_info(run.numerics.device)[0]):
        have = f"{needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free on the GPU"
        raise ScarceError(f"{subject} needs about {have}; {_remedy(run)}")


@contextlib.contextmanager
def out_of_memory(run: Run) -> Iterator[None]:
    """Turns memory that runs out during training into one line."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and not any(s in str(error) for s in _SAID):
            raise
        raise ScarceError(
            f"shape: memory ran out after step {run.step} on {run.sources.shape} in {run.numerics.precision}; "
            f"{_remedy(run)}; the weights so far are in last.pt, if there is one"
        ) from error


def _remedy(run: Run) -> str:
    bf16 = "" if run.numerics.precision != "fp32" else "precision bf16, "
    fewer = "" if max(run.options.iterations) == 1 else "fewer iterations, "
    return f"take a smaller shape, {bf16}{fewer}or close what else needs memory"
