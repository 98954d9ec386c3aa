"""The two terms of the training loss: local correlation of fixed and warped, and smoothness of the flow.

Source: "IIRP-Net" (CVPR 2024), equation 3, and the training code its authors released (the squared form).
Everything here computes in float32, also under autocast.
"""

from functools import lru_cache

import torch
from torch import Tensor

from runtime.geometry.similarity import LNCC_EPSILON, LNCC_WINDOW

FORMS = ("plain", "squared")


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
