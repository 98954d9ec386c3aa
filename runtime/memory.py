"""Memory: what a registration needs, what is there, what was used."""

import resource
import sys
from pathlib import Path

from runtime.geometry.errors import InputError

# Measured with the ONNX Runtime backend (docs/measurements); the estimator of level 1 sets it.
BYTES_PER_VOXEL = 750
BYTES_FIXED = 400 * 2**20


def needed_bytes(shape: tuple[int, int, int]) -> int:
    """Peak memory of a registration on a working grid of this shape, roughly."""
    i, j, k = shape
    return BYTES_FIXED + BYTES_PER_VOXEL * i * j * k


def available_bytes() -> int | None:
    """Memory that can be had without swapping; None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        facts = dict(line.split(":", 1) for line in lines if ":" in line)
        return int(facts["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


def peak_bytes() -> int:
    """Peak resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def check_fits(shape: tuple[int, int, int]) -> None:
    """Refuses work that would not fit, before it starts.

    Raises:
        InputError: the working grid needs more memory than is available.
    """
    needed, available = needed_bytes(shape), available_bytes()
    if available is not None and needed > available:
        raise InputError(
            f"--fixed: the working grid {shape} needs about {needed / 2**30:.1f} GiB, {available / 2**30:.1f} GiB are "
            "available; crop the fixed image, close other programs or use a machine with more memory"
        )
