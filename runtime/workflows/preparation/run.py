"""Preparation of a list of scans: distributed over processes, resumed where an earlier run ended."""

import time
from pathlib import Path

from ...host.files.folder_lock import folder_lock
from ...host.progress import Progress, Stages, silent
from ...images.scan_list import Scan, distinct_names, read_scan_list
from ...registration.warmup import start_kernels
from ...types import Record
from .options import PrepareOptions
from .output.contact_sheet import Tile, worst_first, write_contact_sheet
from .output.folder import (
    FOLDERS,
    RECORDS,
    REFERENCE,
    SHEET,
    OutputFolder,
    write_unit_image,
)
from .processes import outcomes
from .scan.reference import open_reference
from .summary import Preparation, ScanProgress, sheet_title


def prepare_scans(options: PrepareOptions, progress: Progress = silent) -> Preparation:
    """Bring a list of native scans onto one grid, aligned with one reference, intensities in [0, 1].

    Writes, into ``options.output``: ``images/``, ``labels/`` and ``masks/`` (NIfTI), ``records/`` (JSON, one for each
    scan, failures included), ``reference.nii.gz`` on the same grid, ``prepared.csv`` of the successful scans, for
    `train`, and ``contact_sheet.png``. Every file appears complete or not at all. A scan whose files, reference and
    options are those of an earlier run, and whose results are complete, is kept. More than one job starts new
    interpreters: then call this below ``if __name__ == "__main__"``.

    Args:
        options: see `PrepareOptions`.
        progress: receives the current stage, how much is done and an estimate of the remaining time.

    Raises:
        InputError: a list, reference or folder that cannot be used.
        ScarceError: the system ended a process, or another run has locked the folder.
    """
    scans = read_scan_list("--data", options.data)
    with folder_lock(options.output, subfolders=(*FOLDERS.values(), RECORDS)):
        return _prepare_scans(options, scans, progress)


def _prepare_scans(options: PrepareOptions, scans: tuple[Scan, ...], progress: Progress) -> Preparation:
    start = time.perf_counter()
    names = distinct_names([scan.image for scan in scans], "--data")
    folder = OutputFolder(options.output, scans, [Path(text) for text in (options.data, options.reference)])
    start_kernels(Stages(progress))
    progress("read the reference")
    reference = open_reference(options, scans[0])
    write_unit_image(folder.path / REFERENCE, reference.image, reference.target, reference.code)
    records: dict[str, Record] = {}
    tiles: list[Tile] = []
    kept, counter = 0, ScanProgress(len(scans), progress)
    for outcome in outcomes(options, reference, folder, dict(zip(names, scans, strict=True))):
        records[outcome.record["name"]] = outcome.record
        tiles = worst_first([*tiles, outcome.tile])
        kept += outcome.kept
        counter.step(outcome.record["name"], outcome.error, outcome.kept)
    progress("draw the contact sheet")
    in_order = tuple(records[name] for name in names)
    write_contact_sheet(folder.path / SHEET, tiles, sheet_title(in_order, reference.name), len(scans))
    return Preparation(folder.path, in_order, kept, folder.write_table(in_order), time.perf_counter() - start)
