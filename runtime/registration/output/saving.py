"""Writing of a registration into its folder: images, transforms, report, page and preview, all of them or none."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...geometry.transform import AffineTransform, Transform
from ...host.files.folder_lock import folder_lock
from ...host.files.output_path import writing
from ...host.files.plain_json import as_json
from ...host.files.whole_files import write_text
from ...host.files.whole_folder import whole_result
from ...host.progress import Progress, silent
from ...images.formats.nifti_writer import write_compact_volume, write_volume
from ...images.volume import Source, scan_name
from ...pages.registration.page import Drawn, write_report_page
from ...transforms import Space, tolerance_mm, write_verified
from ...types import Array
from ..result import RegistrationData
from .folder import (
    AFFINE,
    JACOBIAN,
    LABELS,
    PAGE,
    PREVIEW,
    REPORT,
    WARPED,
    WARPED_FIXED,
    Outputs,
    check_output,
    earlier_names,
)
from .page import draw_page
from .report import WrittenTransform, report


def save(
    result: RegistrationData,
    folder: Path,
    overwrite: bool = False,
    progress: Progress = silent,
    outputs: Outputs | None = None,
    locked: bool = False,
) -> None:
    """Write a result; the report is the last file, so that it exists only beside complete results.

    All files are written beside an earlier result before any of its files is replaced.

    Args:
        result: from `runtime.register`.
        folder: folder of the result, created if it does not exist.
        overwrite: True if an earlier result may be replaced.
        progress: called with the name of each stage as it begins.
        outputs: files to write; None: both directions, transforms in the convention of ITK and ANTs.
        locked: True if the caller holds the folder's lock (`runtime.host.files.folder_lock`).

    Raises:
        InputError: see `runtime.registration.output.folder.check_output`; a disk that is full or read-only; a transform
            that differs when read back; another run that holds the folder.
    """
    outputs = outputs or Outputs()
    paths = result.fixed.path, result.moving.path
    with nullcontext() if locked else folder_lock(folder):
        check_output(folder, overwrite, *paths, [source.path for source in result.sources.values()])
        progress("write")
        start = time.perf_counter()
        names = outputs.names(scan_name(paths[0]), scan_name(paths[1]), labels=result.labels is not None)
        with writing(f"to {folder}"), whole_result(folder, earlier_names(folder, *paths), last=REPORT) as stage:
            written, drawn = _write_in_parallel(result, stage, outputs)
            seconds = {**result.seconds, "write": time.perf_counter() - start}
            text = as_json(report(result, seconds, names, written, outputs.needs_inverse, outputs.compact))
            if drawn is not None:
                write_report_page(stage / PAGE, drawn, json.loads(text))
            write_text(stage / REPORT, text)


def _write_in_parallel(
    result: RegistrationData, folder: Path, outputs: Outputs
) -> tuple[list[WrittenTransform], Drawn | None]:
    """Write the chosen files but report and page, in background threads, and draw what the page will show.

    What no chosen file needs is not computed, but for the figures of the report. Threads of `files` and `fields` check,
    hash and wait; those of `pool` compress and draw. Files on the fixed grid are written while the inverse is computed.
    """
    from ...host.kernels import on_threads
    from ...images.pictures.preview import write_preview

    threads, images = result.engine["threads"], result.working
    ncc = (result.similarity_before, result.iterations.similarity) if result.options.similarity == "ncc" else None
    with ExitStack() as stack:
        pool, files, fields = (stack.enter_context(_cancelling(ThreadPoolExecutor(count))) for count in (threads, 3, 1))
        stack.enter_context(on_threads(threads))
        writer = _Writer(result, folder, outputs, pool, files, fields)
        jobs: list[Future[Any]] = []
        judged = result.verdict  # which the report has as well
        if outputs.wants("preview"):
            line = str(judged) if judged.reasons else f"{judged}: no figure is implausible"
            pictures = images.fixed, images.moving, images.warped
            facts = result.iterations.flow, ncc, (judged.verdict, line)
            jobs.append(pool.submit(write_preview, folder / PREVIEW, *pictures, *facts))
        if outputs.wants("warp"):
            jobs += writer.transforms(inverse=False)
        if outputs.wants("warped"):
            jobs.append(writer.volume(WARPED, result.warped, result.fixed))
        if outputs.wants("affine"):
            jobs.append(writer.affine())
        jobs.append(pool.submit(lambda: result.displacement_mm))  # computed here, cached for the report
        if outputs.wants("labels") and result.warped_labels is not None:
            jobs.append(writer.volume(LABELS, result.warped_labels, result.fixed))
        determinants = result.jacobian  # computed here, cached for the report's figures
        if outputs.wants("jacobian"):
            jobs.append(writer.jacobian(determinants))
        page = pool.submit(draw_page, result, outputs.full_page) if outputs.wants("report") else None
        if outputs.wants("inverse"):
            jobs += writer.transforms(inverse=True)
        if outputs.wants("warped_fixed"):
            jobs.append(writer.volume(WARPED_FIXED, result.warped_fixed, result.moving))
        done = [job.result() for job in jobs]
        drawn = None if page is None else page.result()
    return [value for value in done if isinstance(value, WrittenTransform)], drawn


@contextmanager
def _cancelling(pool: ThreadPoolExecutor) -> Iterator[Executor]:
    """Yield a pool that starts no further job after an error or Ctrl-C."""
    try:
        yield pool
    except BaseException:
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()


@dataclass(frozen=True)
class _Writer:
    """Starter of the jobs that write a result's files; fields, which are large, are written one after another."""

    result: RegistrationData
    folder: Path
    outputs: Outputs
    pool: Executor
    files: Executor
    fields: Executor

    def volume(self, name: str, data: Array, where: Source) -> Future[None]:
        return self.files.submit(write_volume, self.folder / name, data, where.grid, where.codes, pool=self.pool)

    def jacobian(self, data: Array) -> Future[None]:
        """Write the determinants, rounded in a compact result."""
        if not self.outputs.compact:
            return self.volume(JACOBIAN, data, self.result.fixed)
        where = self.result.fixed
        return self.files.submit(
            write_compact_volume, self.folder / JACOBIAN, data, where.grid, where.codes, pool=self.pool
        )

    def affine(self) -> Future[WrittenTransform]:
        """Write the affine alone, as our own text."""
        transform = AffineTransform(self.result.transform.affine)
        sides = self.result.fixed, self.result.moving
        return self.files.submit(self._transform, AFFINE, "ras", False, transform, None, *sides)

    def transforms(self, inverse: bool) -> list[Future[WrittenTransform]]:
        """Write the transforms of one direction, each read back and compared."""
        fixed, moving = self.result.fixed, self.result.moving
        names = self.outputs.transforms(scan_name(fixed.path), scan_name(moving.path))
        chosen = [(name, convention) for name, (convention, inverted) in names.items() if inverted == inverse]
        forward = self.result.transform
        what: tuple[Transform, Array, Source, Source]
        if inverse:
            what = forward.inverse(), self.result.inversion.displacement, moving, fixed
        else:
            what = forward, self.result.displacement, fixed, moving
        compact = self.outputs.compact
        return [self.fields.submit(self._transform, *one, compact, *what) for one in chosen]

    def _transform(
        self,
        name: str,
        convention: str,
        compact: bool,
        transform: Transform,
        displacement: Array | None,
        start: Source,
        end: Source,
    ) -> WrittenTransform:
        sides = Space.of(start), Space.of(end)
        path, codes = self.folder / name, start.codes
        error = write_verified(path, transform, convention, *sides, codes, self.pool, displacement, compact)
        return WrittenTransform(name, convention, sides[0].name, sides[1].name, error, tolerance_mm(compact))
