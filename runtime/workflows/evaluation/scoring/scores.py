"""Scores of a transform from a fixed to a moving scan: one scorer for all transforms, also of other tools."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ....errors import InputError
from ....geometry.grid import Grid
from ....geometry.jacobian import folded_share, jacobian_of_displacement, sd_log_jacobian
from ....geometry.transform import Transform
from ....images.overlap import SMALLEST_LABEL, common_labels
from ....images.resampling.resample import resample_through
from ....images.similarity import ncc, negative_mse
from ....images.volume import Volume
from ....registration.preprocessing import Normalised
from ....types import Array
from .label_scores import FixedLabels, LabelScores


@dataclass(frozen=True)
class Scores:
    """Scores of one transform; without labels or landmarks their scores are None.

    Attributes:
        labels: Dice and surface distances.
        landmarks_mm: distance of each transformed fixed landmark from its moving one, in the file's order.
        folded_share: share of the working grid's voxels whose Jacobian determinant is <= 0.
        folded_inside: the same share among the voxels of the fixed foreground.
        sd_log_jacobian: standard deviation of the determinant's logarithm over unfolded voxels of the fixed foreground.
        mse, ncc: of the fixed and the warped image in [0, 1] on the working grid.
    """

    labels: LabelScores | None
    landmarks_mm: tuple[float, ...] | None
    folded_share: float
    folded_inside: float
    sd_log_jacobian: float
    mse: float
    ncc: float

    def as_dict(self) -> dict[str, Any]:
        """Return means, and the scores of single labels and landmarks, as plain types."""
        found: dict[str, Any] = {}
        if self.labels is not None:
            found |= {name: getattr(self.labels, name) for name in ("dice", "hd95_mm", "asd_mm")}
            found |= {"labels_lost": self.labels.lost, "labels": [dict(vars(score)) for score in self.labels.each]}
        if self.landmarks_mm is not None:
            found |= {"landmark_error_mm": float(np.mean(self.landmarks_mm)), "landmarks_mm": list(self.landmarks_mm)}
        names = ("folded_share", "folded_inside", "sd_log_jacobian", "mse", "ncc")
        return found | {name: getattr(self, name) for name in names}


@dataclass(frozen=True, eq=False)
class LabelPair:
    """Label maps of both scans, and the labels to score.

    Attributes:
        fixed, moving: label maps in the space of their scans, each on any grid.
        chosen: labels that both maps hold.
        absent: labels that were asked for but that one of the maps does not hold.
    """

    fixed: Volume
    moving: Volume
    chosen: tuple[int, ...]
    absent: tuple[int, ...] = ()


def pair_labels(fixed: Volume, moving: Volume, ids: Sequence[int] | None = None) -> LabelPair:
    """Pair two label maps: score those of `ids` that both hold, or all labels with 50 voxels or more in both.

    Raises:
        InputError: there is no such label.
    """
    wanted = set(common_labels(fixed.data, moving.data, SMALLEST_LABEL if ids is None else 1))
    chosen = tuple(sorted(wanted)) if ids is None else tuple(label for label in ids if label in wanted)
    if not chosen:
        asked = "above 0 with 50 voxels or more in each" if ids is None else f"of {', '.join(map(str, ids))}"
        raise InputError(
            f"--fixed-labels, --moving-labels: {fixed.path} and {moving.path} share no label {asked}; do they use the "
            "same labels?"
        )
    return LabelPair(fixed, moving, chosen, () if ids is None else tuple(label for label in ids if label not in wanted))


class TransformScorer:
    """Scorer of transforms of one pair; whatever does not depend on the transform is prepared once.

    Args:
        moving: the moving scan in [0, 1].
        fixed_image: (I, J, K), the fixed scan in [0, 1] on the working grid.
        foreground: (I, J, K) bool, foreground of `fixed_image`.
        grid: the working grid.
        labels: maps of both scans, or None.
        landmarks: (fixed, moving), each (N, 3) RAS mm, or None.
    """

    def __init__(
        self,
        moving: Normalised,
        fixed_image: Array,
        foreground: Array,
        grid: Grid,
        labels: LabelPair | None = None,
        landmarks: tuple[Array, Array] | None = None,
    ) -> None:
        self._moving, self._fixed_image, self._foreground, self._grid = moving, fixed_image, foreground, grid
        self._labels, self._landmarks = labels, landmarks
        self._fixed_labels = None
        if labels is not None:
            self._fixed_labels = FixedLabels(labels.fixed.data, labels.fixed.grid, labels.chosen)

    def score(self, transform: Transform) -> Scores:
        """Score a map from fixed to moving space; image and labels are resampled through it with one interpolation."""
        displacement = transform.displacement(self._grid)
        warped = resample_through(self._moving.image, self._moving.grid, displacement, self._grid)
        determinant = jacobian_of_displacement(displacement, self._grid)
        return Scores(
            labels=self._label_scores(transform, displacement),
            landmarks_mm=self._landmark_errors(transform),
            folded_share=folded_share(determinant),
            folded_inside=folded_share(determinant, self._foreground),
            sd_log_jacobian=sd_log_jacobian(determinant, self._foreground),
            mse=-negative_mse(self._fixed_image, warped),
            ncc=ncc(self._fixed_image, warped),
        )

    def _label_scores(self, transform: Transform, displacement: Array) -> LabelScores | None:
        if self._labels is None or self._fixed_labels is None:
            return None
        target, moving = self._labels.fixed.grid, self._labels.moving
        if target != self._grid:
            displacement = transform.displacement(target)
        return self._fixed_labels.compare(resample_through(moving.data, moving.grid, displacement, target, "nearest"))

    def _landmark_errors(self, transform: Transform) -> tuple[float, ...] | None:
        if self._landmarks is None:
            return None
        fixed, moving = self._landmarks
        return tuple(np.linalg.norm(transform.points(fixed) - moving, axis=1).tolist())
