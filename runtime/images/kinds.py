"""What an image seems to hold, told by its voxels: label maps and directions that were given as scans."""

import numpy as np

from ..types import Array

PLANES = 24  # along K, about, that are looked at
ALIKE = 0.6  # share of neighbours with one value from which on an image is made of labels; scans of 8 bits have 0.2
FEWEST = 100  # voxels above the lowest value, below which nothing is told
UNIT, MOSTLY = 1e-2, 0.98  # how far a direction's length may be from 1, and of how many voxels


def looks_like_labels(data: Array) -> bool:
    """Whether an image (I, J, K, ...) is of regions with one whole number each, background apart."""
    planes = data[:, :, :: max(data.shape[2] // PLANES, 1)]
    planes = planes if planes.ndim == 3 else planes[..., 0]
    inside = planes > planes.min()
    pairs = inside[1:] & inside[:-1]
    if np.count_nonzero(pairs) < FEWEST:
        return False
    alike = np.count_nonzero(pairs & (planes[1:] == planes[:-1])) / np.count_nonzero(pairs)
    return alike > ALIKE and bool(np.all(planes == np.rint(planes)))


def looks_like_directions(data: Array) -> bool:
    """Whether a series (I, J, K, 3) holds vectors of length 1, and 0 outside, as maps of fibre directions do."""
    if data.ndim != 4 or data.shape[3] != 3:
        return False
    lengths = np.linalg.norm(data[:, :, :: max(data.shape[2] // PLANES, 1)], axis=-1)
    lengths = lengths[lengths > 0]
    return lengths.size >= FEWEST and bool((np.abs(lengths - 1) < UNIT).mean() > MOSTLY)
