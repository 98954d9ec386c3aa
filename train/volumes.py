"""Lists of real volumes that are already on one grid: read, checked, normalised, and drawn in pairs."""

import csv
import glob
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from runtime.geometry import volume as files
from runtime.geometry.errors import InputError
from runtime.geometry.grid import Grid, closest_ras, fit_to, reorient, reorient_array
from runtime.geometry.intensity import PercentileRule
from train.network import SIZE_MULTIPLE
from train.validation import ValidationPair

_CACHED_VOLUMES = 48


@dataclass(frozen=True)
class Subject:
    """One line of a list: an image file and, where known, its label map on the same grid."""

    image: Path
    labels: Path | None = None

    def files(self) -> tuple[Path, ...]:
        return (self.image,) if self.labels is None else (self.image, self.labels)


def read_list(name: str, text: str) -> tuple[Subject, ...]:
    """Subjects of a folder, a glob, or a CSV with the columns `image` and, optionally, `labels`; sorted, CSV in order.

    Paths in a CSV may be relative to its folder. `name` is the option that `text` came from, for messages.

    Raises:
        InputError: nothing is found, the CSV has no `image` column, or a file does not exist.
    """
    path = Path(text)
    if path.suffix.lower() == ".csv":
        subjects = _read_csv(name, path)
    else:
        found = path.iterdir() if path.is_dir() else map(Path, glob.glob(text, recursive=True))
        subjects = tuple(Subject(file) for file in sorted(found) if file.name.lower().endswith(files.SUFFIXES))
    if not subjects:
        suffixes = " ".join(files.SUFFIXES)
        raise InputError(f"{name}: {text} holds no {suffixes} file; expected a folder, glob or CSV of them")
    for file in (file for subject in subjects for file in subject.files()):
        if not file.is_file():
            raise InputError(f"{name}: {file}, listed in {text}, does not exist; correct the list")
    return subjects


def _read_csv(name: str, path: Path) -> tuple[Subject, ...]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows, columns = list(reader), reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{name}: cannot read {path} ({error}); expected a CSV with a header") from error
    if "image" not in columns:
        found = ", ".join(columns) or "none"
        raise InputError(f"{name}: {path} has the columns {found}; expected image and, optionally, labels")
    blank = [n for n, row in enumerate(rows, start=2) if not row["image"]]
    if blank:
        raise InputError(f"{name}: {path} line {blank[0]} names no image; fill or remove it")
    return tuple(
        Subject(path.parent / row["image"], path.parent / row["labels"] if row.get("labels") else None) for row in rows
    )


def _to_ras(volume: files.Volume) -> tuple[np.ndarray, Grid]:
    """Voxels and grid with the axes in the order and direction nearest to RAS."""
    axes, signs = closest_ras(volume.grid.affine)
    return reorient_array(volume.data, axes, signs), reorient(volume.grid, axes, signs)


def _read(file: Path, labels: bool) -> tuple[np.ndarray, Grid]:
    """An image in [0, 1] by the intensity rule for MRI, or a label map."""
    if labels:
        array, grid = _to_ras(files.read_labels(file, "labels"))
        if array.min() < 0:
            raise InputError(f"labels: {file} holds {array.min()}, expected 0 and above")
        return array.astype(np.int32), grid
    array, grid = _to_ras(files.read_volume(file, "image"))
    return PercentileRule().normalise(np.clip(array, 0, None), f"image: {file}"), grid


def check_volumes(subjects: Sequence[Subject], shape: tuple[int, int, int] | None) -> tuple[int, int, int]:
    """Read every volume once; returns the size to train at: `shape`, or the volumes' own where it is None.

    Raises:
        InputError: a volume cannot be used, the volumes are not on one grid, or their size is no multiple of 8 and
            `shape` is None.
    """
    first = None
    for subject in subjects:
        for file in subject.files():
            _, grid = _read(file, labels=file == subject.labels)
            first = first or grid
            if not grid.close(first):
                raise InputError(
                    f"data: {file} {grid.shape} is not on the grid of {subjects[0].image} {first.shape}; "
                    "align all volumes affinely and resample them onto one grid first"
                )
    return shape or _own_size(first.shape)


def _own_size(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    if any(size % SIZE_MULTIPLE for size in shape):
        up = ",".join(str(-(-size // SIZE_MULTIPLE) * SIZE_MULTIPLE) for size in shape)
        raise InputError(f"shape: volumes of {shape} are no multiples of 8; give shape {up} to pad, or another to crop")
    return shape


@lru_cache(maxsize=_CACHED_VOLUMES)
def load(file: Path, shape: tuple[int, int, int], labels: bool = False) -> Tensor:
    """An image (float32, [0, 1]) or a label map (int32), (I, J, K) in RAS order, fitted to `shape`."""
    return torch.from_numpy(np.ascontiguousarray(fit_to(_read(file, labels)[0], shape)))


@dataclass(frozen=True)
class VolumePairs:
    """Random ordered pairs of different subjects; pair `step` depends on the seed and on `step` alone."""

    subjects: tuple[Subject, ...]
    shape: tuple[int, int, int]
    seed: int

    def __post_init__(self) -> None:
        if len(self.subjects) < 2:
            raise InputError(f"data: got {len(self.subjects)} volume to train on, expected 2 or more; add volumes")

    def pair(self, step: int) -> tuple[Tensor, Tensor]:
        """(moving, fixed), each (I, J, K) float32 in [0, 1]."""
        chosen = np.random.default_rng([self.seed, step]).choice(len(self.subjects), 2, replace=False)
        moving, fixed = (load(self.subjects[n].image, self.shape) for n in chosen)
        return moving, fixed


def validation_pairs(
    subjects: Sequence[Subject], shape: tuple[int, int, int], limit: int
) -> tuple[ValidationPair, ...]:
    """At most `limit` ordered pairs, with labels if known: each subject onto the next, then onto the one after that."""
    count = len(subjects)
    if count < 2:
        raise InputError(f"validation: got {count} volume, expected 2 or more; add volumes or name another list")
    order = [(n, (n + distance) % count) for distance in range(1, count) for n in range(count)][:limit]
    used = {n: subjects[n] for pair in order for n in pair}
    images = {n: load(subject.image, shape) for n, subject in used.items()}
    labels = {n: load(subject.labels, shape, labels=True) for n, subject in used.items() if subject.labels}
    return tuple(ValidationPair(images[m], images[f], labels.get(m), labels.get(f)) for m, f in order)
