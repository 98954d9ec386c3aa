"""From two scans to one aligned scan: reading, working grid, affine start, and the pair that the loop is run on."""

from runtime.array_registration import check_shapes, holes_of, to_device
from runtime.engines import Engines
from runtime.heap import return_freed_memory
from runtime.jobs import Job, Jobs
from runtime.options import Options
from runtime.prepare import PreparedFixed
from runtime.reading import Reading, ReadMoving, ReadScan, Scan, check_scans_fit, read_scan
from runtime.ready_pair import ReadyPair
from runtime.result import Registration
from runtime.stages import Progress, Stages, silent
from runtime.start import start_kernels


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
        mask: of the fixed scan: what is 0 in it does not count (`runtime.masks`).

    Raises:
        InputError: options or a fixed scan that make a registration impossible, in one line.
    """

    def __init__(
        self,
        fixed: Scan | Job[ReadScan],
        engines: Engines,
        options: Options | None = None,
        progress: Progress = silent,
        mask: Scan | None = None,
    ) -> None:
        self.options = (options or Options()).resolved(engines.engine_set)
        self.schedule = self.options.build_schedule()
        self._engines, self._rule = engines, self.options.rule(engines.engine_set)
        self._start = self.options.start
        self._side, self._stage = None, Stages(progress)
        with engines.running():
            start_kernels(self._stage)
        with self._stage("read"):
            how = (self._rule, mask, self.options.nan)
            scan = fixed.take() if isinstance(fixed, Job) else read_scan(fixed, "--fixed", *how)
        self._volume, self._mask, self._below_zero = scan.volume, scan.mask, scan.normalised.below_zero
        with engines.running():
            with self._stage("normalise"):
                self._fixed = PreparedFixed(scan.normalised, engines.engine_set, self._rule)
            with self._stage("affine", tell=False):
                if self._start.found:
                    _ = self._fixed.pyramid  # made when it is first asked for
            with self._stage("resample", tell=False):
                self._fixed.condense()

    def register(
        self, moving: Scan, labels: Scan | None = None, progress: Progress = silent, mask: Scan | None = None
    ) -> Registration:
        """Registers a moving scan to this fixed one, in physical space.

        Args:
            moving: as `fixed`.
            labels: label map in the moving scan's space, carried along by nearest neighbour.
            progress: told the name of each stage as it begins.
            mask: of the moving scan: what is 0 in it does not count (`runtime.masks`).

        Raises:
            InputError: anything about the input that makes a registration impossible, in one line.
        """
        return self.meet(moving, labels, progress, mask).register(progress=progress)

    def meet(
        self, moving: Scan, labels: Scan | None = None, progress: Progress = silent, mask: Scan | None = None
    ) -> ReadyPair:
        """Everything before the loop: both scans aligned by the affine, on one grid and encoded. As `register`."""
        with Jobs(self._engines.threads) as jobs:
            return self._meet(Reading(jobs, self._rule, self.options.nan).moving(moving, labels, mask), progress)

    def register_read(self, moving: ReadMoving, progress: Progress = silent, last: bool = False) -> Registration:
        """`register` for a scan that is being read; after the `last` one the features are let go."""
        return self._meet(moving, progress, last).register(progress=progress, last=last)

    def _meet(self, moving: ReadMoving, progress: Progress, last: bool = False) -> ReadyPair:
        stage, self._stage = self._stage, Stages(progress)  # the first one's times have the fixed scan's in them
        stage.progress = progress
        with stage("read"):
            scan, labels = moving.take()
        engines = self._engines
        with engines.running():
            ready = self._fixed.meet(scan.normalised, self._start, stage, again=self._side is not None)
            check_shapes(ready.fixed.shape, ready.moving.shape, engines.engine_set.size_multiple)
            volume, below_zero = scan.volume, (self._below_zero, scan.normalised.below_zero)
            masks = (self._mask, scan.mask)
            del scan  # and with it the normalised image
            return_freed_memory()  # the loop needs most
            with stage("encode", tell=False):
                fixed = ready.fixed
                side = self._side or engines.fixed_side(to_device(engines, fixed, "fixed"), self.options.similarity)
                image = to_device(engines, ready.moving, "moving")
                holes = holes_of(engines, *ready.holes)
            # What fills the fixed image's holes is the moving one's, so that another one needs another side.
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
    engines: Engines,
    options: Options | None = None,
    moving_labels: Scan | None = None,
    progress: Progress = silent,
    fixed_mask: Scan | None = None,
    moving_mask: Scan | None = None,
) -> Registration:
    """Registers a moving scan to a fixed one, in physical space, on open engines.

    Args:
        fixed, moving: NIfTI or MGH files, or volumes already read; any orientation, spacing and grid.
        engines: from `runtime.open_engines`.
        options: see `Options`.
        moving_labels: label map in the moving scan's space, carried along by nearest neighbour.
        progress: told the name of each stage as it begins.
        fixed_mask, moving_mask: what is 0 in them does not count (`runtime.masks`).

    Raises:
        InputError: anything about the input that makes a registration impossible, in one line.
    """
    options = (options or Options()).resolved(engines.engine_set)
    options.build_schedule(), options.start  # errors in options come before any reading
    with Jobs(engines.threads) as jobs:
        reading = Reading(jobs, options.rule(engines.engine_set), options.nan)
        check_scans_fit(fixed, moving)
        scan = reading.scan(fixed, "--fixed", fixed_mask)
        others = reading.moving(moving, moving_labels, moving_mask)
        return FixedScan(scan, engines, options, progress).register_read(others, progress, last=True)
