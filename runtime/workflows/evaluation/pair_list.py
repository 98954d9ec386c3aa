"""Pairs to score: a CSV of images, label maps, landmarks and other tools' transforms, or one pair."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import InputError, explained
from ...host.files.csv_lines import by_column, read_csv
from ...host.files.regular_files import require_file
from ...images.volume import scan_name
from ...transforms.chain import Link
from ...transforms.formats import AUTO, CONVENTIONS, RAS

FILES: tuple[str, ...] = ("fixed", "moving", "fixed_labels", "moving_labels", "fixed_landmarks", "moving_landmarks")
FILES += ("fixed_mask", "moving_mask")
COLUMNS = (*FILES, "name", "transform", "convention", "label_ids")
KNOWN = (AUTO, *CONVENTIONS, RAS)


@dataclass(frozen=True)
class EvaluationPair:
    """A pair and the files it is scored by; scores without their files are left out.

    Attributes:
        name: name of the pair and its record.
        fixed, moving: scans.
        fixed_labels, moving_labels: label maps, both or neither.
        fixed_landmarks, moving_landmarks: files of points in the same order (CSV, .mrk.json or .fcsv), both or neither.
        transform: another tool's transforms to score as well, a chain from the fixed to the moving scan.
        label_ids: labels to score; None: those of the command line, or all that both maps hold.
        convention: convention of those transform files that do not state theirs, one of `KNOWN`.
        fixed_mask, moving_mask: regions of the scans that count, see `runtime.images.masks`; None: everything.
    """

    name: str
    fixed: Path
    moving: Path
    fixed_labels: Path | None = None
    moving_labels: Path | None = None
    fixed_landmarks: Path | None = None
    moving_landmarks: Path | None = None
    transform: tuple[Link, ...] = ()
    label_ids: tuple[int, ...] | None = None
    convention: str = AUTO
    fixed_mask: Path | None = None
    moving_mask: Path | None = None

    def __post_init__(self) -> None:
        if self.convention not in KNOWN:
            known = ", ".join(KNOWN)
            raise InputError(f"pair {self.name}: convention is {self.convention!r}, expected one of {known}")
        for kind in ("labels", "landmarks"):
            if (getattr(self, f"fixed_{kind}") is None) != (getattr(self, f"moving_{kind}") is None):
                raise InputError(f"pair {self.name}: has {kind} of one scan, expected those of both or of neither")
        for what, file in self.files().items():
            require_file(file, f"pair {self.name}: {what}")

    def files(self) -> dict[str, Path]:
        """Return the files of the pair by attribute name; the links of the transform are numbered."""
        named = {name: file for name in FILES if (file := getattr(self, name)) is not None}
        links = {f"transform {n}": link.path for n, link in enumerate(self.transform, start=1)}
        return {**named, **links}


def read_pairs(path: Path) -> tuple[EvaluationPair, ...]:
    """Read the pairs of a CSV with a header: fixed, moving and any other of `COLUMNS`, in upper or lower case.

    Cells may be empty; paths may be relative to the CSV's folder. `transform` lists a chain as `apply` takes it, FILE
    or FILE,inverse, separated by semicolons, and `convention` names the convention of its files; `label_ids` lists
    numbers, separated by blanks, commas or semicolons. Without `name` a pair is named after its scans.

    Raises:
        InputError: the CSV cannot be read, has an unknown column or lacks a required one, lists no pair or a name
            twice, or names a file that does not exist.
    """
    with explained("--pairs"):
        pairs = tuple(_pair(path, line, row) for line, row in _rows(path))
    if not pairs:
        raise InputError(f"--pairs: {path} lists no pair; expected one line per pair below the header")
    seen: dict[str, EvaluationPair] = {}
    for pair in pairs:
        if (first := seen.setdefault(pair.name.casefold(), pair)) is not pair:
            raise InputError(f"--pairs: {path} has two pairs called {first.name}; give different names in column name")
    return pairs


def pair_name(fixed: Path, moving: Path) -> str:
    """Return the default name of a pair."""
    return _safe(f"{scan_name(fixed)}-{scan_name(moving)}")


def parse_label_ids(text: str, argument: str) -> tuple[int, ...]:
    """Parse label ids separated by blanks, commas or semicolons: numbers above 0, each once."""
    try:
        ids = tuple(int(part) for part in re.split(r"[\s,;]+", text.strip()))
    except ValueError:
        ids = ()
    if not ids or min(ids) < 1 or len(set(ids)) < len(ids):
        raise InputError(f"{argument}: got {text!r}, expected label ids above 0, each once, such as 2,3,4")
    return ids


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield line numbers and cells by column, of lines that are not blank."""
    header, lines = read_csv(path, "--pairs", "fixed,moving")
    columns = list(by_column(header, []))
    unknown = [column for column in columns if column not in COLUMNS]
    if unknown or not {"fixed", "moving"} <= set(columns):
        found = ", ".join(columns) or "none"
        others = ", ".join(COLUMNS[2:])
        raise InputError(f"--pairs: {path} has the columns {found}; expected fixed, moving and any of {others}")
    for line, cells in lines:
        if any(cell.strip() for cell in cells[len(header) :]):
            raise InputError(f"--pairs: {path} line {line} has more cells than the header; quote cells with commas")
        yield line, by_column(header, cells)


def _pair(path: Path, line: int, row: dict[str, str]) -> EvaluationPair:
    for column in ("fixed", "moving"):
        if not row[column]:
            raise InputError(f"--pairs: {path} line {line} names no {column} scan; name one or remove the line")
    files = {name: path.parent / row[name] for name in FILES if row.get(name)}
    links = [link.strip() for link in row.get("transform", "").split(";") if link.strip()]
    ids = row.get("label_ids")
    return EvaluationPair(
        name=_safe(row.get("name") or "") or pair_name(files["fixed"], files["moving"]),
        transform=tuple(Link.parse(str(path.parent / link)) for link in links),
        label_ids=parse_label_ids(ids, f"--pairs: {path} line {line}, label_ids") if ids else None,
        convention=(row.get("convention") or AUTO).lower(),
        **files,
    )


def _safe(name: str) -> str:
    """Return a name with only characters that file names may have."""
    return re.sub(r"[^\w.+-]+", "_", name).strip("._")


def label_ids_of(pair: EvaluationPair, default: Sequence[int] | None) -> tuple[int, ...] | None:
    """Return the label ids of the pair, or else of the command line; None: all that both maps hold."""
    chosen = default if pair.label_ids is None else pair.label_ids
    return None if chosen is None else tuple(chosen)
