"""How far a flow may be from the definition's, by the precision it was computed in."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError
from ..types import Array


@dataclass(frozen=True)
class Tolerance:
    """What a precision is allowed, in voxels of the working grid, lengths of the difference of two flows.

    Attributes:
        largest: of any voxel; None: not limited.
        mean: over all voxels; None: not limited.
        counts: whether the iteration counts must be equal.
    """

    largest: float | None
    mean: float | None
    counts: bool

    def refusal(self, row: dict[str, Any]) -> str | None:
        """Why a row of the gate fails; None where it passes. What is not a number fails."""
        for name in ("largest", "mean"):
            limit, found = getattr(self, name), row["voxels"]["max" if name == "largest" else "mean"]
            if limit is not None and not found <= limit:
                return f"its flow differs by {found:.4g} voxel ({name}), allowed {limit:g}"
        if self.counts and not row["counts_equal"]:
            return f"it ran iterations {row['counts']}, expected {row['expected_counts']}"
        return None


# fp32: the export's own parity tolerance; sums in another order come to a few thousandths at the worst voxel.
# bf16, fp16: seven and ten bits of mantissa, for when a twentieth of a voxel on average does not matter. Single voxels
# may differ by more where flows fold or leave the image, and an iteration count may tip over: both are reported.
TOLERANCES = {
    "fp32": Tolerance(largest=0.01, mean=None, counts=True),
    "bf16": Tolerance(largest=None, mean=0.05, counts=False),
    "fp16": Tolerance(largest=None, mean=0.05, counts=False),
}


def flow_difference(flow: Array, reference: Array) -> dict[str, float]:
    """Length of the difference of two flows (3, I, J, K) in voxels: ``max``, ``mean``, ``p95``, ``p99`` over the grid.

    Raises:
        InputError: the shapes differ.
    """
    if flow.shape != reference.shape:
        raise InputError(f"benchmark: a flow has shape {flow.shape}, the reference's has {reference.shape}")
    length = np.sqrt(sum(np.square(a - b) for a, b in zip(flow, reference, strict=True)))
    p95, p99 = np.percentile(length, (95, 99))
    mean = length.mean(dtype=np.float64)
    return {"max": float(length.max()), "mean": float(mean), "p95": float(p95), "p99": float(p99)}
