"""Flows, and the operations on them: slow, readable reference implementations in NumPy.

A flow is a displacement in voxels of its own grid, shape (3, I, J, K), component order = axis order. It lives on the
fixed grid and points into the moving image: ``warped(x) = moving(x + flow(x))``. Every fast implementation (numba,
CUDA, torch in `train`) is tested against the functions of this file.
"""

import itertools

import numpy as np

from ..types import Array


def sample(image: Array, coordinates: Array) -> Array:
    """Sample an image trilinearly at voxel coordinates, with zeros outside it.

    Corners that lie outside the image count as zero, so that values fade to zero over one voxel beyond the border
    (torch ``grid_sample(padding_mode="zeros", align_corners=True)``).

    Args:
        image: (..., I, J, K).
        coordinates: (3, *S) voxel coordinates in the image's own grid.

    Returns:
        (..., *S), floating point.
    """
    shape = np.array(image.shape[-3:])
    base = np.floor(coordinates).astype(np.int64)
    fraction = coordinates - base
    total = np.zeros(image.shape[:-3] + coordinates.shape[1:], np.result_type(image, np.float32))
    for corner in itertools.product((0, 1), repeat=3):
        offset = np.reshape(corner, (3,) + (1,) * (coordinates.ndim - 1))
        index = base + offset
        limit = shape.reshape(offset.shape)
        inside = np.all((index >= 0) & (index < limit), axis=0)
        weight = np.prod(np.where(offset == 1, fraction, 1 - fraction), axis=0) * inside
        i, j, k = np.clip(index, 0, limit - 1)
        total += weight * image[..., i, j, k]
    return total


def identity(shape: tuple[int, int, int]) -> Array:
    """Return the voxel coordinates of a grid, (3, I, J, K)."""
    return np.stack(np.meshgrid(*(np.arange(size, dtype=np.float64) for size in shape), indexing="ij"))


def warp(image: Array, flow: Array) -> Array:
    """Resample an image through a flow: ``image(x + flow(x))``, trilinear, zeros outside.

    Args:
        image: (..., I, J, K), the moving image or its features.
        flow: (3, I, J, K), voxels.
    """
    return sample(image, identity(flow.shape[1:]) + flow).astype(image.dtype)


def resize(array: Array, shape: tuple[int, int, int]) -> Array:
    """Resize an array trilinearly to `shape` with aligned corners: the corner voxels' centres stay where they are.

    Args:
        array: (..., I, J, K).
        shape: the new (I, J, K). An axis of one voxel is repeated.
    """
    axes = [np.arange(new) * ((old - 1) / max(new - 1, 1)) for old, new in zip(array.shape[-3:], shape, strict=True)]
    return sample(array, np.stack(np.meshgrid(*axes, indexing="ij"))).astype(array.dtype)


def upsample(flow: Array, scale: int) -> Array:
    """Return the same displacement on a grid `scale` times finer: resized, and its voxel values times `scale`."""
    size_i, size_j, size_k = (scale * size for size in flow.shape[1:])
    finer: Array = resize(flow, (size_i, size_j, size_k)) * flow.dtype.type(scale)
    return finer


def compose(flow: Array, residual: Array) -> Array:
    """Return ``flow(x + residual(x)) + residual(x)``: the residual first, then the flow, with zeros outside.

    Both are (3, I, J, K).
    """
    return warp(flow, residual) + residual


def jacobian_determinant(flow: Array) -> Array:
    """Compute the Jacobian determinant of ``x + flow(x)`` by central differences (one-sided at the border), (I, J, K).

    1 means no change of volume, values <= 0 are folds. Needs at least two voxels along each axis.
    """
    jacobian = np.stack([np.stack(np.gradient(component.astype(np.float64))) for component in flow])
    jacobian += np.eye(3).reshape(3, 3, 1, 1, 1)
    determinant: Array = np.linalg.det(np.moveaxis(jacobian, (0, 1), (-2, -1)))
    return determinant


def folded_share(flow: Array) -> float:
    """Return the share of voxels whose Jacobian determinant is <= 0, in [0, 1]."""
    return float(np.mean(jacobian_determinant(flow) <= 0))
