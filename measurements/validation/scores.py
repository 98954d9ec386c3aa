"""Scores of a transform from one scan of a couple to the other: overlap of labels, regularity, similarity."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np

from measurements.validation.scans import Scan
from runtime.geometry.grid import Grid, bounding_box
from runtime.geometry.jacobian import folded_share, jacobian_of_displacement, sd_log_jacobian
from runtime.geometry.transform import Transform
from runtime.images.overlap import SMALLEST_LABEL, common_labels
from runtime.images.resampling.resample import resample_through
from runtime.images.similarity import ncc
from runtime.images.volume import Volume, read_labels
from runtime.registration.scans import ReadyPair
from runtime.workflows.evaluation.scoring.label_scores import count_of_each, dice_of_each

Array = np.ndarray
MARGIN = 12  # voxels around the fixed labels within which warped ones are counted
SAMPLES = 40_000  # points at which inverse consistency is measured


class Scorer:
    """Scorer of transforms from a fixed to a moving scan.

    Args:
        ready: the pair on its working grid.
        fixed, moving: the scans; if one has no label map, no labels are scored.
        labels: ids to score; None: all that both maps hold with 50 voxels or more.
    """

    def __init__(self, ready: ReadyPair, fixed: Scan, moving: Scan, labels: Sequence[int] | None) -> None:
        self.grid, self._image = ready.ready.grid, ready.ready.fixed
        self._moving_scan, self._rule = ready.moving, ready.rule
        self._fixed, self._moving = (scan.labels and read_labels(scan.labels, "labels") for scan in (fixed, moving))
        self._asked = labels

    @cached_property
    def _moving_image(self) -> Array:
        return self._rule.normalise(self._moving_scan.data, "moving")

    @cached_property
    def brain(self) -> Array:
        """Brain mask (I, J, K) of the fixed scan on the working grid."""
        return self._image > 0

    @cached_property
    def points(self) -> Array:
        """Random points of the fixed brain, (N, 3) RAS mm."""
        seen = np.random.default_rng(0).permutation(np.flatnonzero(self.brain))[:SAMPLES]
        return self.grid.to_physical(np.stack(np.unravel_index(seen, self.grid.shape), axis=-1).astype(np.float64))

    @cached_property
    def fixed_labels(self) -> Volume | None:
        """The fixed label map cropped to its labels and a margin."""
        return self._fixed and cut(self._fixed)

    @cached_property
    def labels(self) -> tuple[int, ...]:
        """Ids of the labels to score."""
        smallest = SMALLEST_LABEL if self._asked is None else 1
        shared = common_labels(self._fixed.data, self._moving.data, smallest)
        return tuple(label for label in shared if self._asked is None or label in self._asked)

    def score(self, transform: Transform) -> dict:
        """Return Dice by label (if there are labels), folds and SDlogJ inside the brain, and NCC; plain types."""
        displacement = transform.displacement(self.grid)
        determinant = jacobian_of_displacement(displacement, self.grid)
        warped = resample_through(self._moving_image, self._moving_scan.grid, displacement, self.grid)
        found = {
            "folded": folded_share(determinant, self.brain),
            "sd_log_jacobian": sd_log_jacobian(determinant, self.brain),
            "ncc": ncc(self._image, warped),
        }
        if self._fixed is not None and self._moving is not None:
            found["dice"] = self._dice(transform)
        return found

    def _dice(self, transform: Transform) -> dict[int, float]:
        fixed = self.fixed_labels
        warped = self.warped_labels(transform, fixed.grid)
        counts = count_of_each(fixed.data.ravel(), self.labels)
        return dict(zip(self.labels, dice_of_each(counts, fixed.data, warped, self.labels), strict=True))

    def warped_labels(self, transform: Transform, grid: Grid) -> Array:
        """Return the moving labels on a grid of the fixed space, (I, J, K), nearest neighbour."""
        displacement = transform.displacement(grid)
        return resample_through(self._moving.data, self._moving.grid, displacement, grid, "nearest")


def cut(labels: Volume) -> Volume:
    """Return a label map cropped to its labels and a margin."""
    first, last = bounding_box(labels.data > 0)
    first, last = np.maximum(first - MARGIN, 0), np.minimum(last + MARGIN + 1, labels.data.shape)
    data = np.ascontiguousarray(labels.data[tuple(map(slice, first, last))])
    return replace(labels, data=data, grid=labels.grid.crop(first, data.shape))


def inconsistency(there: Transform, back: Transform, points: Array) -> dict[str, float]:
    """Return mean and 95th percentile of the distance by which `back(there(x))` misses x, for points (N, 3), mm."""
    distances = np.linalg.norm(back.points(there.points(points)) - points, axis=1)
    return {"mean_mm": float(distances.mean()), "p95_mm": float(np.percentile(distances, 95))}
