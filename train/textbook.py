"""Warp, upsample and compose in the plainest PyTorch: what the parity gate and the benchmark call the definition.

`train.fields` computes the same, faster; `runtime.geometry.flow` defines both.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def identity(flow: Tensor) -> Tensor:
    """Voxel coordinates of a flow's grid, (1, 3, I, J, K), on the flow's device."""
    axes = [torch.arange(size, device=flow.device, dtype=torch.float32) for size in flow.shape[2:]]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]


def warp(image: Tensor, flow: Tensor, mode: str = "bilinear") -> Tensor:
    """``image(x + flow(x))``, trilinear (or ``mode="nearest"``), zeros outside. Computed and returned in float32.

    Args:
        image: (N, C, I, J, K).
        flow: (N, 3, I, J, K), voxels, component order = axis order.
    """
    size = torch.tensor(flow.shape[2:], device=flow.device, dtype=torch.float32).view(1, 3, 1, 1, 1)
    # Displacements are in voxels, so the grid's normalisation cancels out; this one is defined for one-voxel axes too.
    coordinates = (2 * (identity(flow) + flow.float()) + 1) / size - 1
    grid = coordinates.permute(0, 2, 3, 4, 1).flip(-1)
    return F.grid_sample(image.float(), grid, mode=mode, padding_mode="zeros", align_corners=False)


def upsample(flow: Tensor, scale: int) -> Tensor:
    """The same displacement on a grid `scale` times finer, values in voxels of that grid. (N, 3, I, J, K)."""
    return scale * F.interpolate(flow.float(), scale_factor=scale, mode="trilinear", align_corners=True)


def compose(flow: Tensor, residual: Tensor) -> Tensor:
    """``flow(x + residual(x)) + residual(x)``; both (N, 3, I, J, K)."""
    return warp(flow, residual) + residual
