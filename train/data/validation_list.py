"""Lists of single validation pairs: each pair has its own grid and may belong to a group with its own score."""

from dataclasses import dataclass
from pathlib import Path

from runtime.errors import InputError
from runtime.host.files.csv_lines import by_column, read_csv
from runtime.host.files.regular_files import require_file
from runtime.images.scan_list import Scan
from train.data.image_pair import ImagePair
from train.data.volumes import VolumeCache, check_volumes, validation_pairs

_NEEDED, _FURTHER = ("fixed", "moving"), ("fixed_labels", "moving_labels", "group")


@dataclass(frozen=True)
class ListedPair:
    """One line of the list: two scans on one grid, with their label maps if known, and a group name or ""."""

    moving: Scan
    fixed: Scan
    group: str

    def read(self, cache: VolumeCache) -> ImagePair:
        """Read the pair, padded to multiples of 8.

        Raises:
            InputError: a file cannot be used, or is not on the grid of the others.
        """
        scans = (self.moving, self.fixed)
        (pair,) = validation_pairs(scans, check_volumes(scans, None, cache, pad=True), 1, cache)
        return pair


def lists_pairs(text: str) -> bool:
    """Return whether a validation list is a CSV of pairs, judged by its header; other lists hold single scans."""
    path = Path(text)
    return path.suffix.lower() == ".csv" and path.is_file() and set(_NEEDED) <= set(_header(path))


def read_pair_list(path: Path) -> tuple[ListedPair, ...]:
    """Read the pairs of a CSV with the columns fixed and moving and optionally fixed_labels, moving_labels and group.

    Paths may be relative to the CSV's folder; cells of the optional columns may be empty.

    Raises:
        InputError: there is another column, a line lacks a scan, there are no lines, or a file does not exist.
    """
    unknown = [column for column in _header(path) if column not in (*_NEEDED, *_FURTHER)]
    if unknown:
        expected = ", ".join((*_NEEDED, *_FURTHER))
        raise InputError(f"validation: {path} has the column {unknown[0]}, expected {expected}; rename or remove it")
    header, lines = read_csv(path, "validation", "fixed,moving")
    pairs = tuple(_pair(path, line, by_column(header, cells)) for line, cells in lines)
    if not pairs:
        raise InputError(f"validation: {path} lists no pair; expected a line for each below the header")
    return pairs


def _header(path: Path) -> list[str]:
    header, _ = read_csv(path, "validation", "fixed,moving")
    return list(by_column(header, []))


def _pair(path: Path, line: int, row: dict[str, str]) -> ListedPair:
    files = {name: path.parent / row[name] for name in (*_NEEDED, *_FURTHER[:2]) if row.get(name)}
    for name in _NEEDED:
        if name not in files:
            raise InputError(f"validation: {path} line {line} names no {name} scan; fill or remove it")
    for name, file in files.items():
        require_file(file, f"validation: {name} listed in {path}")
    moving, fixed = (Scan(files[side], files.get(f"{side}_labels")) for side in ("moving", "fixed"))
    return ListedPair(moving, fixed, row.get("group", ""))
