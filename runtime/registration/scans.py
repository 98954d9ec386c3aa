"""Registration of two scans: reading, affine initialisation, encoding, the loop, and its result."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ..backends.engines import OpenEngines
from ..backends.pair import EnginePair, FixedSide
from ..errors import InputError
from ..geometry.transform import SpatialTransform
from ..host.background import Job, Jobs
from ..host.memory import ARRAYS, return_freed_memory
from ..host.progress import Progress, Stages, silent
from ..images.intensity import Rule
from ..images.volume import Source, Volume
from ..loop.iterstop import Pair
from .arrays import check_shapes, holes_of, run_loop, to_device
from .options import SCAN_OPTIONS, Options
from .output.folder import Outputs
from .preprocessing import Prepared, PreparedFixed
from .reading import Reading, ReadMoving, ReadScan, Scan, check_scans_fit, read_scan
from .result import RegistrationData, WorkingImages, warp_volume
from .warmup import start_kernels


class Registration(RegistrationData):
    """The result of a registration, with methods to save and summarise it."""

    def save(
        self,
        folder: Path | str,
        overwrite: bool = False,
        progress: Progress = silent,
        outputs: Outputs | None = None,
        locked: bool = False,
    ) -> None:
        """Write images, transforms, report and preview into a folder; see `runtime.registration.output.saving`."""
        from .output.saving import save

        save(self, Path(folder), overwrite, progress, outputs, locked)

    def summary(self, inverse: bool = False) -> str:
        """Return a few lines for people; with `inverse`, one about the inverse, which is then computed."""
        from .output.report import summary

        return summary(self, inverse)


@dataclass(eq=False)
class ReadyPair:
    """Two scans that are read, affinely aligned on one grid and encoded: any schedule can be run, one at a time.

    Made by `FixedScan.align`; each result is that of a separate registration with the same options, bit for bit.

    Attributes:
        engines: engines, which must stay open as long as this is used.
        options: options it was made with, the default of `register`.
        rule: rule that maps intensities to [0, 1].
        fixed, moving, labels: as read.
        masks: sources of the masks of fixed and moving, or None.
        below_zero: shares of the voxels of fixed and moving whose intensity was below 0.
        ready: both images on the working grid, and the affine.
        pair: the encoded images; None after `register(last=True)`.
        seconds: seconds by stage, up to here.
    """

    engines: OpenEngines
    options: Options
    rule: Rule
    fixed: Volume
    moving: Volume
    labels: Volume | None
    masks: tuple[Source | None, Source | None]
    below_zero: tuple[float, float]
    ready: Prepared
    pair: EnginePair | None
    seconds: dict[str, float]

    def register(
        self,
        options: Options | None = None,
        progress: Progress = silent,
        through: Callable[[Pair], Pair] = lambda pair: pair,
        last: bool = False,
    ) -> Registration:
        """Run a schedule on the pair.

        Args:
            options: schedule, similarity, stop rule and smoothing; affine and window are the pair's. None: the options
                it was made with.
            progress: called with the name of each stage as it begins.
            through: wraps the pair that the loop runs on; the wrapper must return the same flows.
            last: True if no other schedule will follow: the encoded features are released.

        Raises:
            InputError: invalid options, a flow or similarity that is not finite, or a call after the last one.
        """
        if self.pair is None:
            raise InputError("pair: its features were released by register(last=True); call align() again")
        options = self._with_scan_options(options)
        assert options.similarity is not None  # they are resolved
        schedule, stage = options.build_schedule(), Stages(progress)
        engines, ready = self.engines, self.ready
        with engines.running():
            pair = self.pair.with_similarity(options.similarity).with_smoothing(options.smooth)
            loop = run_loop(engines, through(pair), pair.moving, schedule, stage)
            del pair
            if last:
                self.pair = None
                engines.networks.rest()
                ARRAYS.clear()
            return_freed_memory()
            with stage("apply"):
                transform = SpatialTransform(ready.affine, loop.found.flow, ready.grid)
                grid, labels = self.fixed.grid, self.labels
                displacement = transform.displacement(grid)
                background = self.rule.background(self.moving.data)
                warped = warp_volume(self.moving, displacement, grid, background)
                warped_labels = None if labels is None else warp_volume(labels, displacement, grid, 0, "nearest")
        return Registration(
            fixed_volume=self.fixed,
            fixed_background=self.rule.background(self.fixed.data),
            moving=self.moving.source,
            labels=labels,
            masks=self.masks,
            below_zero=self.below_zero,
            warped=warped,
            warped_labels=warped_labels,
            transform=transform,
            displacement=displacement,
            iterations=loop.found,
            working=WorkingImages(ready.fixed, ready.moving, loop.warped, ready.holes),
            similarity_before=loop.before,
            folded_share=loop.folded_share,
            affine_initialisation=ready.affine_initialisation,
            limits=engines.engine_set.verdict_limits,
            options=options,
            schedule=schedule,
            engine=engines.as_dict(),
            seconds=_sum_of_seconds(self.seconds, stage.seconds),
        )

    def _with_scan_options(self, options: Options | None) -> Options:
        if options is None:
            return self.options
        own = replace(options, **{name: getattr(self.options, name) for name in SCAN_OPTIONS})
        return own.resolved(self.engines.engine_set)


class FixedScan:
    """A fixed scan that is prepared once: read, normalised, with its working grid planned and its features computed.

    Any number of moving scans can be registered to it, one at a time; each result is that of `register`, bit for
    bit::

        onto = FixedScan("fixed.nii.gz", engines)
        for scan in scans:
            onto.register(scan).save(folder_of(scan))

    Attributes:
        options: the given options, completed by the engine set's defaults.
        schedule: their schedule.

    Args:
        fixed: NIfTI or MGH file, or a volume already read; any orientation, spacing and grid.
        engines: from `runtime.open_engines`; they must stay open as long as this is used.
        options: see `Options`.
        progress: called with the name of each stage as it begins.
        mask: mask of the fixed scan; voxels that are 0 in it do not count (`runtime.images.masks`).

    Raises:
        InputError: options or a fixed scan that make a registration impossible, in one line.
    """

    def __init__(
        self,
        fixed: Scan | Job[ReadScan],
        engines: OpenEngines,
        options: Options | None = None,
        progress: Progress = silent,
        mask: Scan | None = None,
    ) -> None:
        self.options = (options or Options()).resolved(engines.engine_set)
        assert self.options.similarity is not None  # they are resolved
        self._similarity = self.options.similarity
        self.schedule = self.options.build_schedule()
        self._engines, self._rule = engines, self.options.rule(engines.engine_set)
        self._start = self.options.start
        self._side: FixedSide | None = None
        self._stage = Stages(progress)
        with engines.running():
            start_kernels(self._stage)
        with self._stage("read"):
            how = (self._rule, mask, self.options.nan)
            scan = fixed.take() if isinstance(fixed, Job) else read_scan(fixed, "--fixed", *how)
        self._volume, self._mask, self._below_zero = scan.volume, scan.mask, scan.normalised.below_zero
        with engines.running():
            with self._stage("normalise"):
                self._fixed = PreparedFixed(scan.normalised, engines.engine_set, self._rule)
            with self._stage("affine", announce=False):
                if self._start.found:
                    _ = self._fixed.pyramid  # a cached property, computed here
            with self._stage("resample", announce=False):
                self._fixed.condense()

    def register(
        self, moving: Scan, labels: Scan | None = None, progress: Progress = silent, mask: Scan | None = None
    ) -> Registration:
        """Register a moving scan to this fixed one, in physical space.

        Args:
            moving: as `fixed`.
            labels: label map in the moving scan's space, warped by nearest neighbour.
            progress: called with the name of each stage as it begins.
            mask: mask of the moving scan; voxels that are 0 in it do not count (`runtime.images.masks`).

        Raises:
            InputError: input that makes a registration impossible, in one line.
        """
        return self.align(moving, labels, progress, mask).register(progress=progress)

    def align(
        self, moving: Scan, labels: Scan | None = None, progress: Progress = silent, mask: Scan | None = None
    ) -> ReadyPair:
        """Do everything before the loop: align both scans by the affine, on one grid, and encode. As `register`."""
        with Jobs(self._engines.threads) as jobs:
            return self._align(Reading(jobs, self._rule, self.options.nan).moving(moving, labels, mask), progress)

    meet = align  # its earlier name

    def register_read(self, moving: ReadMoving, progress: Progress = silent, last: bool = False) -> Registration:
        """Register a scan that is being read, as `register`; after the `last` one the features are released."""
        return self._align(moving, progress, last).register(progress=progress, last=last)

    def try_register(
        self, moving: ReadMoving, progress: Progress = silent, last: bool = False
    ) -> Registration | InputError:
        """Return what `register_read` returns, or the InputError it raises."""
        try:
            return self.register_read(moving, progress, last)
        except InputError as error:
            return error

    def _align(self, moving: ReadMoving, progress: Progress, last: bool = False) -> ReadyPair:
        stage, self._stage = self._stage, Stages(progress)  # the first moving scan's times include the fixed scan's
        stage.progress = progress
        with stage("read"):
            scan, labels = moving.take()
        engines = self._engines
        with engines.running():
            ready = self._fixed.align(scan.normalised, self._start, stage, again=self._side is not None)
            check_shapes(ready.fixed.shape, ready.moving.shape, engines.engine_set.size_multiple)
            volume, below_zero = scan.volume, (self._below_zero, scan.normalised.below_zero)
            masks = (self._mask, scan.mask)
            del scan  # and with it the normalised image
            return_freed_memory()  # before the loop, which needs the most memory
            with stage("encode", announce=False):
                fixed = ready.fixed
                side = self._side if ready.holes[0] is None else None
                side = side or engines.fixed_side(to_device(engines, fixed, "fixed"), self._similarity)
                image = to_device(engines, ready.moving, "moving")
                holes = holes_of(engines, *ready.holes)
            # The fixed image's holes are filled from the moving image, so its features hold for this pair only.
            self._side = None if last or ready.holes[0] is not None else side
            with stage("encode"):
                pair = side.pair(image, holes)
        return ReadyPair(
            engines=engines,
            options=self.options,
            rule=self._rule,
            fixed=self._volume,
            moving=volume,
            labels=labels,
            masks=masks,
            below_zero=below_zero,
            ready=ready,
            pair=pair,
            seconds=stage.seconds,
        )


def register(
    fixed: Scan,
    moving: Scan,
    engines: OpenEngines,
    options: Options | None = None,
    moving_labels: Scan | None = None,
    progress: Progress = silent,
    fixed_mask: Scan | None = None,
    moving_mask: Scan | None = None,
) -> Registration:
    """Register a moving scan to a fixed one, in physical space, on open engines.

    Args:
        fixed, moving: NIfTI or MGH files, or volumes already read; any orientation, spacing and grid.
        engines: from `runtime.open_engines`.
        options: see `Options`.
        moving_labels: label map in the moving scan's space, warped by nearest neighbour.
        progress: called with the name of each stage as it begins.
        fixed_mask, moving_mask: masks; voxels that are 0 in them do not count (`runtime.images.masks`).

    Raises:
        InputError: input that makes a registration impossible, in one line.
    """
    options = (options or Options()).resolved(engines.engine_set)
    options.build_schedule(), options.start  # raise errors in options before any reading
    with Jobs(engines.threads) as jobs:
        reading = Reading(jobs, options.rule(engines.engine_set), options.nan)
        check_scans_fit(fixed, moving)
        scan = reading.scan(fixed, "--fixed", fixed_mask)
        others = reading.moving(moving, moving_labels, moving_mask)
        return FixedScan(scan, engines, options, progress).register_read(others, progress, last=True)


def _sum_of_seconds(one: dict[str, float], other: dict[str, float]) -> dict[str, float]:
    """Return the sum of two tables of seconds by stage."""
    return {name: one.get(name, 0.0) + other.get(name, 0.0) for name in {**one, **other}}
