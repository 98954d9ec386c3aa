"""Minimum memory traffic of the field operations on a GPU, which bounds their time from below."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ...types import Shape

# Minimum memory traffic in bytes per voxel of the image, for C channels of b bytes and a flow coarser by a factor s.
TRAFFIC: dict[str, Callable[[int, int, int], float]] = {
    "warp_into": lambda C, b, s: 2 * C * b + 12,
    "carry": lambda C, b, s: 2 * C * b,
    "compose": lambda C, b, s: 36,
    "upsample": lambda C, b, s: 12 + 12 / s**3,
    "warp": lambda C, b, s: 20,
    "score": lambda C, b, s: 8 + 12 / s**3,
    "score lncc": lambda C, b, s: 56 + 12 / s**3,
    "folded_share": lambda C, b, s: 12,
    "extremes": lambda C, b, s: 4,
    "scorer": lambda C, b, s: 4,
    "halve": lambda C, b, s: 36,
    "smooth": lambda C, b, s: 32,
}


def traffic(operation: str, shape: Shape, channels: int = 1, dtype: Any = np.float32, scale: int = 1) -> int:
    """Return the minimum number of bytes that an operation reads and writes in device memory, each voxel once.

    Args:
        operation: a method of `CudaFields`; "score" is the call of a scorer, "smooth" that of a smoother.
        shape: (I, J, K) of the grid that is written, or the image's for scores.
        channels, dtype: channels and type of the features that are warped or copied.
        scale: factor by which the flow is coarser ("upsample", "score").
    """
    return round(TRAFFIC[operation](channels, np.dtype(dtype).itemsize, scale) * math.prod(shape))
