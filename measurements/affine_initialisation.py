"""Score the affine initialisation alone on real brains: labels warped by it against the fixed labels.

    python -m measurements.affine_initialisation --data DIR --output table.md

`--data` as in real_pairs_list.py. Groups: Mindboggle's subjects in a chain; the two brains of `pair`, both ways;
subjects against either of those two, both ways, their cortex joined to one label per side; and subjects registered to
MNI152, each scored against the next one there. Dice is the mean over labels with 50 voxels or more in both maps, on the
fixed grid, nearest neighbour. "whole" is the affine initialisation without its steps on the detail inside the
foreground, "CPU s" the time of all cores together, both measured in turn.

`--greedy DIR` adds a column for greedy's affine: NCC 2x2x2, 100x50x10 iterations, one thread, images cropped to their
foreground, because greedy starts from their centres. DIR keeps its matrices; those that exist are read. Only this needs
picsl-greedy (pip install picsl-greedy). `--only-kept` leaves a cell empty where DIR has no matrix.
"""

import functools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from unittest import mock

import click
import nibabel
import numpy as np

from measurements.real_pairs_list import PAIR_LABELS, SUBJECTS
from runtime.geometry.grid import Grid, bounding_box
from runtime.images.intensity import FOREGROUND, PercentileRule
from runtime.images.mni152 import mni152_file
from runtime.images.resampling.resample import resample
from runtime.images.volume import read_volume
from runtime.registration.affine import detail
from runtime.registration.affine.align import align

Array = np.ndarray
TUTORIAL = ("fixed", "moving")
TEMPLATE = "mni152"
ACROSS = (3, 6, 9, 12, 14, 17)
CORTEX = ((1002, 1035, 3), (2002, 2035, 42))  # first and last id of Mindboggle's cortex, and its label in `pair`
FEWEST = 50  # voxels of a label
METHODS = ("headers", "whole", "detail", "greedy")
EDGE = 8  # margin in voxels around the foreground for greedy


@dataclass(frozen=True)
class Case:
    """A pair of a group; `against` is the subject it is scored with if the fixed image has no labels."""

    group: str
    fixed: str
    moving: str
    against: str | None = None

    @property
    def name(self) -> str:
        return f"{self.fixed}-{self.moving}" + (f" with {self.against}" if self.against else "")


def cases() -> list[Case]:
    subjects = [f"s{number}" for number in SUBJECTS]
    across = [(f"s{number}", one) for number in ACROSS for one in TUTORIAL]
    ring = zip(subjects, subjects[1:] + subjects[:1], strict=True)
    return [
        *(Case("chain", *names) for names in pairwise(subjects)),
        *(Case("pair", *names) for names in (TUTORIAL, TUTORIAL[::-1])),
        *(Case("across", *names) for names in chain.from_iterable((both, both[::-1]) for both in across)),
        *(Case("template", TEMPLATE, one, other) for one, other in ring),
    ]


class Scans:
    """Images and labels of the data folder, each read once."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self.image = functools.cache(self._image)
        self.labels = functools.cache(self._labels)

    def file(self, name: str, kind: str = "t1") -> Path:
        if name == TEMPLATE:
            return mni152_file()
        path = self._data / ("pair" if name in TUTORIAL else "mindboggle") / f"{name}_{kind}.nii.gz"
        if not path.is_file():
            raise click.ClickException(f"--data: {path} is absent; give the folder that holds pair/ and mindboggle/")
        return path

    def _image(self, name: str) -> tuple[Array, Grid]:
        volume = read_volume(self.file(name), name)
        return PercentileRule().normalise(volume.data), volume.grid

    def _labels(self, name: str, joined: bool) -> Array:
        found = read_volume(self.file(name, "labels"), name).data.astype(np.int16)
        for first, last, label in CORTEX if joined else ():
            found[(found >= first) & (found <= last)] = label
        return found


class Scorer:
    """Dice of a case, from its matrix and, in the template group, that of the subject it is scored with."""

    def __init__(self, scans: Scans) -> None:
        self._scans = scans

    def dice(self, case: Case, matrix: Array, against: Array) -> float:
        joined = bool({case.fixed, case.moving} & set(TUTORIAL))
        moving = self._warped_labels(case, case.moving, matrix, joined)
        if case.against is None:
            fixed, other = self._scans.labels(case.fixed, joined), case.fixed
        else:
            fixed, other = self._warped_labels(case, case.against, against, joined), case.against
        counts = [self._counts(self._scans.labels(name, joined)) for name in (other, case.moving)]
        ids = np.flatnonzero(np.minimum(*counts)[1:] >= FEWEST) + 1
        if case.group == "pair":
            ids = np.intersect1d(ids, PAIR_LABELS)
        both, one, two = (self._counts(labels) for labels in (fixed[fixed == moving], fixed, moving))
        return float(np.mean(2 * both[ids] / (one + two)[ids]))

    def _warped_labels(self, case: Case, name: str, matrix: Array, joined: bool) -> Array:
        grids = self._scans.image(name)[1], self._scans.image(case.fixed)[1]
        return resample(self._scans.labels(name, joined), *grids, physical=matrix, order="nearest")

    def _counts(self, labels: Array) -> Array:
        return np.bincount(labels.ravel(), minlength=4096)


def ours(scans: Scans, case: Case, whole: bool) -> tuple[Array, float]:
    """Return our matrix (4, 4) RAS mm and CPU seconds; `whole` skips the steps on the detail."""
    images = *scans.image(case.fixed), *scans.image(case.moving)
    with mock.patch.object(detail, "MIN_DETAIL_CORRELATION", 2.0 if whole else detail.MIN_DETAIL_CORRELATION):
        begin = time.process_time()
        matrix = align(*images).matrix
    return matrix, time.process_time() - begin


def greedy(scans: Scans, case: Case, kept: Path, only_kept: bool) -> Array | None:
    """Return greedy's matrix (4, 4) RAS mm, read from `kept` if it exists; None if it does not and `only_kept`."""
    file = kept / f"{case.fixed}-{case.moving}.mat"
    if not file.exists():
        if only_kept:
            return None
        from picsl_greedy import Greedy3D

        kept.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            images = [cut(scans, name, Path(folder)) for name in (case.fixed, case.moving)]
            Greedy3D().execute(
                f"-d 3 -a -m NCC 2x2x2 -i {images[0]} {images[1]} -ia-image-centers -n 100x50x10 -threads 1 -V 0 "
                f"-o {file}"
            )
    return np.loadtxt(file)


def cut(scans: Scans, name: str, folder: Path) -> Path:
    """Write the image cropped to its foreground and return the file."""
    first, last = bounding_box(scans.image(name)[0] > FOREGROUND)
    box = tuple(slice(max(int(a) - EDGE, 0), int(b) + EDGE + 1) for a, b in zip(first, last, strict=True))
    nibabel.save(nibabel.load(scans.file(name)).slicer[box], folder / f"{name}.nii.gz")
    return folder / f"{name}.nii.gz"


def scored(
    scans: Scans, chosen: list[Case], compare: Callable[[Case], Array | None]
) -> Iterator[tuple[Case, list[float]]]:
    """Yield each case and its row: Dice of headers, whole, detail and greedy (or NaN), then our CPU seconds."""
    scorer, matrices, seconds = Scorer(scans), {}, {}
    for case in chosen:
        (whole, slow), (detail, slower) = ours(scans, case, True), ours(scans, case, False)
        matrices[case.fixed, case.moving] = np.eye(4), whole, detail, compare(case)
        seconds[case] = [slow, slower]
    for case in chosen:
        pairs = zip(matrices[case.fixed, case.moving], matrices[case.fixed, case.against or case.moving], strict=True)
        dice = [np.nan if one is None or other is None else scorer.dice(case, one, other) for one, other in pairs]
        yield case, [*dice, *seconds[case]]


def means(group: str, rows: Array) -> Iterator[str]:
    """Yield the mean of a group, and that of the rows with greedy's Dice if some rows lack it."""
    compared = rows[np.isfinite(rows[:, METHODS.index("greedy")])]
    if len(compared) < len(rows):
        yield row(f"**{group}, mean of {len(rows)}**", rows.mean(axis=0))
    if len(compared):
        yield row(f"**{group}, mean of the {len(compared)} with greedy**", compared.mean(axis=0))


def row(name: str, figures: Sequence[float]) -> str:
    cells = [f"{figure:.3f}" for figure in figures[: len(METHODS)]] + [f"{s:.2f}" for s in figures[len(METHODS) :]]
    return "| " + " | ".join((name, *("" if cell == "nan" else cell for cell in cells))) + " |"


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--data", type=click.Path(path_type=Path), required=True)
@click.option("--greedy", "kept", type=click.Path(path_type=Path), help="Compare with greedy; folder for its matrices.")
@click.option("--only-kept", is_flag=True, help="Do not run greedy; use existing matrices only.")
@click.option("--groups", default="chain,pair,across,template", show_default=True)
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Markdown.")
def main(data: Path, kept: Path | None, only_kept: bool, groups: str, output: Path) -> None:
    scans, lines = Scans(data), [f"| | {' | '.join(METHODS)} | whole, CPU s | detail, CPU s |", "| --- " * 7 + "|"]
    compare = functools.partial(greedy, scans, kept=kept, only_kept=only_kept) if kept else lambda case: None
    for group in groups.split(","):
        rows = []
        for case, figures in scored(scans, [case for case in cases() if case.group == group], compare):
            rows.append(figures)
            lines.append(row(case.name, figures))
            click.echo(lines[-1])
        for line in means(group, np.array(rows)):
            lines.append(line)
            click.echo(line)
    output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
