"""How long registrations took on this machine before, from which the time of the next one is estimated.

A few lines in the cache folder, without any path or name: what ran, for how many voxels, how many seconds.
"""

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...host.cache_folder import cache_folder, keep, kept
from ...host.files.hashes import sha256_of_facts

NAME = "past-runs.json"
KEPT = 50  # runs that are remembered
FACTS = ("backend", "precision", "threads", "engines")  # of `OpenEngines.as_dict`, which a time depends on


def remember(engine: Mapping[str, Any], schedule: str, voxels: int, seconds: float) -> None:
    """Remember a registration; nothing happens if the cache cannot be written.

    Args:
        engine: facts on the engines (`OpenEngines.as_dict`).
        schedule: name of the schedule.
        voxels: number of voxels of the working grid.
        seconds: time from reading to the result, before it is written.
    """
    runs = [*_runs(), {"key": _key(engine, schedule), "voxels": voxels, "seconds": seconds}]
    keep(_path(), json.dumps(runs[-KEPT:]).encode())


def expected_seconds(engine: Mapping[str, Any], schedule: str, voxels: int) -> float | None:
    """Return the median time of past runs of the same kind, scaled to a number of voxels; None if there are none."""
    key = _key(engine, schedule)
    paces = [run["seconds"] / run["voxels"] for run in _runs() if run["key"] == key]
    return statistics.median(paces) * voxels if paces else None


def _path() -> Path:
    return cache_folder(NAME) / NAME


def _key(engine: Mapping[str, Any], schedule: str) -> str:
    return sha256_of_facts([{name: engine[name] for name in FACTS}, schedule])[:16]


def _runs() -> list[dict[str, Any]]:
    """Return the remembered runs; none if the file is missing, damaged or of another version."""
    try:
        runs = json.loads(kept(_path()) or b"[]")
        valid = [run for run in runs if isinstance(run["key"], str) and run["voxels"] > 0 and run["seconds"] > 0]
    except (ValueError, TypeError, KeyError):
        return []
    return valid
