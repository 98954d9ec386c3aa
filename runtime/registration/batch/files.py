"""Registration from files to folders: one fixed and one or several moving scans, read and written in parallel."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ...backends.engine_set import EngineSet, load_engine_set
from ...backends.engines import OpenEngines, check_choice, open_set
from ...errors import InputError
from ...host.background import Job, Jobs
from ...host.files.folder_lock import folder_lock
from ...host.machine import cores
from ...host.progress import Progress, Stages, silent
from ...images.scan_list import distinct_names
from ...images.volume import read_source
from ...transforms import Space, check_zooms
from ..options import Options
from ..output.folder import Outputs, check_output
from ..reading import Reading, ReadMoving, check_scans_fit
from ..scans import FixedScan, Registration
from ..warmup import start_kernels
from .past_runs import remember


@dataclass(frozen=True)
class Task:
    """A moving scan: its file, its label map and mask if given, and the folder for the result."""

    moving: Path
    labels: Path | None
    folder: Path
    mask: Path | None = None

    @property
    def files(self) -> tuple[Path, Path | None, Path | None]:
        """The files to read; None where not given."""
        return self.moving, self.labels, self.mask


@dataclass(frozen=True)
class Outcome:
    """The outcome of a task: summary and verdict of the registration, whose files are written, or the error."""

    task: Task
    summary: str | None = None
    verdict: str | None = None
    error: InputError | None = None


@dataclass(frozen=True)
class EngineChoice:
    """The arguments of `runtime.open_engines`."""

    engine_dir: Path
    backend: str = "auto"
    threads: int | None = None
    precision: str = "auto"

    def check(self, engine_set: EngineSet) -> None:
        """Refuse invalid arguments before any work; see `runtime.backends.engines.check_choice`."""
        check_choice(engine_set, self.backend, self.threads, self.precision)

    def open(self, engine_set: EngineSet, progress: Progress = silent) -> OpenEngines:
        return open_set(engine_set, self.backend, self.threads, self.precision, progress)


def plan_tasks(
    output: Path, moving: Sequence[Path], labels: Sequence[Path] = (), masks: Sequence[Path] = ()
) -> tuple[Task, ...]:
    """Assign result folders: `output` itself for a single moving scan, folders of their names in it for several.

    Args:
        output: folder.
        moving: files; equal names are distinguished by the folders of the files.
        labels: label maps of the moving scans, in their order, or none.
        masks: masks, likewise.

    Raises:
        InputError: another number of label maps or masks than of moving scans, or the same scan twice.
    """
    for option, what, given in (("--moving-labels", "label maps", labels), ("--moving-mask", "masks", masks)):
        if given and len(given) != len(moving):
            raise InputError(
                f"{option}: got {len(given)} {what} for {len(moving)} moving scans, expected one for each, "
                "in their order, or none"
            )
    names = distinct_names(moving, "--moving")
    folders = [output] if len(moving) == 1 else [output / name for name in names]
    nothing = [None] * len(moving)
    return tuple(Task(*parts) for parts in zip(moving, labels or nothing, folders, masks or nothing, strict=True))


def register_files(
    fixed: Path,
    tasks: Sequence[Task],
    engines: EngineChoice,
    options: Options | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
    outputs: Outputs | None = None,
    mask: Path | None = None,
) -> Iterator[Outcome]:
    """Register moving scans to one fixed scan and write every result; an error in one does not affect the others.

    Files are read while the engines open, and further scans while the previous one is registered; a result is written
    while the next one is computed. At most one result waits in memory. Meant for a process of its own, such as the
    command line's (see `alone` in `start_kernels`).

    Args:
        fixed: file.
        tasks: from `plan_tasks`.
        engines, options: the engines to open, and the options of every registration.
        overwrite: True if earlier results may be replaced.
        progress: called with the name of each stage as it begins.
        outputs: files to write; see `runtime.registration.output.saving.save`.
        mask: mask of the fixed scan.

    Yields:
        An outcome for each task, in order, after its files are written.

    Raises:
        InputError: options, folders, engines or a fixed scan that make every registration impossible.
    """
    options = options or Options()
    link = options.start.link
    affine = [] if link is None else [link.path]
    inputs = [*affine, mask, *(path for task in tasks for path in task.files)]
    with ExitStack() as stack:
        for folder in dict.fromkeys(task.folder if len(tasks) == 1 else task.folder.parent for task in tasks):
            stack.enter_context(folder_lock(folder))
        for task in tasks:
            check_output(task.folder, overwrite, fixed, task.moving, inputs)
        yield from _register_files(fixed, tasks, engines, options, overwrite, progress, outputs, mask)


def _register_files(
    fixed: Path,
    tasks: Sequence[Task],
    engines: EngineChoice,
    options: Options,
    overwrite: bool,
    progress: Progress,
    outputs: Outputs | None,
    mask: Path | None,
) -> Iterator[Outcome]:
    """Do the work of `register_files`, once the output folders are checked and locked."""
    engine_set = load_engine_set(engines.engine_dir)
    engines.check(engine_set)
    options = options.resolved(engine_set)
    options.build_schedule(), options.start
    if outputs and "fsl" in outputs.conventions and outputs.wants("warp", "inverse"):
        for path, argument in ((fixed, "--fixed"), *((task.moving, "--moving") for task in tasks)):
            check_zooms(Space.of(read_source(path, argument)))
    with Jobs(engines.threads or cores()) as jobs:
        reading = Reading(jobs, options.rule(engine_set), options.nan)
        check_scans_fit(fixed, *(task.moving for task in tasks if len(tasks) == 1))
        scan, first = reading.scan(fixed, "--fixed", mask), reading.moving(*tasks[0].files)
        start_kernels(Stages(progress), alone=True)
        progress("open engines")
        with engines.open(engine_set, progress) as opened:
            onto = FixedScan(scan, opened, options, progress)
            write = functools.partial(_save, overwrite=overwrite, outputs=outputs, locked=len(tasks) == 1)
            yield from _register_each(onto, _read_ahead(reading, first, tasks), jobs, write, progress)


def _read_ahead(reading: Reading, first: ReadMoving, tasks: Sequence[Task]) -> Iterator[tuple[Task, ReadMoving, bool]]:
    """Yield each task, its scan, and True for the last one; reading of the next scan starts before each is yielded."""
    scan = first
    for task, following in zip(tasks, (*tasks[1:], None), strict=True):
        here = scan
        if following is not None:
            scan = reading.moving(*following.files)
        yield task, here, following is None


def _register_each(
    onto: FixedScan,
    scans: Iterable[tuple[Task, ReadMoving, bool]],
    jobs: Jobs,
    write: Callable[[Task, Registration | InputError], Outcome],
    progress: Progress,
) -> Iterator[Outcome]:
    """Register the scans one after another, while the previous result is written."""
    writing: Job[Outcome] | None = None
    for number, (task, scan, last) in enumerate(scans, start=1):
        if number > 1 or not last:
            progress(f"scan {number}: {task.moving.name}")
        result = onto.try_register(scan, progress, last)
        if writing:
            yield writing.take()
        if last or not jobs.beside:
            progress("write")
        writing = jobs.start(write, task, result)
        del result, scan  # only the writing job holds them now, so that their memory is freed after it
        if last or not jobs.beside:
            yield writing.take()
            writing = None


def _save(
    task: Task, result: Registration | InputError, overwrite: bool, outputs: Outputs | None, locked: bool
) -> Outcome:
    if isinstance(result, InputError):
        return Outcome(task, error=result)
    if locked:  # a single registration: its time is not mixed with that of others
        seconds = sum(result.seconds.values())
        remember(result.engine, result.options.schedule, result.working.fixed.size, seconds)
    try:
        result.save(task.folder, overwrite, outputs=outputs, locked=locked)
    except InputError as error:
        return Outcome(task, error=error)
    return Outcome(task, result.summary(inverse=outputs is None or outputs.needs_inverse), result.verdict.verdict)
