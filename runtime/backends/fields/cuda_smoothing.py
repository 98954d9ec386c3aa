"""Smoothing of residual flows on a GPU; `runtime.geometry.smoothing` is the reference implementation."""

import math

import numpy as np

from ...geometry.smoothing import EDGE, LEAST, gaussian_weights
from ..cuda.device import Device
from ..cuda.layout import layout_of
from ..cuda.memory import DeviceArray


class Smoother:
    """A filter that smooths residual flows on a level's grid where the fixed image has no edges.

    Args:
        device: the device to work on.
        fixed: the image (I, J, K) on that grid.
        sigma: standard deviation of the Gaussian in voxels, above 0.
    """

    def __init__(self, device: Device, fixed: DeviceArray, sigma: float) -> None:
        self._device, self._weights = device, device.upload(gaussian_weights(sigma))
        self._trusted = device.empty(fixed.shape)
        device.launch("confidences", fixed.size, fixed, self._trusted, *fixed.shape, float(EDGE))
        self._around = filtered(device, self._trusted, self._weights)

    def __call__(self, residual: DeviceArray) -> DeviceArray:
        """Return the smoothed residual (I, J, K, 3), contiguous."""
        where, voxels = (residual, *layout_of(residual)), self._trusted.size
        trusted, out = self._device.empty(residual.shape), self._device.empty(residual.shape)
        self._device.launch("trusted_part", voxels, *where, self._trusted, trusted, np.int64(voxels))
        near = filtered(self._device, trusted, self._weights)
        known = (self._trusted, self._around, near)
        self._device.launch("fill_in", voxels, *where, *known, out, np.int64(voxels), float(LEAST))
        return out


def filtered(device: Device, array: DeviceArray, weights: DeviceArray) -> DeviceArray:
    """Filter a contiguous array (I, J, K, ...) along its first three axes, with the outermost voxels repeated."""
    for axis in range(3):
        out, inner = device.empty(array.shape), math.prod(array.shape[axis + 1 :])
        line = (array.shape[axis], np.int64(inner), np.int64(array.size))
        device.launch("gaussian", array.size, array, weights, weights.size // 2, out, *line)
        array = out
    return array
