"""Scans of the validation and the groups of pairs they form; derived scans are written on first use."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from measurements.real_pairs_list import PAIR_LABELS
from measurements.real_pairs_list import SUBJECTS as NUMBERS
from measurements.validation.degradations import DEGRADATIONS, write_degraded
from measurements.validation.structures import joined
from runtime.errors import InputError
from runtime.images.formats.nifti_writer import write_volume
from runtime.images.mni152 import mni152_file
from runtime.images.volume import read_labels, read_volume

SUBJECTS = tuple(f"s{number}" for number in NUMBERS)
TUTORIAL = ("fixed", "moving")
TEMPLATE = "mni152"
DEGRADED = ("s3-s4", "s7-s9", "fixed-moving")
GROUPS = ("chain", "pair", "across", "template", *DEGRADATIONS)


@dataclass(frozen=True)
class Scan:
    """A scan and its label map; labels is None for the template."""

    name: str
    image: Path
    labels: Path | None


@dataclass(frozen=True)
class Couple:
    """Two scans registered both ways: `one` as the fixed scan first, then `other`.

    Attributes:
        group: one of `GROUPS`.
        half: "a", used for choices, or "b", used for results.
        labels: ids to score; None: all that both maps hold with 50 voxels or more.
    """

    group: str
    one: Scan
    other: Scan
    half: str
    labels: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        return f"{self.group}.{self.one.name}-{self.other.name}"


class Catalogue:
    """All couples.

    Args:
        data: folder that holds `pair/` and `mindboggle/`.
        folder: folder for derived scans.

    Raises:
        InputError: a scan is missing.
    """

    def __init__(self, data: Path, folder: Path) -> None:
        self._data, self._folder = data, folder
        folder.mkdir(parents=True, exist_ok=True)

    def couples(self, groups: tuple[str, ...] = GROUPS, half: str | None = None) -> list[Couple]:
        """Return the couples of some groups, of one half or both; every second couple of a group is in half "b"."""
        found = []
        for group in groups:
            rows = self._rows(group)
            found += [Couple(group, *row[:2], "ab"[n % 2], *row[2:]) for n, row in enumerate(rows)]
        return [couple for couple in found if half in (None, couple.half)]

    def _rows(self, group: str) -> list[tuple]:
        if group == "chain":
            return [(self._subject(a), self._subject(b)) for a, b in pairwise(SUBJECTS)]
        if group == "pair":
            return [(*map(self._tutorial, TUTORIAL), PAIR_LABELS)]
        if group == "across":
            # Alternate the order of the two tutorial scans, so that both halves contain both of them.
            turns = [TUTORIAL[:: 1 if n % 2 else -1] for n in range(len(SUBJECTS))]
            order = [(name, side) for k in range(2) for name, turn in zip(SUBJECTS, turns, strict=True)
                     for side in turn[k : k + 1]]  # fmt: skip
            return [(self._tutorial(side), self._joined(self._subject(name))) for name, side in order]
        if group == "template":
            return [(Scan(TEMPLATE, mni152_file(), None), self._subject(name)) for name in SUBJECTS]
        return [self._degraded(name, group) for name in DEGRADED]

    def _degraded(self, name: str, kind: str) -> tuple:
        one, other = name.split("-")
        of, labels = (self._tutorial, (PAIR_LABELS,)) if one in TUTORIAL else (self._subject, ())
        clean = of(other)
        path = self._folder / f"{other}.{kind}.nii.gz"
        if not path.exists():
            write_degraded(path, read_volume(clean.image, "scan"), kind)
        return (of(one), Scan(f"{other}.{kind}", path, clean.labels), *labels)

    def _subject(self, name: str) -> Scan:
        return self._scan("mindboggle", name)

    def _tutorial(self, name: str) -> Scan:
        return self._scan("pair", name)

    def _scan(self, folder: str, name: str) -> Scan:
        files = [self._data / folder / f"{name}_{kind}.nii.gz" for kind in ("t1", "labels")]
        for file in files:
            if not file.is_file():
                raise InputError(f"--data: {file} is missing; give the folder that holds pair/ and mindboggle/")
        return Scan(name, *files)

    def _joined(self, scan: Scan) -> Scan:
        path = self._folder / f"{scan.name}.joined.nii.gz"
        if not path.exists():
            labels = read_labels(scan.labels, "labels")
            write_volume(path, joined(labels.data), labels.grid)
        return Scan(scan.name, scan.image, path)
