"""Smoothing of a residual flow where the fixed image has no edges: slow, readable reference implementations in NumPy.

Flat regions of the image do not determine the flow, and the estimators' output there is mostly noise. There the flow is
interpolated from its neighbours at edges (normalised convolution; Knutsson and Westin, CVPR 1993); at edges it stays
unchanged. Arrays are planar here, (..., I, J, K).
"""

import math

import numpy as np

from ..errors import InputError
from ..types import Array

EDGE = 0.002  # squared gradient, (intensity / voxel)^2 of images in [0, 1], at which the confidence is one half
LEAST = 1e-4  # added to the smoothed confidence, so that a flow far from every edge fades to zero
LARGEST_SIGMA, RECOMMENDED_SIGMA = 5.0, 1.5  # voxels


def check_sigma(sigma: float) -> None:
    """Raise InputError unless sigma is from 0 (no smoothing) to `LARGEST_SIGMA` voxels."""
    if not 0 <= sigma <= LARGEST_SIGMA:
        raise InputError(
            f"--smooth: got {sigma:g}, expected 0 (no smoothing) to {LARGEST_SIGMA:g} voxels; "
            f"{RECOMMENDED_SIGMA:g} is recommended"
        )


def gaussian_weights(sigma: float) -> Array:
    """Return the weights of a Gaussian of `sigma` voxels, float32, sum 1; radius 3 sigma, at least 1 voxel."""
    radius = max(1, math.ceil(3 * sigma))
    weights: Array = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    weights = weights / weights.sum()
    return weights.astype(np.float32)


def gaussian(array: Array, sigma: float) -> Array:
    """Smooth (..., I, J, K) along I, J and K with a Gaussian; beyond the border the nearest value is repeated."""
    weights = gaussian_weights(sigma)
    radius = len(weights) // 2
    for axis in (-3, -2, -1):
        size = array.shape[axis]
        positions = np.arange(size)[:, None] + np.arange(-radius, radius + 1)
        array = np.moveaxis(np.moveaxis(array, axis, -1)[..., np.clip(positions, 0, size - 1)] @ weights, -1, axis)
    return array


def halve(image: Array) -> Array:
    """Return an image (I, J, K) of even sizes on the next coarser level's grid: means of blocks of 2x2x2 voxels."""
    size_i, size_j, size_k = (size // 2 for size in image.shape)
    coarser: Array = image.reshape(size_i, 2, size_j, 2, size_k, 2).mean(axis=(1, 3, 5))
    return coarser


def confidence(image: Array) -> Array:
    """Compute the confidence ``g / (g + EDGE)`` of an image (I, J, K) in [0, 1], from 0 (flat) to 1 (edge).

    g is the squared length of the gradient by central differences per voxel, one-sided at the border.
    """
    along = [np.gradient(image, axis=axis) for axis in range(3) if image.shape[axis] > 1]
    squared = sum((difference**2 for difference in along), np.zeros_like(image))
    return squared / (squared + EDGE)


def smooth_residual(residual: Array, trusted: Array, sigma: float) -> Array:
    """Return ``c r + (1 - c) S(c r) / (S(c) + LEAST)``, where S smooths with a Gaussian of `sigma` voxels.

    Args:
        residual: r, (3, I, J, K), voxels.
        trusted: c, (I, J, K), the `confidence` of the fixed image on the residual's grid.
        sigma: above 0.
    """
    around = gaussian(trusted * residual, sigma) / (gaussian(trusted, sigma) + LEAST)
    return trusted * residual + (1 - trusted) * around
