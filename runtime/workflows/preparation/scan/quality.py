"""Quality of a prepared scan: similarity with the reference, share outside the grid, lost labels, and warnings."""

import math
from typing import Any

import numpy as np

from ....geometry.grid import Grid
from ....images.similarity import ncc
from ....registration.result import LOW_NCC
from ....types import Array

MUCH_CROPPED = 0.01  # share of the foreground outside the grid above which there is a warning
FEW_POINTS = 200_000  # approximate number of foreground voxels used to estimate the share


def correlation(reference: Array, image: Array) -> float | None:
    """Return the correlation of two images (I, J, K) over the whole grid; None if one is constant."""
    value = ncc(reference, image)
    return None if math.isnan(value) else round(value, 6)


def cropped_share(foreground: Array, grid: Grid, target: Grid, matrix: Array) -> float:
    """Return the share of a scan's foreground that lies outside the grid of the results, in [0, 1].

    Args:
        foreground: (I, J, K) bool on `grid`.
        grid: grid of the scan, RAS mm.
        target: grid of the results.
        matrix: (4, 4) RAS mm, target -> scan.
    """
    step = max(round((np.count_nonzero(foreground) / FEW_POINTS) ** (1 / 3)), 1)
    some = step * np.argwhere(foreground[::step, ::step, ::step])
    if not len(some):
        return 0.0
    to_target = grid.voxel_map(target, np.linalg.inv(matrix))
    positions = some @ to_target[:3, :3].T + to_target[:3, 3]
    inside = target.inside(positions)
    return round(1 - float(inside.mean()), 6)


def label_facts(native: Array | None, prepared: Array | None) -> dict[str, list[int]]:
    """Return the labels of a result and those lost to the crop or the coarser grid; empty without a label map."""
    if native is None:
        return {}
    assert prepared is not None
    there, left = ([int(label) for label in np.unique(labels) if label] for labels in (native, prepared))
    return {"labels": left, "labels_lost": sorted(set(there) - set(left))}


def record_warnings(facts: dict[str, Any]) -> list[str]:
    """Return warnings, one line each, derived from the entries of a record."""
    lines = []
    after, cropped, lost = facts["similarity"]["after"], facts["cropped_share"], facts.get("labels_lost")
    if after is None or after < LOW_NCC:
        lines.append(f"the similarity with the reference is low ({'none' if after is None else f'{after:.2f}'})")
    if cropped > MUCH_CROPPED:
        lines.append(f"{cropped:.1%} of the foreground lies outside the grid")
    if lost:
        lines.append(f"{len(lost)} of {len(lost) + len(facts['labels'])} labels are not on the grid: {_few(lost)}")
    if note := facts["affine"]["note"]:
        lines.append(f"alignment: {note}")
    return lines


def _few(labels: list[int]) -> str:
    shown = ", ".join(map(str, labels[:10]))
    return f"{shown}, ..." if len(labels) > 10 else shown
