"""Detection, from the voxels, of label maps and direction maps that were given as scans."""

import numpy as np

from ..types import Array

PLANES = 24  # approximate number of planes along K that are inspected
EQUAL_NEIGHBOURS = 0.6  # share of equal neighbours above which an image counts as labels; 8-bit scans have 0.2
FEWEST = 100  # voxels above the lowest value that are needed for a decision
UNIT, MOSTLY = 1e-2, 0.98  # tolerance of a direction's length of 1, and the share of voxels that must meet it


def looks_like_labels(data: Array) -> bool:
    """Return whether an image (I, J, K, ...) consists of regions of one integer each, apart from the background."""
    planes = data[:, :, :: max(data.shape[2] // PLANES, 1)]
    planes = planes if planes.ndim == 3 else planes[..., 0]
    inside = planes > planes.min()
    pairs = inside[1:] & inside[:-1]
    if np.count_nonzero(pairs) < FEWEST:
        return False
    equal = np.count_nonzero(pairs & (planes[1:] == planes[:-1])) / np.count_nonzero(pairs)
    return bool(equal > EQUAL_NEIGHBOURS) and bool(np.all(planes == np.rint(planes)))


def looks_like_directions(data: Array) -> bool:
    """Return whether a series (I, J, K, 3) holds unit vectors, and 0 outside, as maps of fibre directions do."""
    if data.ndim != 4 or data.shape[3] != 3:
        return False
    lengths = np.linalg.norm(data[:, :, :: max(data.shape[2] // PLANES, 1)], axis=-1)
    lengths = lengths[lengths > 0]
    return lengths.size >= FEWEST and bool((np.abs(lengths - 1) < UNIT).mean() > MOSTLY)
