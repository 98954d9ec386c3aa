"""Surfaces of labels and the distances between them, by SciPy's search trees over the centres of boundary voxels.

A boundary voxel of a label shares a face with a voxel of another label or background; the border of the array is no
boundary. Distances are Euclidean, in mm, between centres of voxels, on any grid: anisotropic, oblique or sheared.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from ....geometry.grid import Grid, bounding_box
from ....types import Array

PERCENTILE = 95


@dataclass(frozen=True)
class Distances:
    """Distances between two surfaces, mm.

    Attributes:
        hd95: the larger of the two directed 95th percentiles, linearly interpolated (robust Hausdorff distance).
        average: mean over the boundary voxels of both, each to the other surface (average symmetric distance).
    """

    hd95: float
    average: float


class Surface:
    """The boundary of one label.

    Args:
        points: (N, 3) RAS mm, N at least 1.
    """

    def __init__(self, points: Array) -> None:
        self.points = points
        # Fast to build rather than to query: most trees are queried only once.
        self._tree = cKDTree(points, balanced_tree=False, compact_nodes=False)

    def distances(self, other: "Surface") -> Distances:
        """Return the distances to another surface; symmetric."""
        there, back = (one.to(two) for one, two in ((self, other), (other, self)))
        hd95 = max(float(np.percentile(side, PERCENTILE)) for side in (there, back))
        return Distances(hd95, float((there.sum() + back.sum()) / (there.size + back.size)))

    def to(self, other: "Surface") -> Array:
        """Return the distance of each point of this surface from the other surface, (N,)."""
        return other._tree.query(self.points)[0]


def surfaces(labels: Array, grid: Grid, chosen: Iterable[int]) -> dict[int, Surface]:
    """Return the surfaces of those of the chosen labels that the map holds.

    Args:
        labels: (I, J, K) integers on `grid`.
        grid: voxel grid of the labels.
        chosen: labels other than 0.
    """
    if not labels.any():
        return {}
    box, first = _around(labels)
    labels = np.ascontiguousarray(labels[box])
    positions = np.flatnonzero(boundary(labels))
    found = labels.ravel()[positions]
    order = np.argsort(found, kind="stable")  # sorted by label: the voxels of each label are contiguous
    positions, found = positions[order], found[order]
    points = grid.to_physical(np.stack(np.unravel_index(positions, labels.shape), axis=-1) + first.astype(np.float64))
    result = {}
    for label in chosen:
        begin, end = np.searchsorted(found, label, "left"), np.searchsorted(found, label, "right")
        if begin < end:
            result[label] = Surface(points[begin:end])
    return result


def _around(labels: Array) -> tuple[tuple[slice, ...], Array]:
    """Return the bounding box of the labels with a margin of one voxel, and the box's first voxel (3,)."""
    first, last = bounding_box(labels != 0)
    first = np.maximum(first - 1, 0)
    return tuple(slice(begin, end + 2) for begin, end in zip(first, last, strict=True)), first


def boundary(labels: Array) -> Array:
    """Return the voxels other than 0 that share a face with a voxel of another label, (I, J, K) bool."""
    differs = np.zeros(labels.shape, bool)
    for axis in range(3):
        ahead, behind = [slice(None)] * 3, [slice(None)] * 3
        ahead[axis], behind[axis] = slice(1, None), slice(None, -1)
        step = labels[tuple(ahead)] != labels[tuple(behind)]
        differs[tuple(ahead)] |= step
        differs[tuple(behind)] |= step
    return differs & (labels != 0)
