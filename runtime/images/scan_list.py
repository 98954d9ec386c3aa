"""Lists of scans: a folder, a glob, or a CSV that assigns label maps and masks to images."""

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError, explained
from ..host.files.csv_lines import by_column, read_csv
from ..host.files.regular_files import require_file
from .formats.image_file import SUFFIXES
from .volume import scan_name

COLUMNS = ("image", "labels", "mask")
# Likely misspellings of columns; ignoring them would silently drop labels or masks.
_MISTAKEN = {"label": "labels", "labelmap": "labels", "seg": "labels", "segmentation": "labels", "masks": "mask"}


@dataclass(frozen=True)
class Scan:
    """One entry of a list: an image file and, if given, its label map and its mask."""

    image: Path
    labels: Path | None = None
    mask: Path | None = None

    def files(self) -> tuple[Path, ...]:
        """Return the files that are given, the image first."""
        return tuple(file for file in (self.image, self.labels, self.mask) if file is not None)


def read_scan_list(name: str, text: str) -> tuple[Scan, ...]:
    """Read the scans of a folder or a glob, sorted by name, or of a CSV, in its order.

    In a folder or a glob every volume is an image: label maps and masks are never guessed from names. A CSV has a
    header with the column `image` and, optionally, `labels` and `mask`, in upper or lower case; a line may leave the
    last two empty, and other columns are ignored. Paths in it may be relative to its folder.

    Args:
        name: the option that `text` came from, for messages, such as "data".
        text: the folder, glob or CSV.

    Raises:
        InputError: nothing is found, the CSV cannot be read or has a line without an image, or a file does not exist.
    """
    with explained(name):
        scans = _read_csv(name, Path(text)) if text.lower().endswith(".csv") else _find(Path(text), text)
        if not scans:
            suffixes = " ".join(SUFFIXES)
            raise InputError(f"{name}: {text} holds no {suffixes} file; expected a folder, glob or CSV of them")
        for file in (file for scan in scans for file in scan.files()):
            require_file(file, f"{name}, listed in {text}")
    return scans


def _find(path: Path, text: str) -> tuple[Scan, ...]:
    found = path.iterdir() if path.is_dir() else map(Path, glob.glob(text, recursive=True))
    return tuple(Scan(file) for file in sorted(found) if _is_volume(file))


def _is_volume(file: Path) -> bool:
    """Return whether a name is a volume's; hidden files are the system's or still being written."""
    return file.name.lower().endswith(SUFFIXES) and not file.name.startswith(".")


def _read_csv(name: str, path: Path) -> tuple[Scan, ...]:
    header, lines = read_csv(path, name, "image,labels")
    columns = list(by_column(header, []))
    if "image" not in columns:
        found = ", ".join(columns) or "none"
        raise InputError(f"{name}: {path} has the columns {found}; expected image and, optionally, labels and mask")
    for column in columns:
        if meant := _MISTAKEN.get(column):
            raise InputError(f"{name}: {path} has the column {column}, expected {meant}; rename it")
    rows = [(line, by_column(header, cells)) for line, cells in lines]
    blank = [line for line, row in rows if not row["image"]]
    if blank:
        raise InputError(f"{name}: {path} line {blank[0]} names no image; fill or remove it")
    return tuple(
        Scan(
            path.parent / row["image"],
            *(path.parent / row[column] if row.get(column) else None for column in COLUMNS[1:]),
        )
        for _, row in rows
    )


def distinct_names(images: Sequence[Path], argument: str) -> tuple[str, ...]:
    """Return a unique name for each image: its file's, with folders in front where several files share a name.

    Raises:
        InputError: one image is listed twice.
    """
    parts = [(*image.absolute().parent.parts[1:], scan_name(image)) for image in images]
    names = [place[-1] for place in parts]
    for depth in range(2, 1 + max(map(len, parts))):
        clashing = _clashing(names)
        names = ["_".join(place[-depth:]) if n in clashing else names[n] for n, place in enumerate(parts)]
    if equal := sorted(_clashing(names)):
        twice = " and ".join(str(images[n]) for n in equal[:2])
        raise InputError(f"{argument}: the results of {twice} would have the same name; give each image once")
    return tuple(names)


def _clashing(names: Sequence[str]) -> set[int]:
    """Return the indices of names that equal another one, ignoring case."""
    seen: dict[str, list[int]] = {}
    for n, name in enumerate(names):
        seen.setdefault(name.casefold(), []).append(n)
    return {n for indices in seen.values() if len(indices) > 1 for n in indices}
