"""Two scans that are ready for the loop, and what becomes of its flow: from the working grid back to the scans."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from runtime.array_registration import run_loop
from runtime.backends.pair import EnginePair
from runtime.engines import Engines
from runtime.geometry.errors import InputError
from runtime.geometry.intensity import Rule
from runtime.geometry.transform import SpatialTransform
from runtime.geometry.volume import Source, Volume
from runtime.heap import ARRAYS, return_freed_memory
from runtime.iterstop import Pair
from runtime.options import Options
from runtime.prepare import Prepared
from runtime.result import Registration, WorkingImages, carried
from runtime.stages import Progress, Stages, silent


@dataclass(eq=False)
class ReadyPair:
    """Two scans read, aligned by the affine, on one grid and encoded: any schedule can be run on them, one at a time.

    Made by `FixedScan.meet`; each result is what a registration with these options alone would give, bit for bit.

    Attributes:
        engines: must stay open as long as this is used.
        options: what it was made with, and what is run where nothing else is said.
        rule: intensities to [0, 1].
        fixed, moving, labels: as read.
        masks: of fixed and moving, as far as they have one.
        below_zero: shares of the voxels of fixed and moving whose intensity was below 0.
        ready: both images on the working grid, and the affine.
        pair: those, encoded; None once a registration was said to be the last.
        seconds: by stage, until here.
    """

    engines: Engines
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
        """Runs a schedule.

        Args:
            options: schedule, similarity, stop rule and smoothing; affine and window are the pair's. None: those it was
                made with.
            progress: told the name of each stage as it begins.
            through: what the loop shall see instead of the pair; its flows must be those the pair gives.
            last: whether no other schedule will follow: what was encoded is let go.

        Raises:
            InputError: options, a flow or similarity that is not finite, or a call after the last one.
        """
        if self.pair is None:
            raise InputError("pair: its last registration was run; meet the moving scan again")
        options = self._of_this_pair(options)
        schedule, stage = options.build_schedule(), Stages(progress)
        engines, ready = self.engines, self.ready
        with engines.running():
            pair = self.pair.watching(options.similarity).smoothing(options.smooth)
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
                warped = carried(self.moving, displacement, grid, background)
                warped_labels = None if labels is None else carried(labels, displacement, grid, 0, "nearest")
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
            working=WorkingImages(ready.fixed, ready.moving, loop.warped),
            similarity_before=loop.before,
            folded_share=loop.folded_share,
            affine_start=ready.affine_start,
            options=options,
            schedule=schedule,
            engine=engines.as_dict(),
            seconds=_added(self.seconds, stage.seconds),
        )

    def _of_this_pair(self, options: Options | None) -> Options:
        if options is None:
            return self.options
        shared = ("affine", "convention", "nan", "volume_factor", "window")
        own = replace(options, **{name: getattr(self.options, name) for name in shared})
        return own.resolved(self.engines.engine_set)


def _added(one: dict[str, float], other: dict[str, float]) -> dict[str, float]:
    """Seconds by stage of two parts of the work."""
    return {name: one.get(name, 0.0) + other.get(name, 0.0) for name in {**one, **other}}
