"""What every engine is held to: a generated pair of images, and the tolerances of its flow against the reference."""

from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from ..errors import InputError
from ..geometry.flow import resize, upsample, warp
from ..types import Array, Shape


@dataclass(frozen=True)
class Tolerance:
    """The tolerance of a precision: limits on the length of the difference of two flows, in voxels of the working grid.

    Attributes:
        largest: limit at any voxel; None: not limited.
        mean: limit of the mean over all voxels; None: not limited.
        counts: whether the iteration counts must be equal.
    """

    largest: float | None
    mean: float | None
    counts: bool

    def refusal(self, row: dict[str, Any]) -> str | None:
        """Return the reason why a result of the gate fails, None if it passes; NaN fails."""
        for name in ("largest", "mean"):
            limit, found = getattr(self, name), row["voxels"]["max" if name == "largest" else "mean"]
            if limit is not None and not found <= limit:  # also true for NaN
                return f"its flow differs by {found:.4g} voxel ({name}), allowed {limit:g}"
        if self.counts and not row["counts_equal"]:
            return f"it ran iterations {row['counts']}, expected {row['expected_counts']}"
        return None


# fp32: the export's own parity tolerance; a different order of summation changes the worst voxel by a few thousandths.
# bf16, fp16: seven and ten bits of mantissa, for uses where a twentieth of a voxel on average does not matter. Single
# voxels may differ by more where flows fold or leave the image, and iteration counts may change: both are reported.
TOLERANCES = {
    "fp32": Tolerance(largest=0.01, mean=None, counts=True),
    "bf16": Tolerance(largest=None, mean=0.05, counts=False),
    "fp16": Tolerance(largest=None, mean=0.05, counts=False),
}


def flow_difference(flow: Array, reference: Array) -> dict[str, float]:
    """Return max, mean, p95 and p99 over the grid of the length of the difference of two flows (3, I, J, K), in voxels.

    Raises:
        InputError: the shapes differ.
    """
    if flow.shape != reference.shape:
        raise InputError(f"benchmark: a flow has shape {flow.shape}, the reference's has {reference.shape}")
    length = np.sqrt(sum(np.square(a - b) for a, b in zip(flow, reference, strict=True)))
    p95, p99 = np.percentile(length, (95, 99))
    mean = length.mean(dtype=np.float64)
    return {"max": float(length.max()), "mean": float(mean), "p95": float(p95), "p99": float(p99)}


def example_pair(shape: Shape, seed: int = 0, displacement: float = 3.0) -> tuple[Array, Array]:
    """Return a fixed and a moving image (I, J, K), float32 in [0, 1]: a blobby body on black and a smooth warp of it.

    Args:
        shape: sizes, multiples of 8 and at least 16.
        seed: the same seed gives the same pair.
        displacement: standard deviation of the deformation, in voxels.
    """
    rng = np.random.default_rng(seed)
    layers = (resize(rng.random([max(size // step, 2) for size in shape], np.float32), shape) for step in (4, 8, 16))
    texture = cast(Array, sum(layers))
    axes = np.meshgrid(*(np.linspace(-1.2, 1.2, size) for size in shape), indexing="ij")
    body = np.clip(6 * (1 - sum(axis**2 for axis in axes)), 0, 1)
    fixed = (body * (0.2 + 0.8 * (texture - texture.min()) / np.ptp(texture))).astype(np.float32)
    control = rng.normal(0, displacement / 8, (3, *(size // 8 for size in shape))).astype(np.float32)
    return fixed, warp(fixed, upsample(control, 8))
