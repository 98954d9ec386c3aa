"""Interpolation that looks further than the eight voxels around a place: cubic B-splines, and votes among labels."""

from collections.abc import Callable

import numpy as np

from ...types import Array
from . import interpolation_kernels as kernels

Sampler = Callable[[Array, Array], None]  # places (N, 3) in voxels, values there (N,), which it fills
SIGMA = 0.7  # source voxels: a sheet of one voxel still has the most votes in its middle
REACH = 2.5  # standard deviations to which votes are heard


def spline(image: Array, outside: float) -> Sampler:
    """The cubic B-spline through an image's voxels; beyond the image it fades to `outside` over one voxel.

    Within it is what ``scipy.ndimage.map_coordinates(order=3, mode="mirror")`` computes. Like any cubic one it may go
    beyond the image's extremes next to edges.

    Args:
        image: (I, J, K).
    """
    coefficients = np.array(image, dtype=np.float32, order="C")
    for axis, size in enumerate(image.shape):
        if size > 1:
            kernels.spline_coefficients(coefficients.reshape(int(np.prod(image.shape[:axis])), size, -1))
    coefficients = np.pad(coefficients, (1, 2), mode="reflect")

    def sample(places: Array, values: Array) -> None:
        kernels.sample_spline(coefficients, places, np.float32(outside), values)

    return sample


def votes(labels: Array, coarser: Array, outside: int) -> Sampler:
    """At each place the label whose voxels around it have the largest sum of Gaussian weights.

    It rounds off the steps that the nearest voxel leaves, and mixes no labels. After the label interpolation of ITK
    (LabelImageGaussianInterpolateImageFunction).

    Args:
        labels: (I, J, K) integers.
        coarser: (3,) how many voxels lie between neighbouring places, along each axis.
        outside: at places that no voxel contains.
    """
    labels = np.ascontiguousarray(labels, dtype=np.int32)
    sigma = SIGMA * np.maximum(coarser, 1.0)
    radius = np.minimum(np.ceil(REACH * sigma), labels.shape).astype(np.int64)

    def sample(places: Array, values: Array) -> None:
        kernels.vote(labels, places, sigma, radius, np.int32(outside), values)

    return sample


def move(places: Array, linear: Array, planes: Array, start: int) -> None:
    """Adds ``linear`` (3, 3) times a displacement to the places of some of its planes.

    Args:
        places: (N, 3) float64.
        planes: (3, K, J, I) float32.
        start: the first of the planes that `places` are of.
    """
    first = start * planes.shape[2] * planes.shape[3]
    kernels.move_places(np.ascontiguousarray(linear), planes.reshape(3, -1), first, places)
