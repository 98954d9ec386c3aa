"""A generated pair of images for self-tests, benchmarks and tests, identical every time and without any scan."""

from typing import cast

import numpy as np

from ..geometry.flow import resize, upsample, warp
from ..types import Array, Shape


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
