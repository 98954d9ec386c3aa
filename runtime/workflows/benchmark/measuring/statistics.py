"""Statistics of a few runs, and thresholds for warnings about them."""

import math
from collections.abc import Sequence

import numpy as np

TRUSTED_SPREAD = 0.15  # (p90 - min) / median; runs on an idle machine stay below 0.05
BUSY_LOAD = 0.25  # 1-minute load average per core before the benchmark starts
BUSY_SHARE = 0.10  # share of the machine's processor time used by other processes while a contender runs


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the nearest-rank percentile: the smallest observed value that `percent` % of the values do not exceed.

    Nothing is interpolated, so with fewer than 100 values the 99th percentile is the largest one.
    """
    return sorted(values)[max(math.ceil(len(values) * percent / 100), 1) - 1]


def summary(values: Sequence[float]) -> dict[str, float]:
    """Return ``n``, ``min``, ``p10``, ``median``, ``mean``, ``p90``, ``p95``, ``p99`` and ``max`` of some values."""
    ranks = {f"p{percent}": percentile(values, percent) for percent in (10, 90, 95, 99)}
    middle, mean = float(np.median(values)), math.fsum(values) / len(values)
    return {"n": len(values), "min": min(values), "median": middle, "mean": mean, **ranks, "max": max(values)}


def spread(values: Sequence[float]) -> float:
    """Return (p90 - min) / median; 0 for a single value."""
    found = summary(values)
    return (found["p90"] - found["min"]) / found["median"] if found["median"] else 0.0


def ratios(slower: Sequence[float], faster: Sequence[float]) -> dict[str, float]:
    """Return ``median``, ``min``, ``max`` and ``n`` of the ratios by round; both ran in the same rounds and order."""
    found = [a / b for a, b in zip(slower, faster, strict=True)]
    return {"median": float(np.median(found)), "min": min(found), "max": max(found), "n": len(found)}


def line_fit(x: Sequence[float], y: Sequence[float]) -> dict[str, float]:
    """Fit a least-squares line: ``slope``, ``intercept`` and ``deviation``, the largest |y - line| / |line|.

    With fewer than two different x the line goes through the origin.
    """
    if len(set(x)) < 2:
        slope, intercept = float(np.mean(y) / np.mean(x)), 0.0
    else:
        slope, intercept = map(float, np.polyfit(x, y, 1))
    line = slope * np.asarray(x) + intercept
    return {"slope": slope, "intercept": intercept, "deviation": float(np.max(np.abs(y - line) / np.abs(line)))}
