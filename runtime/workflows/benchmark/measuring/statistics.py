"""Numbers out of a few runs, and how far they can be trusted."""

import math
from collections.abc import Sequence

import numpy as np

TRUSTED_SPREAD = 0.15  # (p90 - min) / median; runs of one machine at rest stay below 0.05
BUSY_LOAD = 0.25  # 1-minute load average a core before the benchmark starts
BUSY_SHARE = 0.10  # of the machine's processor time taken by others while a contender runs


def percentile(values: Sequence[float], percent: float) -> float:
    """Nearest rank: the smallest observed value that `percent` % of the values do not exceed.

    Nothing is interpolated, so of fewer than 100 values the 99th percentile is the largest one.
    """
    return sorted(values)[max(math.ceil(len(values) * percent / 100), 1) - 1]


def summary(values: Sequence[float]) -> dict[str, float]:
    """``n``, ``min``, ``p10``, ``median``, ``mean``, ``p90``, ``p95``, ``p99`` and ``max`` of one or more values."""
    ranks = {f"p{percent}": percentile(values, percent) for percent in (10, 90, 95, 99)}
    middle, mean = float(np.median(values)), math.fsum(values) / len(values)
    return {"n": len(values), "min": min(values), "median": middle, "mean": mean, **ranks, "max": max(values)}


def spread(values: Sequence[float]) -> float:
    """(p90 - min) / median; 0 where there is one value only."""
    found = summary(values)
    return (found["p90"] - found["min"]) / found["median"] if found["median"] else 0.0


def ratios(slower: Sequence[float], faster: Sequence[float]) -> dict[str, float]:
    """Ratio round by round: ``median``, ``min`` and ``max``. Both ran in the same rounds, in the same order."""
    found = [a / b for a, b in zip(slower, faster, strict=True)]
    return {"median": float(np.median(found)), "min": min(found), "max": max(found), "n": len(found)}


def line_fit(x: Sequence[float], y: Sequence[float]) -> dict[str, float]:
    """Least squares line: ``slope``, ``intercept``, and ``deviation``, the largest |y - line| relative to the line.

    With fewer than two different x the line goes through the origin.
    """
    if len(set(x)) < 2:
        slope, intercept = float(np.mean(y) / np.mean(x)), 0.0
    else:
        slope, intercept = map(float, np.polyfit(x, y, 1))
    line = slope * np.asarray(x) + intercept
    return {"slope": slope, "intercept": intercept, "deviation": float(np.max(np.abs(y - line) / np.abs(line)))}
