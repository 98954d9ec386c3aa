"""Figures on a registration's plausibility, from its images and its transform alone: nothing that needs labels.

All are taken on the working grid, over the fixed scan's foreground where both scans show something: outside holes of
masks and inside both fields of view.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...geometry.grid import Grid
from ...geometry.jacobian import folded_share, jacobian_of_flow, sd_log_jacobian
from ...images.intensity import FOREGROUND
from ...types import Array

FULLEST = 0.5  # share of a block's voxels that must count for the block's correlation to count
SMOOTHEST = 1e-4  # variance of intensities in [0, 1] below which a block has no contrast to correlate
ALIKE = 0.5  # local correlation below which a block is called unlike
SATURATED = 0.999  # normalised intensity from which on a voxel is saturated


@dataclass(frozen=True)
class Figures:
    """What the verdict on a registration is drawn from. A figure that cannot be computed is NaN.

    Attributes:
        correlation_affine, correlation: correlation inside the fixed foreground, after the affine and after the flow.
        local_affine, local: median correlation of blocks of 8^3 voxels, after the affine and after the flow.
        local_low: 10th percentile of the blocks' correlation after the flow.
        unlike_share: share of blocks whose correlation after the flow is below 0.5.
        detail_affine: correlation of the details that the affine initialisation reached; NaN if none was searched.
        overlap_affine, overlap: Dice of both foregrounds, after the affine and after the flow.
        sd_log_jacobian: standard deviation of the flow's log Jacobian.
        sd_log_volume: standard deviation of the logarithm of the volume change of blocks.
        folded_share: share of voxels where the flow folds.
        flow_mm, flow_high_mm: mean and 95th percentile of the flow's length, the affine not included.
        volume_factor: volume factor of the affine, fixed to moving.
        stretch: its largest over its smallest stretch.
        unseen_share: share of the fixed foreground beyond the moving scan's field of view or in holes.
        fixed_size, moving_size: sizes of the foregrounds in thousands of working voxels (ml at 1 mm), the moving one's
            before the affine.
        fixed_fine, moving_fine: share of an image's variance that is within blocks: low if smooth, high if noisy.
        fixed_saturated, moving_saturated: share of the foreground at the top of the intensity range.
    """

    correlation_affine: float
    correlation: float
    local_affine: float
    local: float
    local_low: float
    unlike_share: float
    detail_affine: float
    overlap_affine: float
    overlap: float
    sd_log_jacobian: float
    sd_log_volume: float
    folded_share: float
    flow_mm: float
    flow_high_mm: float
    volume_factor: float
    stretch: float
    unseen_share: float
    fixed_size: float
    moving_size: float
    fixed_fine: float
    moving_fine: float
    fixed_saturated: float
    moving_saturated: float

    def as_dict(self) -> dict[str, float]:
        """Return the figures by name."""
        return dict(vars(self))


@dataclass(frozen=True, eq=False)
class Seen:
    """The images of a registration on the working grid, (I, J, K) float32 in [0, 1].

    Attributes:
        fixed, moving, warped: moving after the affine, warped after the flow.
        holes: (I, J, K) bool, where fixed and moving are unknown; each None: nowhere.
        flow: (3, I, J, K) float32, voxels.
        grid: the working grid.
        affine: (4, 4) RAS mm, fixed to moving.
        affine_facts: facts on how it was found.
    """

    fixed: Array
    moving: Array
    warped: Array
    holes: tuple[Array | None, Array | None]
    flow: Array
    grid: Grid
    affine: Array
    affine_facts: dict[str, Any]


def figures(seen: Seen) -> Figures:
    """Compute the figures of a registration."""
    from .kernels import BLOCK, SUMS, block_sums

    body, known = _outside(seen.fixed > FOREGROUND, seen.holes[:1]), _outside(seen.fixed > FOREGROUND, seen.holes)
    total, inside = np.count_nonzero(body), np.count_nonzero(known)
    sums = np.empty((*(size // BLOCK for size in known.shape), SUMS))
    block_sums(seen.fixed, seen.moving, seen.warped, known, sums)
    sums = sums.reshape(-1, SUMS)
    full = sums[:, 0] >= FULLEST * BLOCK**3
    overall, blocks = _Moments(sums.sum(axis=0)), _Moments(sums[full].T)
    before, after = (_finite(blocks.correlation(image, SMOOTHEST)) for image in ("m", "w"))
    stretches = np.linalg.svd(seen.affine[:3, :3], compute_uv=False)
    volume_factor = float(np.linalg.det(seen.affine[:3, :3]))
    moving_body = seen.moving > FOREGROUND
    lengths = _lengths(seen.flow, known) * float(np.mean(seen.grid.spacing))
    determinant = jacobian_of_flow(seen.flow)
    return Figures(
        correlation_affine=float(overall.correlation("m")),
        correlation=float(overall.correlation("w")),
        local_affine=float(np.median(before)) if before.size else math.nan,
        local=float(np.median(after)) if after.size else math.nan,
        local_low=float(np.percentile(after, 10)) if after.size else math.nan,
        unlike_share=float(np.mean(after < ALIKE)) if after.size else math.nan,
        detail_affine=float(seen.affine_facts.get("detail_after", math.nan)),
        overlap_affine=_overlap(known, _outside(moving_body, seen.holes)),
        overlap=_overlap(known, _outside(seen.warped > FOREGROUND, seen.holes)),
        sd_log_jacobian=sd_log_jacobian(determinant, known) if inside else math.nan,
        sd_log_volume=_block_spread(determinant, full),
        folded_share=folded_share(determinant, known) if inside else math.nan,
        flow_mm=float(lengths.mean()) if inside else math.nan,
        flow_high_mm=float(np.percentile(lengths, 95)) if inside else math.nan,
        volume_factor=volume_factor,
        stretch=float(stretches[0] / stretches[-1]),
        unseen_share=1 - inside / total if total else math.nan,
        fixed_size=total / 1000,
        moving_size=np.count_nonzero(moving_body) / 1000 * volume_factor,
        fixed_fine=_fine_share(sums, overall, "f"),
        moving_fine=_fine_share(sums, overall, "m"),
        fixed_saturated=_saturated(seen.fixed, known),
        moving_saturated=_saturated(seen.moving, known),
    )


class _Moments:
    """Moments of three images from the sums of `block_sums`, (SUMS,) or (SUMS, N)."""

    def __init__(self, sums: Array) -> None:
        n = np.maximum(sums[0], 1)
        f, m, w = sums[1] / n, sums[2] / n, sums[3] / n
        self.variance = {"f": sums[4] / n - f * f, "m": sums[5] / n - m * m, "w": sums[6] / n - w * w}
        self._shared = {"m": sums[7] / n - f * m, "w": sums[8] / n - f * w}

    def correlation(self, image: str, smoothest: float = 1e-12) -> Array:
        """Return the correlation of the fixed image with "m" or "w"; NaN where the fixed image has no contrast."""
        fixed, other = self.variance["f"], self.variance[image]
        norm = np.sqrt(np.maximum(fixed, 0) * np.maximum(other, 1e-12))
        with np.errstate(divide="ignore", invalid="ignore"):
            found: Array = np.where(fixed > smoothest, np.clip(self._shared[image] / norm, -1, 1), np.nan)
        return found


def _finite(values: Array) -> Array:
    found: Array = values[np.isfinite(values)]
    return found


def _fine_share(sums: Array, overall: _Moments, image: str) -> float:
    """Return the share of an image's variance that is within blocks."""
    total = float(overall.variance[image])
    counts = sums[:, 0]
    if not (total > 0 and counts.sum() > 0):
        return math.nan
    return float(np.average(_Moments(sums.T).variance[image], weights=counts) / total)


def _overlap(body: Array, other: Array) -> float:
    """Return the Dice of two masks; NaN if both are empty."""
    size = np.count_nonzero(body) + np.count_nonzero(other)
    return float(2 * np.count_nonzero(body & other) / size) if size else math.nan


def _outside(mask: Array, holes: Iterable[Array | None]) -> Array:
    for hole in holes:
        mask = mask if hole is None else mask & ~hole
    return mask


def _lengths(flow: Array, known: Array) -> Array:
    i, j, k = (component[known] for component in flow)
    lengths: Array = np.sqrt(i * i + j * j + k * k)
    return lengths


def _saturated(image: Array, known: Array) -> float:
    return float(np.mean(image[known] >= SATURATED)) if known.any() else math.nan


def _block_spread(determinant: Array, chosen: Array) -> float:
    """Return the standard deviation of the logarithm of the mean determinant of the chosen blocks."""
    from .kernels import BLOCK

    i, j, k = (size // BLOCK for size in determinant.shape)
    means = determinant.reshape(i, BLOCK, j, BLOCK, k, BLOCK).mean(axis=(1, 3, 5)).ravel()[chosen]
    means = means[means > 0]
    return float(np.std(np.log(means))) if means.size else math.nan
