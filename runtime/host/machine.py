"""The machine: its cores, the memory a registration needs, what is there, and what was used."""

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

# Peak memory by part, bytes a voxel, fitted to measured registrations (docs/measurements): the loop with features of
# both images, what remains of it afterwards, the scans as read, and displacements while they are written: both ways.
LOOP, KEPT, SCAN, WRITING, INVERTING = 300, 24, 8, 80, 24
SIDE = 80  # of the loop's, what a fixed scan holds for the next moving one
ALWAYS = 300 * 2**20


def cores() -> int:
    """Processors this process may use: affinity, where the system has it, quotas, and what a batch system says."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(there, *limits.processor_limits(), there)


def installed_versions(distributions: Iterable[str]) -> dict[str, str]:
    """Versions of those that are installed."""
    found = {}
    for name in distributions:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


@functools.cache
def processor_name() -> str:
    """What the processor calls itself, with LLVM's name for its kind, such as "AMD EPYC (znver4)"."""
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
    """Instruction sets this processor and this system offer, in LLVM's names ("avx512f", "avx512bf16", "neon")."""
    from llvmlite.binding import get_host_cpu_features

    return frozenset(name for name, there in get_host_cpu_features().items() if there)


def needed_bytes(working: int, fixed: int = 0, moving: int = 0, again: bool = False) -> int:
    """Peak memory of a registration, roughly, from the numbers of voxels of its three grids.

    Of a further moving scan onto the same fixed one (`again`) it is what comes on top of what this process holds.
    """
    before, loop = ALWAYS + SCAN * fixed, LOOP * working
    if again:
        before, loop = 0, (LOOP - SIDE) * working - ARRAYS.unused_bytes
    return before + SCAN * moving + max(loop, KEPT * working + WRITING * fixed + INVERTING * moving)


def available_bytes() -> int | None:
    """Memory that can be had without swapping, within this process's limits; None where the system does not tell."""
    known = [_free_memory(), *(memory.rest for memory in limits.memory_limits())]
    return min((value for value in known if value is not None), default=None)


def most_bytes() -> int | None:
    """Memory that this process could have if nothing else took any; None where the system does not tell."""
    known = [_meminfo("MemTotal"), *(memory.limit for memory in limits.memory_limits())]
    return min((value for value in known if value is not None), default=None)


def _meminfo(name: str) -> int | None:
    """Bytes, of a line of what Linux tells about memory."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        facts = dict(line.split(":", 1) for line in lines if ":" in line)
        return int(facts[name].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


def _free_memory() -> int | None:
    return _meminfo("MemAvailable")


def peak_bytes() -> int | None:
    """Peak resident memory of this process so far; None where the system does not tell.

    Linux hands ru_maxrss on from the program that started this one; VmHWM is this program's own.
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
    """Refuse a registration that would not fit, before it starts; errors as for `require_memory`.

    Args:
        working: shape of the working grid.
        fixed, moving: voxels of the scans.
        again: this fixed scan's features are held from an earlier moving one.
    """
    i, j, k = working
    subject, remedy = f"--fixed: the working grid {working}", "crop the fixed image"
    if (SCAN + WRITING) * fixed + (SCAN + INVERTING) * moving > LOOP * i * j * k:
        sizes = f"{fixed / 1e6:.3g} and {moving / 1e6:.3g} million voxels"
        subject = f"--fixed, --moving: registering scans of {sizes}"
        remedy = "register copies of 0.5 or 1 mm (by apply --reference), apply the warp to the originals"
    require_memory(needed_bytes(i * j * k, fixed, moving, again), subject, remedy)


def require_memory(needed: int, subject: str, remedy: str) -> None:
    """Refuse work that would not fit, before it starts.

    Args:
        needed: bytes.
        subject: argument and what needs them, with which the message begins.
        remedy: with which it ends.

    Raises:
        InputError: more memory is needed than this computer has or allows.
        ScarceError: more is needed than is available just now.
    """
    never, now = (most_bytes(), "are all there are", InputError), (available_bytes(), "are available", ScarceError)
    for there, words, kind in (never, now):
        if there is not None and needed > there:
            remedy += ", or close other programs" if kind is ScarceError else ", or use a computer with more"
            have = f"{needed / 2**30:.1f} GiB of memory, {there / 2**30:.1f} GiB {words}"
            raise kind(f"{subject} needs about {have}; {remedy}")
