"""The machine a benchmark ran on, and how busy it was."""

import os
import platform
import time
from pathlib import Path
from typing import Any

from ....host.machine import available_bytes, cores, processor_name
from .gpu import gpu_facts

# Instructions that decide how fast convolutions are, in Linux's names (x86, then Arm).
FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "bf16", "sve")
PROC = Path("/proc")


def machine_facts() -> dict[str, Any]:
    """Processor, instructions, cores, memory, system, load and GPU, as plain types; None where it is not told."""
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
    """Processes that wanted to run, averaged over the last minute."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _cpu_info() -> dict[str, str]:
    """The first processor's entry of /proc/cpuinfo."""
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
    """Processor seconds all processes of the machine have used, those a host withheld (steal) included."""
    try:
        user, nice, system, _, _, *rest = map(int, (PROC / "stat").read_text(encoding="ascii").split()[1:11])
    except (OSError, ValueError):
        return None
    return (user + nice + system + sum(rest[:3])) / os.sysconf("SC_CLK_TCK")


class Interference:
    """Measures, between entry and exit, how much of the machine others than this process used.

    Attributes:
        processor_seconds: this process's own, all threads.
        others: share of the machine's processor time used by others, in [0, 1]; None where the system does not tell.
    """

    processor_seconds: float = 0.0
    others: float | None = None

    def __enter__(self) -> "Interference":
        self._before = time.perf_counter(), time.process_time(), _busy_seconds()
        return self

    def __exit__(self, *exception: object) -> None:
        wall, own, busy = self._before
        wall, self.processor_seconds = time.perf_counter() - wall, time.process_time() - own
        if busy is not None and wall > 0:
            others = _busy_seconds() - busy - self.processor_seconds
            self.others = min(max(others / (wall * (os.cpu_count() or 1)), 0.0), 1.0)
