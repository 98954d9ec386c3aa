"""Folder of prepared scans: file names, how files are written, and which results of an earlier run are complete."""

import csv
import io
import json
from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np

from ....errors import InputError, explained
from ....geometry.grid import Grid
from ....host.files.hashes import sha256_of_file
from ....host.files.plain_json import read_record
from ....host.files.whole_files import write_text
from ....images.formats.nifti_writer import write_volume
from ....images.scan_list import COLUMNS, Scan
from ....types import Array

FORMAT, VERSION = "rpnet-prepared-scan", 1
FOLDERS = dict(zip(COLUMNS, ("images", "labels", "masks"), strict=True))
RECORDS, TABLE, SHEET, REFERENCE = "records", "prepared.csv", "contact_sheet.png", "reference.nii.gz"
ONE = 1 << 14  # stored value of an intensity of 1


class OutputFolder:
    """Results by name: ``images/``, ``labels/``, ``masks/`` and ``records/``, all paths in records relative to `path`.

    Args:
        path: the folder, made if it does not exist.
        scans: the inputs.
        others: other inputs: the list, the reference.

    No input may lie where results go: it would be overwritten, or a result taken for an input by the next run.

    Raises:
        InputError: the folder cannot be made, or an input lies where results go.
    """

    def __init__(self, path: Path, scans: Sequence[Scan], others: Sequence[Path] = ()) -> None:
        self.path = path
        places = [(path / name).resolve() for name in (*FOLDERS.values(), RECORDS, TABLE, SHEET, REFERENCE)]
        inputs = [*others, *(file for scan in scans for file in scan.files())]
        for file in inputs:
            place = file.resolve()
            if place == path.resolve() or any(place.is_relative_to(result) for result in places):
                raise InputError(f"--output: the input {file} lies in the folder of the results; choose another folder")
        used = [FOLDERS[column] for column in COLUMNS if any(getattr(scan, column) for scan in scans)]
        with explained("--output"):
            for name in (*used, RECORDS):
                (path / name).mkdir(parents=True, exist_ok=True)

    def file(self, column: str, name: str) -> Path:
        """Return the path of a scan's prepared image, labels or mask."""
        return self.path / FOLDERS[column] / f"{name}.nii.gz"

    def record_file(self, name: str) -> Path:
        return self.path / RECORDS / f"{name}.json"

    def record(self, name: str) -> dict[str, Any]:
        """Return the record of a scan from an earlier run; empty if there is none of this format."""
        return read_record(self.record_file(name), FORMAT, VERSION)

    def whole(self, record: dict[str, Any]) -> bool:
        """Check that every file of a result exists with the content it was written with."""
        outputs = record.get("outputs", {})
        return "image" in outputs and all(self._unchanged(**output) for output in outputs.values())

    def _unchanged(self, path: str, sha256: str) -> bool:
        try:
            return sha256_of_file(self.path / path) == sha256
        except OSError:
            return False

    def clear(self, name: str) -> None:
        """Remove a scan's earlier results, its record first."""
        for file in (self.record_file(name), *(self.file(column, name) for column in COLUMNS)):
            file.unlink(missing_ok=True)

    def output(self, column: str, name: str) -> dict[str, str]:
        """Return path and hash of a written file, as stored in records."""
        file = self.file(column, name)
        return {"path": file.relative_to(self.path).as_posix(), "sha256": sha256_of_file(file)}

    def write_record(self, record: dict[str, Any]) -> None:
        write_text(self.record_file(record["name"]), json.dumps(record, indent=2) + "\n")

    def write_table(self, records: Sequence[dict[str, Any]]) -> Path | None:
        """Write prepared.csv of the successful scans, in this order; without any, remove an earlier one."""
        outputs = [record["outputs"] for record in records if "outputs" in record]
        path = self.path / TABLE
        if not outputs:
            path.unlink(missing_ok=True)
            return None
        columns = [column for column in COLUMNS if any(column in output for output in outputs)]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([output.get(column, {}).get("path", "") for column in columns] for output in outputs)
        write_text(path, text.getvalue())
        return path


def write_unit_image(path: Path, image: Array, grid: Grid, code: int, pool: Executor | None = None) -> None:
    """Write intensities in [0, 1] as int16 with a slope of 2^-14, complete or not at all.

    Half precision, enough for training, is no NIfTI type, and float32 takes twice the space, compressed or not, for
    digits that no scanner measured. int16 is read by every tool, unlike uint16. A slope that is a power of two keeps 0
    and 1, and every multiple of 2^-14, exact in float32; the error is 3e-5 at most, an eighth of the step between grey
    levels of a 12-bit scan.

    Args:
        path: ends in .nii or .nii.gz.
        image: (I, J, K) on `grid`.
        code: NIfTI code of the space.
        pool: threads that compress; None: the calling thread.
    """
    stored = np.rint(image * np.float32(ONE)).astype(np.int16)
    write_volume(path, stored, grid, (code, code), pool=pool, slope=1 / ONE)
