"""Memory of training: estimated before the first step, and a one-line error if it runs out nevertheless."""

import contextlib
import math
from collections.abc import Iterator

import torch

from runtime.errors import ScarceError
from runtime.host.machine import require_memory
from train.steps.run import Run

# Peak bytes per voxel of the image, fitted to steps measured on a CPU (docs/decisions/0008): of one iteration at every
# level, and of each further one at levels 4, 3, 2, 1, kept for the backward pass.
STEP_BYTES = {"fp32": 1350, "bf16": 1000, "fp16": 1000}
ITERATION_BYTES = {"fp32": (16, 20, 140, 530), "bf16": (32, 15, 110, 350), "fp16": (32, 15, 110, 350)}
TERM_BYTES = 150  # per voxel, of each loss term besides similarity and smoothness
VALIDATION_BYTES = 450  # per voxel
ALWAYS_BYTES = 128 * 2**20  # of the process, independent of the image size
_MESSAGES = ("can't allocate memory", "out of memory", "bad_alloc")  # words in RuntimeErrors of PyTorch


def step_bytes(
    voxels: int, precision: str, iterations: tuple[int, int, int, int], terms: int = 0, ways: int = 1
) -> int:
    """Estimate the peak memory of a training step on one pair, in bytes.

    Args:
        voxels: voxels of each image.
        precision: "fp32", "bf16" or "fp16".
        iterations: iterations at levels 4, 3, 2, 1.
        terms: number of loss terms besides similarity and smoothness.
        ways: 2 for both directions, else 1.
    """
    further = sum(each * (count - 1) for each, count in zip(ITERATION_BYTES[precision], iterations, strict=True))
    return voxels * ways * (STEP_BYTES[precision] + further + terms * TERM_BYTES)


def needed_bytes(run: Run) -> int:
    """Estimate the peak memory of a run's steps and validations, in bytes, in addition to what it holds before."""
    options = run.options
    trained = math.prod(run.sources.shape) // (8 if options.half_size == 1 else 1)
    validated = max(pair.fixed.numel() for pair in run.sources.validation)
    terms = (options.dice, options.bending, options.log_jacobian, options.inverse_consistency)
    ways = 2 if options.both_directions else 1
    step = step_bytes(trained, run.numerics.precision, options.iterations, sum(term > 0 for term in terms), ways)
    return ALWAYS_BYTES + max(step, VALIDATION_BYTES * validated)


def check_memory(run: Run) -> None:
    """Refuse a run that needs too much memory; processes on one machine share its memory, each GPU has its own.

    Raises:
        InputError: more memory is needed than the machine has.
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
    """Turn errors of memory that runs out during training into a one-line ScarceError."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and not any(s in str(error) for s in _MESSAGES):
            raise
        raise ScarceError(
            f"shape: memory ran out after step {run.step} on {run.sources.shape} in {run.numerics.precision}; "
            f"{_remedy(run)}; the weights so far are in last.pt, if there is one"
        ) from error


def _remedy(run: Run) -> str:
    bf16 = "" if run.numerics.precision != "fp32" else "precision bf16, "
    fewer = "" if max(run.options.iterations) == 1 else "fewer iterations, "
    return f"use a smaller shape, {bf16}{fewer}or close other programs"
