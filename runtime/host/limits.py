"""Limits that a container, a batch system or a shell sets: control groups (versions 1 and 2) and ``ulimit``."""

import contextlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CGROUP, OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
STATUS = Path("/proc/self/status")
# Memory by version of control groups: limit, use, and the entry of memory.stat for file cache that can be dropped.
MEMORY = {
    2: ("memory.max", "memory.current", "inactive_file"),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
PROCESSORS = ("SLURM_CPUS_PER_TASK", "NUMBA_NUM_THREADS")  # environment variables that limit the processors


@dataclass(frozen=True)
class MemoryLimit:
    """A memory limit and what is left of it, in bytes."""

    limit: int
    rest: int


def memory_limits() -> list[MemoryLimit]:
    """Return the memory limits of this process."""
    groups = [_memory_of_group(folder, version) for version in MEMORY for folder in _groups("memory", version)]
    return [limit for limit in (*groups, *_own_limits()) if limit is not None]


def processor_limits() -> list[int]:
    """Return the limits of the number of processors: quotas, rounded up, and environment variables."""
    quotas = [_quota_2(folder) for folder in _groups("cpu", 2)] + [_quota_1(folder) for folder in _groups("cpu", 1)]
    words = [os.environ.get(name, "") for name in PROCESSORS]
    return [max(1, math.ceil(quota)) for quota in quotas if quota] + [
        int(word) for word in words if word.isdecimal() and int(word) > 0
    ]


def _groups(controller: str, version: int) -> Iterator[Path]:
    """Yield the folders of this process's control group and its parents; in a container only the latter may exist.

    ``/proc/self/cgroup`` has lines "0::/job/step" (version 2) and "4:cpu,cpuacct:/job/step" (version 1).
    """
    with contextlib.suppress(OSError, ValueError):
        for line in OWN_CGROUP.read_text(encoding="utf-8").splitlines():
            _, controllers, place = line.split(":", 2)
            names = controllers.split(",")
            if version == 2 and controllers == "":
                roots = [CGROUP]
            elif version == 1 and controller in names:
                roots = [CGROUP / name for name in dict.fromkeys((controllers, *names))]
            else:
                continue
            for root in roots:
                own = root / place.lstrip("/")
                yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(root))


def _memory_of_group(folder: Path, version: int) -> MemoryLimit | None:
    """Return the memory limit of a control group; None without a limit."""
    most, used, unneeded = MEMORY[version]
    try:
        limit, taken = (int((folder / name).read_text()) for name in (most, used))
        facts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return MemoryLimit(limit, max(limit - taken + int(facts[unneeded]), 0))
    except (OSError, ValueError, KeyError):
        return None


def _own_limits() -> Iterator[MemoryLimit]:
    """Yield the limits of ``ulimit -v`` and ``-d``, as batch systems set them for a job's memory."""
    with contextlib.suppress(ImportError, OSError, ValueError, KeyError):
        import resource

        facts = dict(line.split(":", 1) for line in STATUS.read_text(encoding="utf-8").splitlines())
        for limit, name in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
            most = resource.getrlimit(limit)[0]
            if most != resource.RLIM_INFINITY:
                yield MemoryLimit(most, max(most - int(facts[name].split()[0]) * 1024, 0))


def _quota_2(folder: Path) -> float | None:
    """Return the processors that ``cpu.max`` allows, "50000 100000" for a half; None for "max 100000"."""
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = (folder / "cpu.max").read_text().split()
        return int(quota) / int(period)
    return None


def _quota_1(folder: Path) -> float | None:
    """Return the processors that version 1 allows, where a quota of -1 means no limit."""
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        return quota / period if quota > 0 else None
    return None
