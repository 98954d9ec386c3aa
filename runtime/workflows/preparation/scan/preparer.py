"""Preparation of single scans, from native files to prepared ones: read, align, resample once, write, record."""

import platform
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from .... import __version__
from ....errors import recorded
from ....host.files.hashes import sha256_of_facts, sha256_of_file
from ....host.machine import installed_versions
from ....host.progress import Stages
from ....images.formats.nifti_writer import write_volume
from ....images.resampling.resample import resample
from ....images.scan_list import COLUMNS, Scan
from ....images.volume import read_volume
from ....types import Array, Record
from ..options import PrepareOptions
from ..output.contact_sheet import Tile, draw_tile
from ..output.folder import FORMAT, VERSION, OutputFolder, write_unit_image
from .alignment import Alignment
from .native_scan import NativeScan, on_target, read_native
from .quality import correlation, cropped_share, label_facts, record_warnings
from .reference import Reference

PACKAGES = ("numpy", "nibabel", "numba", "llvmlite", "nilearn")


@dataclass(frozen=True, eq=False)
class ScanOutcome:
    """Outcome of a scan: its record, whether it was kept from an earlier run, and its tile of the contact sheet."""

    record: Record
    kept: bool
    tile: Tile

    @property
    def error(self) -> str | None:
        return self.record.get("error")


class ScanPreparer:
    """Preparation of scans for one reference and one set of options, in this process.

    Args:
        options: see `PrepareOptions`.
        reference: from `open_reference` with the same options.
        folder: folder of the results.
        threads: number of threads that compress; kernels use numba's own number.
    """

    def __init__(self, options: PrepareOptions, reference: Reference, folder: OutputFolder, threads: int) -> None:
        self._options, self._reference, self._folder, self._threads = options, reference, folder, threads

    def prepare(self, name: str, scan: Scan) -> ScanOutcome:
        """Prepare a scan, unless an earlier run did so with the same files and options; record any failure.

        Raises:
            OSError: the record cannot be written.
        """
        files = {column: file for column in COLUMNS if (file := getattr(scan, column)) is not None}
        inputs = {column: {"path": str(file)} for column, file in files.items()}
        record: Record = {"format": FORMAT, "version": VERSION, "name": name, "inputs": inputs}
        try:
            for column, file in files.items():
                inputs[column]["sha256"] = sha256_of_file(file)
            record["key"] = self._key(inputs)
            if (earlier := self._earlier(name, record["key"])) is not None:
                return earlier
            self._folder.clear(name)
            image, facts = self._prepared(name, scan)
        except Exception as error:  # a failure of one scan must not stop the others
            return self._failed(record, error)
        record |= facts
        self._folder.write_record(record)
        return ScanOutcome(record, False, draw_tile(record, image, self._reference.foreground))

    def _key(self, inputs: dict[str, dict[str, str]]) -> str:
        """Return the hash of everything that a result depends on: file contents (not paths) and options."""
        hashes = {column: file["sha256"] for column, file in inputs.items()}
        facts = (VERSION, hashes, self._reference.hashes, self._options.of_a_scan())
        return sha256_of_facts(facts)

    def _earlier(self, name: str, key: str) -> ScanOutcome | None:
        """Return the outcome of an earlier run if its key is the same and its files are complete, else None."""
        record = self._folder.record(name)
        if record.get("key") != key or not self._folder.whole(record):
            return None
        image = read_volume(self._folder.file("image", name), "image").data
        return ScanOutcome(record, True, draw_tile(record, image, self._reference.foreground))

    def _prepared(self, name: str, scan: Scan) -> tuple[Array, Record]:
        """Write the results; return the image (I, J, K) and the entries of its record."""
        stage = Stages()
        with stage("read"):
            native = read_native(scan, self._options.rule, nan=self._options.nan)
        with stage("align"):
            found = self._reference.aligner.align(native.image, native.grid)
        with stage("resample"):
            arrays = self._on_target(native, found.matrix)
        with stage("measure"):
            facts = self._findings(native, found, arrays)
        with stage("write"):
            self._write(name, arrays)
        facts["outputs"] = {column: self._folder.output(column, name) for column in arrays}
        facts["seconds"] = {name: round(seconds, 3) for name, seconds in stage.seconds.items()}
        return arrays["image"], facts | {"versions": _versions()}

    def _on_target(self, native: NativeScan, matrix: Array) -> dict[str, Array]:
        """Return the arrays to write, by column of the list."""
        target = self._reference.target
        arrays = {"image": on_target(native, target, self._options.rule, matrix)}
        if native.labels is not None:
            labels = native.labels
            arrays["labels"] = resample(labels.data, labels.grid, target, matrix, "nearest")
        if native.mask is not None:
            inside = (native.mask.data != 0).astype(np.uint8)
            arrays["mask"] = resample(inside, native.mask.grid, target, matrix, "nearest")
            arrays["image"] *= arrays["mask"]  # interpolation spreads intensities half a voxel beyond the mask
        return arrays

    def _findings(self, native: NativeScan, found: Alignment, arrays: dict[str, Array]) -> Record:
        reference, target = self._reference, self._reference.target
        by_headers = resample(native.image, native.grid, target)
        before, after = (correlation(reference.image, image) for image in (by_headers, arrays["image"]))
        foreground = self._options.rule.foreground(native.image)
        facts = {
            "reference": {"name": reference.name, "sha256": reference.hashes},
            "options": self._options.of_a_scan(),
            "grid": {"shape": list(target.shape), "affine": target.affine.tolist()},
            "affine": {"reference_to_scan": found.matrix.tolist(), "used": found.used, "note": found.note},
            "similarity": {"measure": "ncc", "before": before, "after": after},
            "cropped_share": cropped_share(foreground, native.grid, target, found.matrix),
            **label_facts(None if native.labels is None else native.labels.data, arrays.get("labels")),
        }
        return facts | {"warnings": [*native.warnings, *record_warnings(facts)]}

    def _write(self, name: str, arrays: dict[str, Array]) -> None:
        target, code = self._reference.target, self._reference.code
        with ThreadPoolExecutor(self._threads) as pool:
            for column, array in arrays.items():
                file = self._folder.file(column, name)
                if column == "image":
                    write_unit_image(file, array, target, code, pool)
                else:
                    write_volume(file, array, target, (code, code), pool=pool)

    def _failed(self, record: Record, error: Exception) -> ScanOutcome:
        """Record a failure, which the next run tries again."""
        self._folder.clear(record["name"])
        record |= recorded(error)
        self._folder.write_record(record)
        return ScanOutcome(record, False, Tile(record["name"], error=record["error"]))


def _versions() -> dict[str, str]:
    return {"rpnet": __version__, "python": platform.python_version(), **installed_versions(PACKAGES)}
