"""The machine's cores and instruction sets, and memory: what a registration needs, what is available, what was used."""

import contextlib
import functools
import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterable
from pathlib import Path

from ..errors import InputError, ScarceError
from . import limits
from .memory import ARRAYS

# Peak memory by part, in bytes per voxel, fitted to measured registrations (docs/measurements): the loop with features
# of both images, what remains of it afterwards, the scans as read, and displacements while they are written: the
# forward one and the inverse.
LOOP, KEPT, SCAN, WRITING, INVERTING = 300, 24, 8, 80, 24
SIDE = 80  # the part of LOOP that a fixed scan keeps for the next moving one
ALWAYS = 300 * 2**20  # bytes of the process itself


def cores() -> int:
    """Return the number of processors this process may use, by affinity, quotas and the batch system."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(there, *limits.processor_limits(), there)


def installed_versions(distributions: Iterable[str]) -> dict[str, str]:
    """Return the versions of those distributions that are installed."""
    found = {}
    for name in distributions:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


@functools.cache
def processor_name() -> str:
    """Return the processor's name with LLVM's name for its architecture, such as "AMD EPYC (znver4)"."""
    from llvmlite.binding import get_host_cpu_name

    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{name} ({get_host_cpu_name()})"


@functools.cache
def processor_features() -> frozenset[str]:
    """Return the available instruction sets by LLVM's names ("avx512f", "avx512bf16", "neon")."""
    from llvmlite.binding import get_host_cpu_features

    return frozenset(name for name, there in get_host_cpu_features().items() if there)


def needed_bytes(working: int, fixed: int = 0, moving: int = 0, again: bool = False) -> int:
    """Estimate the peak memory of a registration from the numbers of voxels of its three grids.

    For a further moving scan with the same fixed one (`again`), it is the memory beyond what this process holds.
    """
    before, loop = ALWAYS + SCAN * fixed, LOOP * working
    if again:
        before, loop = 0, (LOOP - SIDE) * working - ARRAYS.unused_bytes
    return before + SCAN * moving + max(loop, KEPT * working + WRITING * fixed + INVERTING * moving)


def available_bytes() -> int | None:
    """Return the memory available without swapping, within this process's limits; None if that is not known."""
    known = [_free_memory(), *(memory.rest for memory in limits.memory_limits())]
    return min((value for value in known if value is not None), default=None)


def most_bytes() -> int | None:
    """Return the most memory this process could ever use, within its limits; None if that is not known."""
    known = [_meminfo("MemTotal"), *(memory.limit for memory in limits.memory_limits())]
    return min((value for value in known if value is not None), default=None)


def _meminfo(name: str) -> int | None:
    """Return the bytes in a line of Linux's ``/proc/meminfo``; None if there is none."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        facts = dict(line.split(":", 1) for line in lines if ":" in line)
        return int(facts[name].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


def _free_memory() -> int | None:
    return _meminfo("MemAvailable")


def peak_bytes() -> int | None:
    """Return the peak resident memory of this process so far; None if that is not known.

    On Linux, ru_maxrss is inherited from the program that started this one; VmHWM is this program's own.
    """
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = limits.STATUS.read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    with contextlib.suppress(ImportError):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return None


def check_fits(working: tuple[int, int, int], fixed: int, moving: int, again: bool = False) -> None:
    """Refuse a registration that would not fit into memory, before it starts; errors as for `require_memory`.

    Args:
        working: shape of the working grid.
        fixed, moving: voxels of the scans.
        again: this fixed scan's features are already in memory, from an earlier moving one.
    """
    i, j, k = working
    subject, remedy = f"--fixed: the working grid {working}", "crop the fixed image"
    if (SCAN + WRITING) * fixed + (SCAN + INVERTING) * moving > LOOP * i * j * k:
        sizes = f"{fixed / 1e6:.3g} and {moving / 1e6:.3g} million voxels"
        subject = f"--fixed, --moving: registering scans of {sizes}"
        remedy = "register copies resampled to 0.5 or 1 mm (apply --reference), apply the warp to the originals"
    require_memory(needed_bytes(i * j * k, fixed, moving, again), subject, remedy)


def require_memory(needed: int, subject: str, remedy: str) -> None:
    """Refuse work that would not fit into memory, before it starts.

    Args:
        needed: bytes.
        subject: beginning of the message: the argument, and what needs the memory.
        remedy: end of the message.

    Raises:
        InputError: more memory is needed than this machine has or allows.
        ScarceError: more memory is needed than is available at the moment.
    """
    never, now = (
        (most_bytes(), "is available in total", InputError),
        (available_bytes(), "is available", ScarceError),
    )
    for there, words, kind in (never, now):
        if there is not None and needed > there:
            remedy += ", or close other programs" if kind is ScarceError else ", or use a machine with more"
            have = f"{needed / 2**30:.1f} GiB of memory, {there / 2**30:.1f} GiB {words}"
            raise kind(f"{subject} needs about {have}; {remedy}")
