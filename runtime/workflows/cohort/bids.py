"""Anatomical scans of a BIDS dataset as rows of a table: names are read as the specification writes them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import InputError
from .table import CohortRow, safe_id

NAME = re.compile(r"(?P<entities>(?:[a-zA-Z0-9]+-[^_/]+_)+)(?P<suffix>[a-zA-Z0-9]+)\.nii(?:\.gz)?$")
DEFAULT: Mapping[str, tuple[str, ...]] = {"suffix": ("T1w",)}
SHORT = {"subject": "sub", "session": "ses"}  # long names of entities, as other tools' filter files have them


@dataclass(frozen=True)
class BidsScan:
    """A scan of a dataset: its file, its entities by their short names (sub, ses, acq ...), and its suffix."""

    path: Path
    entities: Mapping[str, str]
    suffix: str

    @property
    def name(self) -> str:
        """The entities as in its file's name, without the suffix."""
        return "_".join(f"{key}-{value}" for key, value in self.entities.items())


def parse_filters(texts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Parse ENTITY=VALUE[,VALUE...]; the suffix is T1w unless stated.

    Raises:
        InputError: a text of another form.
    """
    found: dict[str, tuple[str, ...]] = dict(DEFAULT)
    for text in texts:
        name, sign, values = text.partition("=")
        if not sign or not name or not values:
            raise InputError(f"--filter: got {text!r}, expected ENTITY=VALUE, such as ses=01 or suffix=T2w")
        found[SHORT.get(name, name)] = tuple(values.split(","))
    return found


def bids_scans(folder: Path, filters: Mapping[str, Sequence[str]]) -> list[BidsScan]:
    """Return the anatomical scans of a dataset that pass every filter, in order of their names.

    Raises:
        InputError: no such folder, or no scan passes.
    """
    if not folder.is_dir():
        raise InputError(f"--bids: there is no folder {folder}")
    paths = [*folder.glob("sub-*/anat/*.nii*"), *folder.glob("sub-*/ses-*/anat/*.nii*")]
    scans = [scan for path in sorted(paths) if (scan := _scan(path)) is not None]
    passing = [scan for scan in scans if _passes(scan, filters)]
    if not passing:
        wanted = ", ".join(f"{name}={','.join(values)}" for name, values in filters.items())
        raise InputError(f"--bids: none of the {len(scans)} anatomical scans of {folder} passes {wanted}")
    return passing


def bids_rows(folder: Path, fixed: Path | None, filters: Mapping[str, Sequence[str]]) -> list[CohortRow]:
    """Return each scan of a dataset paired with one fixed scan, or with the first scan of its subject.

    Args:
        folder: of the dataset.
        fixed: the fixed scan of all; None: within subjects, and subjects with one scan are left out.
        filters: by short name of an entity, or "suffix".
    """
    scans = bids_scans(folder, filters)
    first: dict[str, BidsScan] = {}
    for scan in scans:
        first.setdefault(scan.entities["sub"], scan)
    rows = []
    for scan in scans:
        onto = fixed or first[scan.entities["sub"]].path
        if onto != scan.path:
            rows.append(
                CohortRow(
                    safe_id(scan.name),
                    onto,
                    scan.path,
                    subject=scan.entities["sub"],
                    session=scan.entities.get("ses", ""),
                )
            )
    return rows


def _scan(path: Path) -> BidsScan | None:
    found = NAME.fullmatch(path.name)
    if found is None:
        return None
    entities = dict(part.split("-", 1) for part in found["entities"].strip("_").split("_"))
    return BidsScan(path, entities, found["suffix"]) if "sub" in entities else None


def _passes(scan: BidsScan, filters: Mapping[str, Sequence[str]]) -> bool:
    values = {**scan.entities, "suffix": scan.suffix}
    return all(values.get(name) in wanted for name, wanted in filters.items())
