"""Interpolation with more than the eight nearest voxels: cubic B-splines, and Gaussian voting among labels."""

from collections.abc import Callable

import numpy as np

from ...types import Array
from . import interpolation_kernels as kernels

Sampler = Callable[[Array, Array], None]  # takes positions (N, 3) in voxels and fills values (N,)
SIGMA = 0.7  # source voxels: a label one voxel thick still wins the vote at its centre
REACH = 2.5  # truncation radius of the Gaussian, in standard deviations


def spline(image: Array, outside: float) -> Sampler:
    """Return a sampler of the cubic B-spline through an image's voxels; outside, it fades to `outside` over one voxel.

    Within the image it equals ``scipy.ndimage.map_coordinates(order=3, mode="mirror")``. Like any cubic interpolation
    it may overshoot the image's range next to edges.

    Args:
        image: (I, J, K).
        outside: value outside the image.
    """
    coefficients = np.array(image, dtype=np.float32, order="C")
    for axis, size in enumerate(image.shape):
        if size > 1:
            kernels.spline_coefficients(coefficients.reshape(int(np.prod(image.shape[:axis])), size, -1))
    coefficients = np.pad(coefficients, (1, 2), mode="reflect")

    def sample(positions: Array, values: Array) -> None:
        kernels.sample_spline(coefficients, positions, np.float32(outside), values)

    return sample


def votes(labels: Array, coarser: Array, outside: int) -> Sampler:
    """Return a sampler of label maps that gives the label with the largest sum of Gaussian weights of nearby voxels.

    It smooths the staircase of nearest-neighbour sampling without mixing labels. After the label interpolation of ITK
    (LabelImageGaussianInterpolateImageFunction).

    Args:
        labels: (I, J, K) integers.
        coarser: (3,) spacing of the sampled positions along each axis, in voxels of `labels`.
        outside: label at positions that no voxel contains.
    """
    labels = np.ascontiguousarray(labels, dtype=np.int32)
    sigma = SIGMA * np.maximum(coarser, 1.0)
    radius = np.minimum(np.ceil(REACH * sigma), labels.shape).astype(np.int64)

    def sample(positions: Array, values: Array) -> None:
        kernels.vote(labels, positions, sigma, radius, np.int32(outside), values)

    return sample


def move(positions: Array, linear: Array, planes: Array, start: int) -> None:
    """Add ``linear`` (3, 3) times a displacement to the positions of some of its planes, in place.

    Args:
        positions: positions, (N, 3) float64.
        linear: (3, 3) map from displacements to the space of `positions`.
        planes: displacement, (3, K, J, I) float32.
        start: the plane that `positions` begin with.
    """
    first = start * planes.shape[2] * planes.shape[3]
    kernels.move_positions(np.ascontiguousarray(linear), planes.reshape(3, -1), first, positions)
