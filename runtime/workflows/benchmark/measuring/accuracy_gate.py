"""The accuracy gate: only contenders that compute the reference's flow are timed."""

from pathlib import Path
from typing import Any

import numpy as np

from ....backends.parity import TOLERANCES, flow_difference
from ....errors import InputError
from ..contenders.contender import RunSettings
from ..contenders.process import Worker


class GateError(InputError):
    """Error of a contender whose flow is too far from the reference; nothing is timed."""


def check_all(
    reference: Worker, contenders: list[tuple[Worker, str]], task: RunSettings, spacing: float, folder: Path
) -> list[dict[str, Any]]:
    """Compare each contender's result with the reference's; all have loaded the same images.

    Args:
        reference: open worker of the reference.
        contenders: open workers and their precisions; the reference may be among them and is run once.
        task: schedule and similarity.
        spacing: mm per voxel.
        folder: temporary folder for flows.

    Returns:
        One row for the reference, then one for each contender.

    Raises:
        GateError: a contender fails; raised at the first one.
    """
    path = folder / "reference.npy"
    expected = reference.call("check", task, path)
    rows = [{"name": reference.name, "reference": True, **_facts(expected)}]
    for worker, precision in contenders:
        if worker is reference:
            continue
        found = worker.call("check", task, folder / "flow.npy")
        difference = flow_difference(np.load(folder / "flow.npy"), np.load(path))
        rows.append(_row(worker.name, precision, found, expected, difference, spacing))
        if reason := TOLERANCES[precision].refusal(rows[-1]):
            raise GateError(f"benchmark: {worker.name} is not timed: {reason}, from {reference.name}")
    return rows


def _row(name: str, precision: str, found: dict, expected: dict, voxels: dict[str, float], spacing: float) -> dict:
    return {
        "name": name,
        "reference": False,
        "precision": precision,
        "tolerance": vars(TOLERANCES[precision]),
        "voxels": voxels,
        "mm": {key: value * spacing for key, value in voxels.items()},
        "counts_equal": found["counts"] == expected["counts"],
        "expected_counts": expected["counts"],
        **_facts(found),
    }


def _facts(found: dict[str, Any]) -> dict[str, Any]:
    return {name: found[name] for name in ("counts", "executed", "similarity", "folded_share")}
