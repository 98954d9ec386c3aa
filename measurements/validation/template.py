"""Scores of the template group: labels of subjects warped to the template, and a majority vote warped back.

MNI152 has no labels of these protocols. A registration onto it is scored by the overlap of the subjects' labels with
one another in template space; one from it by the Dice of a subject's labels with the majority vote of the others there.
"""

from itertools import combinations
from pathlib import Path

import numpy as np

from measurements.validation.scores import Scorer
from runtime.geometry.grid import Grid
from runtime.geometry.transform import Transform
from runtime.host.files.whole_files import atomic_path
from runtime.images.overlap import SMALLEST_LABEL

Array = np.ndarray


def write_warped_labels(
    path: Path, onto: Scorer, there: Transform, back_from: Scorer, back: Transform, grid: Grid
) -> None:
    """Write the data of one subject that the template's scores need, .npz.

    Args:
        path: file to write.
        onto, there: scorer and transform of the registration onto the template, template -> subject.
        back_from, back: those of the registration of the template onto the subject, subject -> template.
        grid: grid of the template.

    The file holds `carried`, the subject's labels on the template's grid (I, J, K); `labels`, the subject's own label
    map (cropped and flattened); and `places`, for each voxel of `labels`, the flat index of the template voxel nearest
    to its position under `back`, -1 outside.
    """
    own = back_from.fixed_labels
    displacement = back.displacement(own.grid)
    voxels = np.moveaxis(np.indices(own.data.shape), 0, -1).reshape(-1, 3)
    points = own.grid.to_physical(voxels.astype(np.float64)) + displacement.reshape(-1, 3)
    places = np.rint(grid.to_voxels(points)).astype(np.int64)
    inside = ((places >= 0) & (places < grid.shape)).all(axis=1)
    flat = np.where(inside, np.ravel_multi_index(np.where(inside[:, None], places, 0).T, grid.shape), -1)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(
            file,
            carried=onto.warped_labels(there, grid).astype(np.uint16),
            labels=own.data.ravel().astype(np.uint16),
            places=flat.astype(np.int32),
        )


def overlaps(files: dict[str, Path]) -> dict[str, dict[str, dict[int, float]]]:
    """Return the Dice by label of each subject, "forward" (onto the template) and "backward" (the template onto it).

    Args:
        files: files of `write_warped_labels`, by subject; two or more.
    """
    found = {name: dict(np.load(path)) for name, path in files.items()}
    seen = np.flatnonzero(np.any([each["carried"] > 0 for each in found.values()], axis=0))
    maps = {name: each["carried"].ravel()[seen] for name, each in found.items()}
    pairs: dict[str, list[dict[int, float]]] = {name: [] for name in maps}
    for one, other in combinations(maps, 2):
        dice = _dice(maps[one], maps[other])
        pairs[one].append(dice)
        pairs[other].append(dice)
    scores, vote = {}, np.zeros(next(iter(found.values()))["carried"].size, np.uint16)
    for name, own in found.items():
        vote[seen] = majority([labels for other, labels in maps.items() if other != name])
        voted = np.where(own["places"] >= 0, vote[own["places"]], 0)
        scores[name] = {"forward": _mean(pairs[name]), "backward": _dice(own["labels"], voted)}
    return scores


def majority(maps: list[Array]) -> Array:
    """Return the most frequent label of several maps of one shape at each voxel; in a tie, the lowest."""
    best, most = np.zeros_like(maps[0]), np.zeros(maps[0].shape, np.uint8)
    for label in np.flatnonzero(sum(np.bincount(each.ravel(), minlength=1 << 16) for each in maps)):
        votes = np.zeros(maps[0].shape, np.uint8)
        for each in maps:
            votes += each == label
        better = votes > most
        best[better], most[better] = label, votes[better]
    return best


def _dice(fixed: Array, warped: Array) -> dict[int, float]:
    """Return the Dice of labels with 50 voxels or more in both of two flat 16-bit maps."""
    in_fixed, in_warped, in_both = (
        np.bincount(labels, minlength=1 << 16) for labels in (fixed, warped, fixed[fixed == warped])
    )
    shared = 1 + np.flatnonzero(np.minimum(in_fixed, in_warped)[1:] >= SMALLEST_LABEL)
    return {int(label): float(2 * in_both[label] / (in_fixed[label] + in_warped[label])) for label in shared}


def _mean(scores: list[dict[int, float]]) -> dict[int, float]:
    labels = sorted(set().union(*scores))
    return {label: float(np.mean([each[label] for each in scores if label in each])) for label in labels}
