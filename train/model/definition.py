"""Warp, upsample and compose in plain PyTorch: the reference implementation of the parity gate and the benchmark.

`train.model.fields` computes the same, faster; `runtime.geometry.flow` defines both.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def identity(shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Return the voxel coordinates (3, I, J, K) of a grid."""
    axes = (torch.arange(size, device=device, dtype=torch.float32) for size in shape)
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def warp(image: Tensor, flow: Tensor, mode: str = "bilinear") -> Tensor:
    """Compute ``image(x + flow(x))`` with zeros outside, in float32.

    Args:
        image: (N, C, I, J, K).
        flow: (N, 3, I, J, K), voxels, component order = axis order.
        mode: "bilinear", which is trilinear in three dimensions, or "nearest".
    """
    return sample(image.float(), identity(flow.shape[2:], flow.device) + flow.float(), mode, "zeros")


def sample(image: Tensor, coordinates: Tensor, mode: str, outside: str) -> Tensor:
    """Apply `F.grid_sample` at voxel coordinates (N, 3, A, B, C) of an image (N, C, I, J, K).

    `outside` is the padding mode.
    """
    size = torch.tensor(image.shape[2:], device=image.device, dtype=torch.float32).view(1, 3, 1, 1, 1)
    # grid_sample expects coordinates normalised to [-1, 1] and the last axis first, hence the flip. With
    # align_corners=False the normalisation is also defined for axes of one voxel.
    grid = ((2 * coordinates + 1) / size - 1).permute(0, 2, 3, 4, 1).flip(-1)
    return F.grid_sample(image, grid, mode=mode, padding_mode=outside, align_corners=False)


def upsample(flow: Tensor, scale: int) -> Tensor:
    """Return the displacement (N, 3, I, J, K) on a grid `scale` times finer, in voxels of that grid."""
    return scale * F.interpolate(flow.float(), scale_factor=scale, mode="trilinear", align_corners=True)


def compose(flow: Tensor, residual: Tensor) -> Tensor:
    """Compute ``flow(x + residual(x)) + residual(x)``; both are (N, 3, I, J, K)."""
    return warp(flow, residual) + residual
