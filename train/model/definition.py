"""Warp, upsample and compose in the plainest PyTorch: what the parity gate and the benchmark call the definition.

`train.model.fields` computes the same, faster; `runtime.geometry.flow` defines both.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def identity(shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Voxel coordinates (3, I, J, K) of a grid."""
    axes = (torch.arange(size, device=device, dtype=torch.float32) for size in shape)
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def warp(image: Tensor, flow: Tensor, mode: str = "bilinear") -> Tensor:
    """``image(x + flow(x))``, trilinear (or ``mode="nearest"``), zeros outside. Computed and returned in float32.

    Args:
        image: (N, C, I, J, K).
        flow: (N, 3, I, J, K), voxels, component order = axis order.
    """
    return sample(image.float(), identity(flow.shape[2:], flow.device) + flow.float(), mode, "zeros")


def sample(image: Tensor, coordinates: Tensor, mode: str, outside: str) -> Tensor:
    """`F.grid_sample` at voxel coordinates (N, 3, A, B, C) of an image (N, C, I, J, K); `outside` is its padding."""
    size = torch.tensor(image.shape[2:], device=image.device, dtype=torch.float32).view(1, 3, 1, 1, 1)
    # Coordinates are in voxels, so the grid's normalisation cancels out; this one is defined for one-voxel axes too.
    grid = ((2 * coordinates + 1) / size - 1).permute(0, 2, 3, 4, 1).flip(-1)
    return F.grid_sample(image, grid, mode=mode, padding_mode=outside, align_corners=False)


def upsample(flow: Tensor, scale: int) -> Tensor:
    """The same displacement on a grid `scale` times finer, values in voxels of that grid. (N, 3, I, J, K)."""
    return scale * F.interpolate(flow.float(), scale_factor=scale, mode="trilinear", align_corners=True)


def compose(flow: Tensor, residual: Tensor) -> Tensor:
    """``flow(x + residual(x)) + residual(x)``; both (N, 3, I, J, K)."""
    return warp(flow, residual) + residual
