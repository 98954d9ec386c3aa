"""Similarity measures of two images on one grid: reference implementations in NumPy. Larger is always more similar."""

import math

import numpy as np

from ..types import Array

LNCC_WINDOW = 9
LNCC_EPSILON = 1e-5


def ncc(fixed: Array, warped: Array) -> float:
    """Compute the normalised cross-correlation (Pearson) of whole images, in [-1, 1]; NaN if one is constant."""
    f, w = (image.astype(np.float64) - image.mean(dtype=np.float64) for image in (fixed, warped))
    norm = np.sqrt(np.sum(f * f) * np.sum(w * w))
    return float(np.sum(f * w) / norm) if norm > 0 else float("nan")


def box_sum(image: Array, window: int) -> Array:
    """Sum over a cube of `window` voxels around every voxel, zeros outside, by running sums along each axis."""
    radius = window // 2
    for axis in range(3):
        padding = [(radius + 1, radius) if a == axis else (0, 0) for a in range(3)]
        running = np.cumsum(np.pad(image, padding), axis=axis)  # the sum of a window is a difference of two entries
        size = image.shape[axis]
        index = np.arange(size)
        image = running.take(index + window, axis) - running.take(index, axis)
    return image


def lncc(fixed: Array, warped: Array, window: int = LNCC_WINDOW) -> float:
    """Compute the mean over voxels of the squared local correlation in a cube of `window` voxels, in [0, 1].

    ``cross^2 / (var_fixed var_warped + 1e-5)`` with zeros outside the image, as in the released training code; the
    window's sums are divided by ``window^3`` only where a mean is needed.
    """
    f, w = fixed.astype(np.float64), warped.astype(np.float64)
    count = window**3
    sum_f, sum_w = box_sum(f, window), box_sum(w, window)
    cross = box_sum(f * w, window) - sum_f * sum_w / count
    var_f = box_sum(f * f, window) - sum_f**2 / count
    var_w = box_sum(w * w, window) - sum_w**2 / count
    return float(np.mean(cross**2 / (var_f * var_w + LNCC_EPSILON)))


def negative_mse(fixed: Array, warped: Array) -> float:
    """Compute minus the mean squared difference, so that larger is more similar."""
    difference = fixed.astype(np.float64) - warped.astype(np.float64)
    return -float(np.mean(difference * difference))


def ncc_of_sums(count: float, f: float, ff: float, m: float, mm: float, mf: float) -> float:
    """Compute `ncc` of two images of `count` voxels from sums of f, f^2, m, m^2 and m f; NaN if one is constant."""
    var_f, var_m = ff - f**2 / count, mm - m**2 / count
    # One-pass sums round: the variance left over for a constant image is noise, not structure.
    if not (var_f > 1e-12 * ff and var_m > 1e-12 * mm):
        return math.nan
    return (mf - f * m / count) / math.sqrt(var_f * var_m)


def negative_mse_of_sums(count: float, f: float, ff: float, m: float, mm: float, mf: float) -> float:
    """Compute `negative_mse` from the same sums."""
    return -(mm - 2 * mf + ff) / count


SIMILARITIES = {"ncc": ncc, "lncc": lncc, "mse": negative_mse}
OF_SUMS = {"ncc": ncc_of_sums, "mse": negative_mse_of_sums}
