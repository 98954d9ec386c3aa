"""From two scans to one aligned scan: reading, working grid, affine start, the loop, and the way back."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from runtime import iterstop
from runtime.cuda.card import on_card
from runtime.engines import Engines
from runtime.geometry.errors import InputError
from runtime.geometry.grid import Grid
from runtime.geometry.intensity import Rule
from runtime.geometry.transform import SpatialTransform
from runtime.geometry.volume import Volume, read_labels, read_volume
from runtime.heap import ARRAYS, return_freed_memory
from runtime.jobs import Job, Jobs
from runtime.options import Options
from runtime.prepare import Normalised, Prepared, PreparedFixed, normalised, read_start
from runtime.result import Registration, WorkingImages
from runtime.stages import Progress, Stages, silent
from runtime.start import start_kernels

__all__ = ["FixedScan", "Options", "Registration", "WorkingImages", "register", "register_arrays"]

Array = np.ndarray
Scan = Path | str | Volume


@dataclass(frozen=True)
class ReadScan:
    """A scan as read and as the network will see its intensities."""

    volume: Volume
    normalised: Normalised


class Reading:
    """Reads scans beside the caller, and normalises them, which needs no engine either."""

    def __init__(self, jobs: Jobs, rule: Rule) -> None:
        self._jobs, self._rule = jobs, rule

    def scan(self, source: Scan, argument: str) -> Job[ReadScan]:
        return self._jobs.start(_read_scan, source, argument, self._rule)

    def moving(self, moving: Scan, labels: Scan | None) -> "ReadMoving":
        scan = self.scan(moving, "--moving")
        return ReadMoving(scan, None if labels is None else self._jobs.start(_read_labels, labels))


@dataclass(frozen=True)
class ReadMoving:
    """A moving scan and its labels, being read."""

    scan: Job[ReadScan]
    labels: Job[Volume] | None

    def take(self) -> tuple[ReadScan, Volume | None]:
        """Waits for both; InputError for what could not be read, or labels that lie elsewhere."""
        scan = self.scan.take()
        labels = None if self.labels is None else self.labels.take()
        if labels is not None:
            _check_place(labels, scan.volume)
        return scan, labels


class FixedScan:
    """A fixed scan made ready once: read, normalised, its working grid planned, its features taken.

    Any number of moving scans can be registered to it, one at a time; each result is what `register` gives, bit for
    bit::

        onto = FixedScan("fixed.nii.gz", engines)
        for scan in scans:
            onto.register(scan).save(folder_of(scan))

    Attributes:
        options: those given, with the engine set's defaults.
        schedule: what they ask for.

    Args:
        fixed: NIfTI or MGH file, or a volume already read; any orientation, spacing and grid.
        engines: from `runtime.open_engines`; they must stay open as long as this is used.
        options: see `Options`.
        progress: told the name of each stage as it begins.

    Raises:
        InputError: options or a fixed scan that make a registration impossible, in one line.
    """

    def __init__(
        self,
        fixed: Scan | Job[ReadScan],
        engines: Engines,
        options: Options | None = None,
        progress: Progress = silent,
    ) -> None:
        self.options = (options or Options()).resolved(engines.engine_set)
        self.schedule = self.options.build_schedule()
        self._engines, self._rule = engines, self.options.rule(engines.engine_set)
        self._start = read_start(self.options.affine)
        self._side, self._stage = None, Stages(progress)
        with engines.running():
            start_kernels(self._stage)
        with self._stage("read"):
            scan = fixed.take() if isinstance(fixed, Job) else _read_scan(fixed, "--fixed", self._rule)
        self._source, self._below_zero = scan.volume.source, scan.normalised.below_zero
        with engines.running():
            with self._stage("normalise"):
                self._fixed = PreparedFixed(scan.normalised, engines.engine_set, self._rule)
            with self._stage("affine", tell=False):
                _ = self._start is None and self._fixed.pyramid
            with self._stage("resample", tell=False):
                self._fixed.condense()

    def register(self, moving: Scan, labels: Scan | None = None, progress: Progress = silent) -> Registration:
        """Registers a moving scan to this fixed one, in physical space.

        Args:
            moving: as `fixed`.
            labels: label map in the moving scan's space, carried along by nearest neighbour.
            progress: told the name of each stage as it begins.

        Raises:
            InputError: anything about the input that makes a registration impossible, in one line.
        """
        with Jobs(self._engines.threads) as jobs:
            return self.register_read(Reading(jobs, self._rule).moving(moving, labels), progress)

    def register_read(self, moving: ReadMoving, progress: Progress = silent, last: bool = False) -> Registration:
        """`register` for a scan that is being read; after the `last` one the features are let go."""
        stage, self._stage = self._stage, Stages(progress)  # the first one's times have the fixed scan's in them
        stage.progress = progress
        with stage("read"):
            scan, labels = moving.take()
        with self._engines.running():
            ready = self._fixed.meet(scan.normalised, self._start, stage, again=self._side is not None)
            volume, below_zero = scan.volume, (self._below_zero, scan.normalised.below_zero)
            del scan  # and with it the normalised image
            loop = self._loop(ready, stage, last)
            if last:
                self._engines.networks.rest()
                ARRAYS.clear()
            return_freed_memory()
            with stage("apply"):
                transform = SpatialTransform(ready.affine, loop.found.flow, ready.grid)
                grid = self._source.grid
                displacement = transform.displacement(grid)
                warped = _resampled(volume, displacement, grid, self._rule.background(volume.data))
                warped_labels = None if labels is None else _resampled(labels, displacement, grid, 0, "nearest")
        return Registration(
            fixed=self._source,
            moving=volume.source,
            labels=labels,
            below_zero=below_zero,
            warped=warped,
            warped_labels=warped_labels,
            transform=transform,
            displacement=displacement,
            iterations=loop.found,
            working=WorkingImages(ready.fixed, ready.moving, loop.warped),
            similarity_before=loop.before,
            folded_share=loop.folded_share,
            affine_start=ready.affine_start,
            options=self.options,
            schedule=self.schedule,
            engine=self._engines.as_dict(),
            seconds=stage.seconds,
        )

    def _loop(self, ready: Prepared, stage: Stages, last: bool) -> "_Loop":
        engines = self._engines
        _check_shapes(ready.fixed.shape, ready.moving.shape, engines.engine_set.size_multiple)
        return_freed_memory()  # the loop needs most
        with stage("encode", tell=False):
            side = self._side or engines.fixed_side(to_device(engines, ready.fixed, "fixed"), self.options.similarity)
            moving = to_device(engines, ready.moving, "moving")
        self._side = None if last else side
        return _run(engines, side, moving, self.schedule, stage)


def register(
    fixed: Scan,
    moving: Scan,
    engines: Engines,
    options: Options | None = None,
    moving_labels: Scan | None = None,
    progress: Progress = silent,
) -> Registration:
    """Registers a moving scan to a fixed one, in physical space, on open engines.

    Args:
        fixed, moving: NIfTI or MGH files, or volumes already read; any orientation, spacing and grid.
        engines: from `runtime.open_engines`.
        options: see `Options`.
        moving_labels: label map in the moving scan's space, carried along by nearest neighbour.
        progress: told the name of each stage as it begins.

    Raises:
        InputError: anything about the input that makes a registration impossible, in one line.
    """
    options = (options or Options()).resolved(engines.engine_set)
    options.build_schedule(), read_start(options.affine)  # errors in options come before any reading
    with Jobs(engines.threads) as jobs:
        reading = Reading(jobs, options.rule(engines.engine_set))
        scan, others = reading.scan(fixed, "--fixed"), reading.moving(moving, moving_labels)
        return FixedScan(scan, engines, options, progress).register_read(others, progress, last=True)


def register_arrays(
    engines: Engines,
    fixed: Array,
    moving: Array,
    schedule: iterstop.Schedule | None = None,
    similarity: str = "ncc",
) -> iterstop.Iterations:
    """The loop alone, on two images (I, J, K), float32 in [0, 1], on one grid whose sizes are multiples of 8.

    On a card, images may lie there already, in arrays of torch, cupy, numba or pycuda (``__cuda_array_interface__`` or
    DLPack); they are read where they are.

    Args:
        engines: from `runtime.open_engines`.
        fixed, moving: the images.
        schedule: None: the engine set's own, IterStop.
        similarity: what it watches.

    Returns:
        Iterations whose flow is (3, I, J, K) in voxels: a host array, or where both images came from the card's memory
        an array there that those libraries read without a copy.

    Raises:
        InputError: shapes, intensities or a result that is not finite.
    """
    _check_shapes(tuple(fixed.shape), tuple(moving.shape), engines.engine_set.size_multiple)
    schedule = schedule or Options(similarity=similarity).resolved(engines.engine_set).build_schedule()
    with engines.running():
        there = on_card(fixed) and on_card(moving)
        fixed, moving = to_device(engines, fixed, "fixed"), to_device(engines, moving, "moving")
        side = engines.fixed_side(fixed, similarity)
        if not there:
            return _run(engines, side, moving, schedule, Stages()).found
        found = iterstop.run(side.pair(moving), schedule)
        _check_flow(engines, found.flow)
        return replace(found, flow=found.flow.moveaxis(-1, 0))


def _check_shapes(fixed: tuple[int, ...], moving: tuple[int, ...], multiple: int) -> None:
    if fixed != moving or len(fixed) != 3 or any(size % multiple or size == 0 for size in fixed):
        raise InputError(f"images: got shapes {fixed} and {moving}, expected one (I, J, K), multiples of {multiple}")


def to_device(engines: Engines, image: Array, name: str) -> Array:
    """An image where the engines' field operations work.

    Raises:
        InputError: it is not finite, constant, or outside [0, 1]; "fixed" or "moving", `name`, is in the line.
    """
    if on_card(image) and engines.networks.device == "cpu":
        raise InputError(
            f"{name} image: lies in a card's memory, but the engines run on the CPU ({engines.backend}); "
            "copy it to the host, or open a backend of the card"
        )
    image = engines.fields.to_device(image)
    low, high = engines.fields.extremes(image)
    if not (np.isfinite(low) and np.isfinite(high)):
        raise InputError(f"{name} image: has NaN or Inf, expected intensities in [0, 1]; repair it first")
    if low == high:
        raise InputError(
            f"{name} image: is constant ({low:g}) where it meets the fixed image's foreground; "
            "check that the two scans overlap (--affine auto aligns their centres)"
        )
    if low < 0 or high > 1:
        raise InputError(f"{name} image: got intensities {low:g} to {high:g}, expected [0, 1]; normalise it first")
    return image


@dataclass(frozen=True)
class _Loop:
    """The loop with its beginning and end: iterations (flow on the host), similarity before, warped image, folds."""

    found: iterstop.Iterations
    before: float
    warped: Array
    folded_share: float


def _run(engines: Engines, side, moving: Array, schedule: iterstop.Schedule, stage: Stages) -> _Loop:
    fields, finest = engines.fields, iterstop.LEVELS[-1]
    with stage("encode"):
        pair = side.pair(moving)
        before = pair.score(finest, pair.zero(finest))

    def progress(number: int, level: int, iteration: int) -> None:
        stage.progress(_iteration_name(schedule, number, level, iteration))

    with stage("iterate"):
        found = iterstop.run(pair, schedule, progress, before)
    with stage("finish"):
        warped = fields.to_host(fields.warp(moving, found.flow))
        _check_flow(engines, found.flow)
        flow, folded_share = fields.to_host(found.flow), fields.folded_share(found.flow)
    return _Loop(replace(found, flow=flow), float(before), warped, folded_share)


def _check_flow(engines: Engines, flow: Array) -> None:
    if not np.isfinite(engines.fields.extremes(flow)).all():
        raise InputError("flow: the engines gave NaN or Inf for these images; check both scans; nothing was written")


def _iteration_name(schedule: iterstop.Schedule, number: int, level: int, iteration: int) -> str:
    name = f"level {level}, iteration {iteration}"
    return f"pass {number}, {name}" if schedule.passes > 1 else name


def _read_scan(source: Scan, argument: str, rule: Rule) -> ReadScan:
    volume = source if isinstance(source, Volume) else read_volume(Path(source), argument)
    return ReadScan(volume, normalised(volume, rule, argument))


def _read_labels(source: Scan) -> Volume:
    return source if isinstance(source, Volume) else read_labels(Path(source), "--moving-labels")


def _check_place(labels: Volume, moving: Volume) -> None:
    boxes = [(grid.corners.min(axis=0), grid.corners.max(axis=0)) for grid in (labels.grid, moving.grid)]
    if np.any(np.maximum(boxes[0][0], boxes[1][0]) > np.minimum(boxes[0][1], boxes[1][1])):
        raise InputError(
            f"--moving-labels: {labels.path or 'the label map'} lies apart from the moving scan in physical space; "
            "give the label map of that scan, with its header"
        )


def _resampled(volume: Volume, displacement: Array, grid: Grid, background: float, order: str = "linear") -> Array:
    from runtime.resample import resample_through

    return resample_through(volume.data, volume.grid, displacement, grid, order, background)
