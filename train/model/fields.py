"""Warp, upsample, compose and Jacobian determinant for training; `runtime.geometry.flow` defines them."""

import torch
from torch import Tensor

from train.model import definition, fields_cpu
from train.model.definition import upsample

__all__ = ["compose", "determinant", "folded_share", "upsample", "warp"]


def warp(image: Tensor, flow: Tensor, mode: str = "bilinear") -> Tensor:
    """Compute `train.model.definition.warp`; on a CPU our own kernels do so, unless the mode is "nearest".

    Args:
        image: (N, C, I, J, K); channels-last memory avoids a copy.
        flow: (N, 3, I, J, K), voxels, component order = axis order.
        mode: "bilinear", which is trilinear in three dimensions, or "nearest".
    """
    if mode == "bilinear" and image.device.type == flow.device.type == "cpu":
        return fields_cpu.warp(image.float(), flow.float())
    return definition.warp(image, flow, mode)


def compose(flow: Tensor, residual: Tensor) -> Tensor:
    """Compute ``flow(x + residual(x)) + residual(x)``; both are (N, 3, I, J, K)."""
    return warp(flow, residual) + residual


def determinant(flow: Tensor) -> Tensor:
    """Compute the Jacobian determinant (I, J, K) of x + flow(x) by central differences, one-sided at the border.

    Args:
        flow: (1, 3, I, J, K), in voxels; each axis has two or more voxels.
    """
    slopes = [torch.gradient(component.float()) for component in flow[0]]
    rows = [[slope + (n == m) for m, slope in enumerate(row)] for n, row in enumerate(slopes)]
    (a, b, c), (d, e, f), (g, h, i) = rows
    return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)


def folded_share(flow: Tensor) -> float:
    """Return the share of voxels where the `determinant` of a flow is 0 or less."""
    return (determinant(flow) <= 0).float().mean().item()
