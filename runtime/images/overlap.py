"""Overlap of two label maps."""

import math
from collections.abc import Iterable

import numpy as np

from ..types import Array

SMALLEST_LABEL = 50  # fewest voxels of a label that is compared


def common_labels(fixed: Array, moving: Array, smallest: int = SMALLEST_LABEL) -> list[int]:
    """Return the labels above 0 that have at least `smallest` voxels in both maps, of any shapes."""
    counts = [dict(zip(*np.unique(labels, return_counts=True), strict=True)) for labels in (fixed, moving)]
    both = sorted(counts[0].keys() & counts[1].keys() - {0})
    return [int(label) for label in both if min(count[label] for count in counts) >= smallest]


def mean_dice(fixed: Array, warped: Array, labels: Iterable[int] | None = None) -> float:
    """Compute the mean over labels of 2 |A and B| / (|A| + |B|), in [0, 1]; a label in neither map counts as 0.

    Args:
        fixed, warped: label maps of one shape, integers, 0 and above.
        labels: labels to average over; None: those other than 0 that both maps hold. NaN if there are none.
    """
    chosen = None if labels is None else np.array(list(labels))
    size = 1 + max(int(fixed.max()), int(warped.max()), 0 if chosen is None else int(chosen.max()))
    in_fixed, in_warped = (np.bincount(array.ravel(), minlength=size) for array in (fixed, warped))
    in_both = np.bincount(fixed[fixed == warped], minlength=size)
    if chosen is None:
        shared = np.flatnonzero((in_fixed > 0) & (in_warped > 0))
        chosen = shared[shared > 0]
    if not chosen.size:
        return math.nan
    return float(np.mean(2 * in_both[chosen] / np.maximum(in_fixed + in_warped, 1)[chosen]))
