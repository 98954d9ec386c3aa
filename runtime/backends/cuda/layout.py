"""The memory layout of channels-last device arrays, in the form that kernels take."""

import numpy as np

from .memory import DeviceArray


def layout_of(array: DeviceArray) -> tuple[np.int64, np.int64]:
    """Return the voxel stride and the channel stride of an array (I, J, K, C), in elements.

    Raises:
        ValueError: the voxels do not follow each other at a constant distance.
    """
    strides, shape = array.element_strides, array.shape
    # Axes of size 1 have arbitrary strides: the voxel stride is that of the last axis longer than 1.
    voxel = next((stride for size, stride in zip(shape[2::-1], strides[2::-1], strict=True) if size > 1), 1)
    steps = (shape[1] * shape[2] * voxel, shape[2] * voxel, voxel)
    if any(size > 1 and a != b for size, a, b in zip(shape, strides, steps, strict=False)):
        raise ValueError(f"cannot work on voxels with gaps: shape {shape}, strides {strides}")
    return np.int64(voxel), np.int64(strides[3] if shape[3] > 1 else 1)


def is_wide(array: DeviceArray) -> bool:
    """Return whether each voxel's channels are whole, aligned 16-byte words."""
    width = 16 // array.dtype.itemsize
    voxel, channel = layout_of(array)
    return channel == 1 and voxel % width == 0 and array.shape[3] % width == 0 and array.pointer % 16 == 0
