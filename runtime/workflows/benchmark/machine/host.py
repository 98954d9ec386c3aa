"""The machine a benchmark ran on, and its load."""

import os
import platform
import time
from pathlib import Path
from typing import Any

from ....host.machine import available_bytes, cores, processor_name
from .gpu import gpu_facts

# Instruction sets that determine the speed of convolutions, in Linux's names (x86, then Arm).
FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "bf16", "sve")
PROC = Path("/proc")


def machine_facts() -> dict[str, Any]:
    """Return processor, instruction sets, cores, memory, system, load and GPU, as plain types; None where unknown."""
    info = _cpu_info()
    return {
        "cpu": processor_name(),
        "flags": [flag for flag in FLAGS if flag in info.get("flags", info.get("Features", "")).split()],
        "cores": cores(),
        "cores_of_the_machine": os.cpu_count(),
        "memory_bytes": _total_bytes(),
        "memory_available_bytes": available_bytes(),
        "system": platform.platform(),
        "load_average": load_average(),
        "card": gpu_facts(),
    }


def load_average() -> float | None:
    """Return the number of runnable processes, averaged over the last minute; None if unknown."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _cpu_info() -> dict[str, str]:
    """Return the first processor's entry in /proc/cpuinfo."""
    try:
        lines = (PROC / "cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _total_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _busy_seconds() -> float | None:
    """Return the processor seconds used by all processes of the machine, including those stolen by a hypervisor."""
    try:
        user, nice, system, _, _, *rest = map(int, (PROC / "stat").read_text(encoding="ascii").split()[1:11])
    except (OSError, ValueError):
        return None
    # The skipped two are idle and iowait; the first three of the rest are irq, softirq and steal.
    return (user + nice + system + sum(rest[:3])) / os.sysconf("SC_CLK_TCK")


class Interference:
    """Processor time used, between entry and exit, by this process and by others.

    Attributes:
        processor_seconds: of this process, all threads.
        others: share of the machine's processor time used by other processes, in [0, 1]; None if unknown.
    """

    processor_seconds: float = 0.0
    others: float | None = None

    def __enter__(self) -> "Interference":
        self._before = time.perf_counter(), time.process_time(), _busy_seconds()
        return self

    def __exit__(self, *exception: object) -> None:
        wall, own, busy = self._before
        wall, self.processor_seconds = time.perf_counter() - wall, time.process_time() - own
        if busy is not None and wall > 0 and (now := _busy_seconds()) is not None:
            others = now - busy - self.processor_seconds
            self.others = min(max(others / (wall * (os.cpu_count() or 1)), 0.0), 1.0)
