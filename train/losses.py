"""The terms of the training loss: local correlation of fixed and warped, smoothness of the flow, overlap of labels.

Source: "IIRP-Net" (CVPR 2024), equation 3, and the training code its authors released (the squared form).
Everything here computes in float32, also under autocast.
"""

from functools import lru_cache

import torch
from torch import Tensor

from runtime.geometry.similarity import LNCC_EPSILON, LNCC_WINDOW
from train.fields import warp

FORMS = ("plain", "squared")
MOST_LABELS = 16  # in one Dice term: each is an image of its own while gradients are computed
_COUNTED = 1 << 16  # labels below are found by counting, which is faster than sorting voxels


@lru_cache(maxsize=32)
def _band(size: int, window: int, device: torch.device) -> Tensor:
    """(size, size) matrix of ones where two indices are at most window // 2 apart."""
    index = torch.arange(size, device=device)
    return ((index[:, None] - index[None]).abs() <= window // 2).float()


def box_sum(images: Tensor, window: int) -> Tensor:
    """Sum over a cube of `window` voxels about every voxel, zeros outside. (C, I, J, K), differentiable.

    One banded matrix product per axis: faster on a CPU than pooling or running sums, forward and backward, and free
    of the rounding that running sums pile up in float32.
    """
    channels, i, j, k = images.shape
    along_i, along_j, along_k = (_band(size, window, images.device) for size in (i, j, k))
    images = torch.matmul(along_i, images.reshape(channels, i, j * k)).reshape(channels, i, j, k)
    return torch.matmul(torch.matmul(along_j, images), along_k)


def local_ncc(fixed: Tensor, warped: Tensor, form: str = "plain", window: int = LNCC_WINDOW) -> Tensor:
    """Mean over voxels of the local correlation of two images (N, 1, I, J, K); larger is more alike.

    Args:
        fixed: the target image, in [0, 1].
        warped: the moving image on the fixed grid, in [0, 1].
        form: "plain" is the coefficient cross / sqrt(var_fixed var_warped + 1e-5), in [-1, 1] (equation 3);
            "squared" is cross^2 / (var_fixed var_warped + 1e-5), in [0, 1], as `runtime.geometry.similarity.lncc`.
        window: odd edge of the cube in voxels.

    Variances and covariance are sums over the cube. Where an image is constant the value is 0 and its gradient finite.
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
    """Mean over the three axes of the mean squared forward difference of a flow (N, 3, I, J, K), in voxels^2.

    An axis of one voxel has no differences and counts as 0.
    """
    flow = flow.float()
    terms = [flow.diff(dim=axis).square() for axis in (2, 3, 4)]
    return sum(term.mean() for term in terms if term.numel()) / 3


def dice_loss(fixed_labels: Tensor, moving_labels: Tensor, flow: Tensor) -> Tensor:
    """1 - mean soft Dice of fixed and warped moving labels, in [0, 1]; 0 where there is no label to compare.

    Compared are the labels present in both maps, 16 of them spread evenly if there are more. Of a label, both maps are
    images of 0 and 1; the moving one is warped by interpolation, so the loss is differentiable in `flow`, and Dice is
    ``2 sum(f w) / (sum(f) + sum(w))``.

    Args:
        fixed_labels, moving_labels: (N, I, J, K), integers; 0 is nothing.
        flow: (N, 3, I, J, K), voxels, on the fixed grid.
    """
    wanted = _spread(_shared(fixed_labels, moving_labels))
    if not len(wanted):
        return 0 * flow.float().sum()
    with torch.autocast(flow.device.type, enabled=False):
        fixed, moving = (_one_hot(voxels, wanted) for voxels in (fixed_labels, moving_labels))
        warped = warp(moving, flow)
        common, f, w = (image.sum(dim=(2, 3, 4)) for image in (fixed * warped, fixed, warped))
        # A label that is nowhere, or wholly moved out, overlaps by 0 and must not divide by 0.
        return 1 - (2 * common / (f + w).clamp(min=1e-6)).mean()


def _one_hot(labels: Tensor, wanted: Tensor) -> Tensor:
    """(N, L, I, J, K) float32, 1 where a voxel has the label; channels-last memory, which a CPU warps fastest."""
    return (labels[..., None] == wanted).float().permute(0, 4, 1, 2, 3)


def _shared(fixed_labels: Tensor, moving_labels: Tensor) -> Tensor:
    """Labels above 0 in both maps, ascending."""
    maps = (fixed_labels, moving_labels)
    if max(int(labels.max()) for labels in maps) < _COUNTED:
        fixed, moving = (torch.bincount(labels.flatten(), minlength=_COUNTED) for labels in maps)
        return 1 + torch.nonzero((fixed * moving)[1:]).flatten()
    fixed, moving = (labels.unique() for labels in maps)
    return fixed[torch.isin(fixed, moving) & (fixed > 0)]


def _spread(labels: Tensor) -> Tensor:
    """At most MOST_LABELS of them, evenly spaced and the first and last among them."""
    if len(labels) <= MOST_LABELS:
        return labels
    return labels[torch.linspace(0, len(labels) - 1, MOST_LABELS, device=labels.device).round().long()]
