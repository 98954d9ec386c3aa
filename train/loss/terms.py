"""The terms of the training loss: local correlation, label overlap, roughness and inconsistency of flows.

Source: "IIRP-Net" (CVPR 2024), equation 3, and the training code its authors released (the squared form). Bending
energy: Rueckert et al. (1999), equation 4, as means over voxels. Flows are (N, 3, I, J, K), in voxels.
Everything here computes in float32, also under autocast.
"""

import math
from functools import lru_cache
from typing import cast

import torch
from torch import Tensor

from runtime.images.similarity import LNCC_EPSILON, LNCC_WINDOW
from train.model.fields import compose, warp

FORMS = ("plain", "squared")
SMALLEST_VOLUME = 0.2  # Jacobian determinant below which its squared logarithm is continued linearly
MOST_LABELS = 16  # in one Dice term: each label takes the memory of an image while gradients are computed
_COUNTED = 1 << 16  # labels below this are found by counting, which is faster than sorting voxels


@lru_cache(maxsize=32)
def _band(size: int, window: int, device: torch.device) -> Tensor:
    """Return a (size, size) matrix with ones where two indices are at most window // 2 apart, else zeros."""
    index = torch.arange(size, device=device)
    return ((index[:, None] - index[None]).abs() <= window // 2).float()


def box_sum(images: Tensor, window: int) -> Tensor:
    """Sum (C, I, J, K) over a cube of `window` voxels around every voxel, with zeros outside; differentiable.

    One banded matrix product per axis is faster on a CPU than pooling or running sums, forward and backward, and has
    none of the rounding errors that running sums accumulate in float32.
    """
    channels, i, j, k = images.shape
    along_i, along_j, along_k = (_band(size, window, images.device) for size in (i, j, k))
    images = torch.matmul(along_i, images.reshape(channels, i, j * k)).reshape(channels, i, j, k)
    return torch.matmul(torch.matmul(along_j, images), along_k)


def local_ncc(fixed: Tensor, warped: Tensor, form: str = "plain", window: int = LNCC_WINDOW) -> Tensor:
    """Compute the mean over voxels of the local correlation of two images (N, 1, I, J, K); larger is more similar.

    Variances and covariance are sums over a cube. Where an image is constant, the value is 0 and its gradient finite.

    Args:
        fixed: the target image, in [0, 1].
        warped: the moving image on the fixed grid, in [0, 1].
        form: "plain" is the coefficient cross / sqrt(var_fixed var_warped + 1e-5), in [-1, 1] (equation 3);
            "squared" is cross^2 / (var_fixed var_warped + 1e-5), in [0, 1], as `runtime.images.similarity.lncc`.
        window: odd edge length of the cube, voxels.
    """
    with torch.autocast(fixed.device.type, enabled=False):
        f, w = (image.float().reshape(-1, *image.shape[2:]) for image in (fixed, warped))
        count = window**3
        sums = box_sum(torch.cat((f, w, f * f, w * w, f * w)), window)
        sum_f, sum_w, sum_ff, sum_ww, sum_fw = sums.chunk(5)
        cross = sum_fw - sum_f * sum_w / count
        variances = (sum_ff - sum_f * sum_f / count).clamp(min=0) * (sum_ww - sum_w * sum_w / count).clamp(min=0)
        if form == "squared":
            return (cross * cross / (variances + LNCC_EPSILON)).mean()
        return (cross * torch.rsqrt(variances + LNCC_EPSILON)).mean()


def smoothness(flow: Tensor) -> Tensor:
    """Compute the mean over the three axes of the mean squared forward difference of a flow (N, 3, I, J, K).

    The unit is voxels^2. An axis of one voxel has no differences and counts as 0.
    """
    flow = flow.float()
    terms = [flow.diff(dim=axis).square() for axis in (2, 3, 4)]
    return cast(Tensor, sum(term.mean() for term in terms if term.numel())) / 3


def bending(flow: Tensor) -> Tensor:
    """Compute the mean over the nine pairs of axes of the mean squared second forward difference of a flow.

    The unit is voxels^2; every affine flow gives 0. Mixed differences count twice, as a,b and b,a; pairs with an axis
    that is too short for a difference count as 0.
    """
    slopes = [flow.float().diff(dim=axis) for axis in (2, 3, 4)]
    pairs = [(a, b) for a in range(3) for b in range(a, 3)]
    terms = [(1 if a == b else 2) * slopes[a].diff(dim=2 + b).square() for a, b in pairs]
    return cast(Tensor, sum(term.mean() for term in terms if term.numel())) / 9


def log_jacobian(flow: Tensor) -> Tensor:
    """Compute the mean squared logarithm of the Jacobian determinant d of x + flow(x); 0 where volumes are preserved.

    d is computed from forward differences in the cell between a voxel and its next neighbours; every axis needs two or
    more voxels. Below v = SMALLEST_VOLUME, (log d)^2 is continued by its tangent, (log v)^2 + 2 (d - v) log v / v:
    value and slope are continuous, the gradient opens a fold of any depth, and no cell outweighs all others.
    """
    rows = [[_cell_slope(component, axis) for axis in (1, 2, 3)] for component in flow.float().unbind(1)]
    (a, b, c), (d, e, f), (g, h, i) = [[slope + (n == m) for m, slope in enumerate(row)] for n, row in enumerate(rows)]
    volume = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
    slope = 2 * math.log(SMALLEST_VOLUME) / SMALLEST_VOLUME
    beyond = slope * (volume - SMALLEST_VOLUME).clamp(max=0)
    return (volume.clamp(min=SMALLEST_VOLUME).log().square() + beyond).mean()


def _cell_slope(component: Tensor, axis: int) -> Tensor:
    """Return the forward difference of (N, I, J, K) along an axis, without the last voxel of each axis."""
    cells = [slice(None), *(slice(size - 1) for size in component.shape[1:])]
    cells[axis] = slice(None)
    return component[tuple(cells)].diff(dim=axis)


def inverse_consistency(flows: Tensor) -> Tensor:
    """Compute the mean squared length of the residual of two composed flows, in voxels^2.

    Inverse flows leave no residual. Both orders of composition are averaged.

    Args:
        flows: (2, 3, I, J, K): of b onto a's grid and of a onto b's.
    """
    return compose(flows, flows.flip(0)).square().sum(dim=1).mean()


def dice_loss(fixed_labels: Tensor, moving_labels: Tensor, flow: Tensor) -> Tensor:
    """Compute 1 - mean soft Dice of fixed and warped moving labels, in [0, 1]; 0 if there is no label to compare.

    The labels in both maps are compared; of more than 16, 16 evenly spaced ones. For each label, both maps are images
    of 0 and 1. The moving one is warped by trilinear interpolation, so the loss is differentiable in `flow`, and Dice
    is ``2 sum(f w) / (sum(f) + sum(w))``.

    Args:
        fixed_labels, moving_labels: (N, I, J, K), integers; 0 is background.
        flow: (N, 3, I, J, K), voxels, on the fixed grid.
    """
    wanted = _spread(_shared(fixed_labels, moving_labels))
    if not len(wanted):
        return 0 * flow.float().sum()
    with torch.autocast(flow.device.type, enabled=False):
        fixed, moving = (_one_hot(voxels, wanted) for voxels in (fixed_labels, moving_labels))
        warped = warp(moving, flow)
        common, f, w = (image.sum(dim=(2, 3, 4)) for image in (fixed * warped, fixed, warped))
        # A label that is absent or moved out of the image has an overlap of 0; avoid a division by 0.
        return 1 - (2 * common / (f + w).clamp(min=1e-6)).mean()


def _one_hot(labels: Tensor, wanted: Tensor) -> Tensor:
    """Return (N, L, I, J, K) float32, 1 where a voxel has the label, in channels-last memory: fastest for CPU warps."""
    return (labels[..., None] == wanted).float().permute(0, 4, 1, 2, 3)


def _shared(fixed_labels: Tensor, moving_labels: Tensor) -> Tensor:
    """Return the labels above 0 that are in both maps, ascending."""
    maps = (fixed_labels, moving_labels)
    if max(int(labels.max()) for labels in maps) < _COUNTED:
        fixed, moving = (torch.bincount(labels.flatten(), minlength=_COUNTED) for labels in maps)
        return 1 + torch.nonzero((fixed * moving)[1:]).flatten()
    fixed, moving = (labels.unique() for labels in maps)
    return fixed[torch.isin(fixed, moving) & (fixed > 0)]


def _spread(labels: Tensor) -> Tensor:
    """Return at most MOST_LABELS of the labels, evenly spaced and including the first and last."""
    if len(labels) <= MOST_LABELS:
        return labels
    return labels[torch.linspace(0, len(labels) - 1, MOST_LABELS, device=labels.device).round().long()]
