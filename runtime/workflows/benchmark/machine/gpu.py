"""The GPU a benchmark ran on: facts from its driver and, if installed, from `nvidia-smi`."""

import dataclasses
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

BUSY_PERCENT = 10  # of a GPU's time used by other processes before the benchmark starts
SECONDS = 20
# nvidia-smi's names -> names in the record; nvidia-smi answers in brackets for values it does not know.
QUERIES = {
    "driver_version": "driver_version",
    "clocks.sm": "clock_mhz",
    "clocks.max.sm": "largest_clock_mhz",
    "clocks.mem": "memory_clock_mhz",
    "clocks.max.mem": "largest_memory_clock_mhz",
    "temperature.gpu": "temperature_c",
    "power.limit": "power_limit_w",
    "memory.used": "memory_used_mib",
    "utilization.gpu": "used_percent",
    "persistence_mode": "persistence_mode",
    "compute_mode": "compute_mode",
}
WORDS = ("driver_version", "persistence_mode", "compute_mode")  # all others are numbers


def gpu_facts() -> dict[str, Any] | None:
    """Return the first GPU's name, compute capability, memory, driver, current clocks and load; None without a GPU."""
    from ....backends.cuda.gpu import GpuInfo, find_gpu

    gpu = find_gpu()
    return {**dataclasses.asdict(gpu), **smi_facts(gpu.bus)} if isinstance(gpu, GpuInfo) else None


def smi_facts(bus: str, run: Callable[..., Any] = subprocess.run) -> dict[str, str | float]:
    """Return facts from nvidia-smi about the GPU at a PCI bus id; empty if it is not installed or fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    query = [program, f"--id={bus}", f"--query-gpu={','.join(QUERIES)}", "--format=csv,noheader,nounits"]
    try:
        done = run(query, capture_output=True, text=True, timeout=SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    values = (value.strip() for value in done.stdout.strip().split(","))
    known = {name: value for name, value in zip(QUERIES.values(), values, strict=False) if value[:1] != "["}
    return {name: value if name in WORDS else float(value) for name, value in known.items()}


def gpu_words(gpu: dict[str, Any]) -> str:
    """Describe a GPU in one line."""
    clock, most = gpu.get("clock_mhz"), gpu.get("largest_clock_mhz")
    facts = [
        f"{gpu['memory_bytes'] / 2**30:.1f} GiB",
        "compute capability {}.{}".format(*gpu["capability"]),
        f"driver {gpu['driver_version']}" if "driver_version" in gpu else "",
        "for CUDA {}.{}".format(*gpu["driver"]),
        f"{clock:.0f} of {most:.0f} MHz" if isinstance(clock, float) and isinstance(most, float) else "",
        f"at most {gpu['power_limit_w']:.0f} W" if isinstance(gpu.get("power_limit_w"), float) else "",
    ]
    return f"{gpu['name']}: {', '.join(filter(None, facts))}"


def gpu_warnings(gpu: dict[str, Any] | None) -> list[str]:
    """Return warnings about figures from this GPU."""
    used = (gpu or {}).get("used_percent")
    if isinstance(used, float) and used > BUSY_PERCENT:
        return [f"the GPU was {used:.0f}% busy before the start; other processes use it"]
    return []
