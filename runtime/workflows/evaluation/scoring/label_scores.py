"""Agreement of warped labels with fixed ones: Dice and surface distances, label by label."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean

import numpy as np

from ....geometry.grid import Grid
from ....types import Array
from .surfaces import Surface, surfaces

COUNTED_BY_ID = 1 << 16  # ids below are counted in an array of this length; only int32 maps hold larger ones


@dataclass(frozen=True)
class LabelScore:
    """One label's scores.

    Attributes:
        label: id of the label.
        dice: ``2 |A and B| / (|A| + |B|)``, in [0, 1].
        hd95_mm, asd_mm: see `runtime.workflows.evaluation.scoring.surfaces.Distances`; None if the warped map does not
            hold the label.
    """

    label: int
    dice: float
    hd95_mm: float | None
    asd_mm: float | None


@dataclass(frozen=True)
class LabelScores:
    """Scores of all labels; one that the warped map does not hold has Dice 0 and no distances, and counts as lost.

    Attributes:
        each: scores in the order of the given labels.
    """

    each: tuple[LabelScore, ...]

    @property
    def dice(self) -> float:
        """Mean Dice over labels."""
        return fmean(score.dice for score in self.each)

    @property
    def hd95_mm(self) -> float:
        """Mean HD95 over the labels that are not lost; NaN if all are."""
        return _mean([score.hd95_mm for score in self.each if score.hd95_mm is not None])

    @property
    def asd_mm(self) -> float:
        """Mean ASD over the labels that are not lost; NaN if all are."""
        return _mean([score.asd_mm for score in self.each if score.asd_mm is not None])

    @property
    def lost(self) -> int:
        """Number of labels without distances."""
        return sum(score.hd95_mm is None for score in self.each)


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else math.nan


class FixedLabels:
    """Fixed labels, prepared once for any number of warped maps.

    Args:
        labels: (I, J, K) integers, 0 and above, on `grid`.
        grid: voxel grid of the labels.
        chosen: labels to score, all of which the map holds.
    """

    def __init__(self, labels: Array, grid: Grid, chosen: Sequence[int]) -> None:
        self.labels, self.grid, self.chosen = np.ascontiguousarray(labels), grid, tuple(chosen)

    @cached_property
    def _surfaces(self) -> dict[int, Surface]:
        return surfaces(self.labels, self.grid, self.chosen)

    @cached_property
    def _counts(self) -> Array:
        return count_of_each(self.labels.ravel(), self.chosen)

    def compare(self, warped: Array) -> LabelScores:
        """Return the scores of a warped map (I, J, K) on the same grid."""
        warped = np.ascontiguousarray(warped)  # the memory order of the fixed map, so that comparisons are fast
        overlap = dice_of_each(self._counts, self.labels, warped, self.chosen)
        there = surfaces(warped, self.grid, self.chosen)
        scores = []
        for label, dice in zip(self.chosen, overlap, strict=True):
            if label in there and label in self._surfaces:
                distances = self._surfaces[label].distances(there[label])
                scores.append(LabelScore(label, dice, distances.hd95, distances.average))
            else:
                scores.append(LabelScore(label, dice, None, None))
        return LabelScores(tuple(scores))


def dice_of_each(counts: Array, fixed: Array, warped: Array, labels: Sequence[int]) -> list[float]:
    """Return the Dice of each label; `counts` are the voxel counts of the fixed map, label by label."""
    in_warped, in_both = (count_of_each(found, labels) for found in (warped.ravel(), fixed[fixed == warped]))
    return (2 * in_both / np.maximum(counts + in_warped, 1)).tolist()


def count_of_each(found: Array, labels: Sequence[int]) -> Array:
    """Count how often each of the labels, whose ids may be huge, occurs: (N,) in the order of `labels`.

    Args:
        found: (M,) integers, 0 and above.
        labels: N ids above 0, each once.
    """
    wanted = np.array(labels, np.int64)
    if max(found.max(initial=0), wanted.max(initial=0)) < COUNTED_BY_ID:
        return np.bincount(found, minlength=COUNTED_BY_ID)[wanted]
    ids, order = np.unique(wanted, return_inverse=True)
    found = found[found > 0]
    positions = np.minimum(np.searchsorted(ids, found), ids.size - 1)  # of a larger id: the last, dropped below
    return np.bincount(positions[ids[positions] == found], minlength=ids.size)[order]
