"""The GPU a benchmark ran on: what its driver says of it, and what `nvidia-smi` adds where it is installed."""

import dataclasses
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

BUSY_PERCENT = 10  # of a GPU's time used by others, before anything here has begun
SECONDS = 20
# nvidia-smi's names and ours; what it does not know of a GPU, it answers in brackets.
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
    """The first GPU's name, compute capability, memory, driver, and clocks and load now; None without a GPU."""
    from ....backends.cuda.gpu import GpuInfo, find_gpu

    gpu = find_gpu()
    return {**dataclasses.asdict(gpu), **smi_facts(gpu.bus)} if isinstance(gpu, GpuInfo) else None


def smi_facts(bus: str, run: Callable[..., Any] = subprocess.run) -> dict[str, str | float]:
    """What nvidia-smi tells of the GPU at this place; empty where it is not installed or fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    query = [program, f"--id={bus}", f"--query-gpu={','.join(QUERIES)}", "--format=csv,noheader,nounits"]
    try:
        done = run(query, capture_output=True, text=True, timeout=SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    values = (value.strip() for value in done.stdout.strip().split(","))
    told = {name: value for name, value in zip(QUERIES.values(), values, strict=False) if value[:1] != "["}
    return {name: value if name in WORDS else float(value) for name, value in told.items()}


def gpu_words(gpu: dict[str, Any]) -> str:
    """A GPU in a line."""
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


def gpu_doubts(gpu: dict[str, Any] | None) -> list[str]:
    """Why figures from this GPU should not be trusted."""
    used = (gpu or {}).get("used_percent")
    if isinstance(used, float) and used > BUSY_PERCENT:
        return [f"the GPU was {used:.0f}% busy before the start; others use it"]
    return []
