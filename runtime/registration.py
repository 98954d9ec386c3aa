"""From two scans to one aligned scan: reading, working grid, affine start, the loop, and the way back."""

import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from runtime import iterstop
from runtime.engines import Engines
from runtime.geometry.errors import InputError
from runtime.geometry.grid import Grid
from runtime.geometry.intensity import WindowRule, rule_from_dict
from runtime.geometry.similarity import SIMILARITIES
from runtime.geometry.transform import SpatialTransform
from runtime.geometry.volume import Volume, read_labels, read_volume
from runtime.prepare import prepare, read_start
from runtime.stages import Progress, Stages, silent

Array = np.ndarray
DARK_SHARE = 0.05  # of voxels below 0, from which on a scan is probably CT
LOW_NCC = 0.6  # brains of one contrast reach 0.9 and more


@dataclass(frozen=True)
class Options:
    """How to register. What is None follows the engine set.

    Attributes:
        affine: "auto" (centres of mass, rigid, affine), "none" (headers only) or a path to a 4x4 text file, RAS mm,
            fixed -> moving.
        schedule: "iterstop", "a,b,c,d" (iterations at levels 4 to 1) or "cascade:t".
        similarity: "ncc", "lncc" or "mse", what IterStop watches.
        delta: smallest improvement, one value or four (levels 4 to 1).
        max_iterations: per level, one value or four.
        on_stop: "keep" (released code) or "revert" (Algorithm 1 as printed).
        window: (low, high) intensities mapped to [0, 1] instead of the set's rule, for CT.
    """

    affine: str = "auto"
    schedule: str = "iterstop"
    similarity: str | None = None
    delta: float | tuple[float, ...] | None = None
    max_iterations: int | tuple[int, ...] | None = None
    on_stop: str | None = None
    window: tuple[float, float] | None = None

    def resolved(self, engines: Engines) -> "Options":
        """The same with every None replaced by the engine set's default."""
        stop = engines.engine_set.stop
        similarity = stop["similarity"] if self.similarity is None else self.similarity
        if similarity not in SIMILARITIES:
            raise InputError(f"--similarity: got {similarity!r}, expected one of {', '.join(SIMILARITIES)}")
        if self.schedule.strip().lower() != "iterstop":
            self._refuse_stop_options()
            return replace(self, similarity=similarity)
        delta = stop["delta"] if similarity == stop["similarity"] else iterstop.DEFAULT_DELTA[similarity]
        return replace(
            self,
            similarity=similarity,
            delta=delta if self.delta is None else self.delta,
            max_iterations=stop["limit"] if self.max_iterations is None else self.max_iterations,
            on_stop=stop["on_stop"] if self.on_stop is None else self.on_stop,
        )

    def _refuse_stop_options(self) -> None:
        """An option that would be ignored is an error."""
        for name in ("delta", "max_iterations", "on_stop"):
            if (value := getattr(self, name)) is not None:
                raise InputError(
                    f"--{name.replace('_', '-')}: got {value}, but --schedule {self.schedule} has no stop rule; "
                    "leave it out or use --schedule iterstop"
                )

    def build_schedule(self) -> iterstop.Schedule:
        """The schedule these (resolved) options ask for; InputError where they make none."""
        rule = {"similarity": self.similarity, "delta": self.delta, "limit": self.max_iterations}
        return iterstop.parse_schedule(self.schedule, **rule, on_stop=self.on_stop)


@dataclass(frozen=True)
class Registration:
    """What a registration gives.

    Attributes:
        fixed, moving: the scans as read.
        labels: moving labels as read, or None.
        warped: moving on the fixed grid, (I, J, K) float32, interpolated once.
        warped_labels: labels on the fixed grid, or None.
        transform: fixed -> moving in RAS mm, affine and flow.
        displacement: (I, J, K, 3) float32, RAS mm, of the whole transform on the fixed grid.
        iterations: every decision of the loop.
        working: fixed, moving (affine only) and warped on the working grid, (I, J, K) in [0, 1], for pictures.
        similarity_before: similarity after the affine start, before any flow.
        folded_share: share of working voxels whose Jacobian determinant is <= 0.
        affine_start: facts on how the affine was found.
        options, schedule: as run.
        engine: facts on what ran.
        seconds: by stage.
    """

    fixed: Volume
    moving: Volume
    labels: Volume | None
    warped: Array
    warped_labels: Array | None
    transform: SpatialTransform
    displacement: Array
    iterations: iterstop.Iterations
    working: "WorkingImages"
    similarity_before: float
    folded_share: float
    affine_start: dict[str, Any]
    options: Options
    schedule: iterstop.Schedule
    engine: dict[str, Any]
    seconds: dict[str, float]

    @property
    def volumes(self) -> tuple[Volume, ...]:
        """Everything that was read."""
        return tuple(volume for volume in (self.fixed, self.moving, self.labels) if volume is not None)

    @functools.cached_property
    def displacement_mm(self) -> dict[str, float]:
        """Length of the whole transform's displacement, affine included, over every 2nd voxel of the fixed grid."""
        length = np.linalg.norm(self.displacement[::2, ::2, ::2], axis=-1)
        percentile = float(np.percentile(length, 95))
        return {"mean": float(length.mean()), "percentile_95": percentile, "max": float(length.max())}

    @functools.cached_property
    def warnings(self) -> tuple[str, ...]:
        """Doubts about the headers, the intensities and the result, one line each."""
        lines = [line for volume in self.volumes for line in volume.warnings]
        for name, volume in (("fixed", self.fixed), ("moving", self.moving)):
            if self.options.window is None and (share := np.mean(volume.data < 0)) > DARK_SHARE:
                lines.append(f"{name}: {share:.0%} of the voxels are below 0 and count as 0; is it CT? give --window")
        if not self.fixed.grid.orthogonal:
            lines.append("the fixed image's axes are sheared; ITK and ANTs cannot read images or warps on such a grid")
        if self.iterations.similarity < self.similarity_before:
            lines.append(
                f"the images are less alike than after the affine ({self.options.similarity} "
                f"{self.iterations.similarity:.4f}, before {self.similarity_before:.4f}); were they aligned already?"
            )
        if note := self.affine_start.get("note"):
            lines.append(f"affine start: {note}")
        if self.options.similarity == "ncc" and self.iterations.similarity < LOW_NCC:
            lines.append(f"the similarity is low ({self.iterations.similarity:.2f}); look at preview.png")
        if self.labels is not None and not self.labels.grid.close(self.moving.grid):
            lines.append("the label map is not on the moving scan's grid; it is used where its header says")
        if self.labels is not None and self.labels.data.any() and not self.warped_labels.any():
            lines.append("no label falls on the fixed image")
        return tuple(lines)

    def save(self, folder: Path | str, overwrite: bool = False, progress: Progress = silent) -> None:
        """Writes images, transform, report and picture into a folder; see `runtime.report`."""
        from runtime.report import save

        save(self, Path(folder), overwrite, progress)

    def summary(self) -> str:
        """A few lines for people."""
        from runtime.report import summary

        return summary(self)


@dataclass(frozen=True)
class WorkingImages:
    """The images the network saw, (I, J, K) float32 in [0, 1] on one grid, and the warped moving image."""

    fixed: Array
    moving: Array
    warped: Array


def register(
    fixed: Path | str | Volume,
    moving: Path | str | Volume,
    engines: Engines,
    options: Options | None = None,
    moving_labels: Path | str | Volume | None = None,
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
    options = (options or Options()).resolved(engines)
    schedule = options.build_schedule()
    rule = WindowRule(*options.window) if options.window else rule_from_dict(engines.engine_set.intensity)
    start = read_start(options.affine)
    stage = Stages(progress)
    with stage("read"):
        fixed, moving = _volume(fixed, "--fixed"), _volume(moving, "--moving")
        labels = None if moving_labels is None else _labels(moving_labels, moving)
    with engines.running():
        _compile_if_cold(stage)
        ready = prepare(fixed, moving, engines.engine_set, rule, start, stage)
        loop = _run(engines, ready.fixed, ready.moving, schedule, options.similarity, stage)
        with stage("apply"):
            transform = SpatialTransform(ready.affine, loop.found.flow, ready.grid)
            displacement = transform.displacement(fixed.grid)
            warped = _resampled(moving, displacement, fixed.grid, rule.background(moving.data))
            warped_labels = None if labels is None else _resampled(labels, displacement, fixed.grid, 0, "nearest")
    return Registration(
        fixed=fixed,
        moving=moving,
        labels=labels,
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
        seconds=stage.seconds,
    )


def register_arrays(
    engines: Engines, fixed: Array, moving: Array, schedule: iterstop.Schedule, similarity: str = "ncc"
) -> iterstop.Iterations:
    """The loop alone, on two images (I, J, K), float32 in [0, 1], on one grid whose sizes are multiples of 8.

    Returns:
        Iterations whose flow is a host array (3, I, J, K) in voxels.

    Raises:
        InputError: shapes, intensities or a result that is not finite.
    """
    with engines.running():
        return _run(engines, fixed, moving, schedule, similarity, Stages()).found


def check_images(fixed: Array, moving: Array, multiple: int) -> None:
    """Refuses images the loop cannot take: shapes, not finite, constant, outside [0, 1]."""
    if fixed.shape != moving.shape or fixed.ndim != 3 or any(size % multiple or size == 0 for size in fixed.shape):
        raise InputError(
            f"images: got shapes {fixed.shape} and {moving.shape}, expected one (I, J, K), multiples of {multiple}"
        )
    for name, image in (("fixed", fixed), ("moving", moving)):
        low, high = float(image.min()), float(image.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise InputError(f"{name} image: has NaN or Inf, expected intensities in [0, 1]; repair it first")
        if low == high:
            raise InputError(
                f"{name} image: is constant ({low:g}) where it meets the fixed image's foreground; "
                "check that the two scans overlap (--affine auto aligns their centres)"
            )
        if low < 0 or high > 1:
            raise InputError(f"{name} image: got intensities {low:g} to {high:g}, expected [0, 1]; normalise it first")


@dataclass(frozen=True)
class _Loop:
    """The loop with its beginning and end: iterations (flow on the host), similarity before, warped image, folds."""

    found: iterstop.Iterations
    before: float
    warped: Array
    folded_share: float


def _run(engines: Engines, fixed: Array, moving: Array, schedule, similarity: str, stage: Stages) -> _Loop:
    check_images(fixed, moving, engines.engine_set.size_multiple)
    fields, finest = engines.fields, iterstop.LEVELS[-1]
    with stage("encode"):
        moving = fields.to_device(moving)
        pair = engines.fixed_side(fixed, similarity).pair(moving)
        before = pair.score(finest, pair.zero(finest))

    def progress(number: int, level: int, iteration: int) -> None:
        stage.progress(_iteration_name(schedule, number, level, iteration))

    with stage("iterate"):
        found = iterstop.run(pair, schedule, progress, before)
    with stage("finish"):
        warped, folded_share = fields.to_host(fields.warp(moving, found.flow)), fields.folded_share(found.flow)
        flow = fields.to_host(found.flow)
        if not np.isfinite(flow).all():
            raise InputError(
                "flow: the engines gave NaN or Inf for these images; check both scans; nothing was written"
            )
    return _Loop(replace(found, flow=flow), before, warped, folded_share)


def _iteration_name(schedule: iterstop.Schedule, number: int, level: int, iteration: int) -> str:
    name = f"level {level}, iteration {iteration}"
    return f"pass {number}, {name}" if schedule.passes > 1 else name


def _volume(source: Path | str | Volume, argument: str) -> Volume:
    return source if isinstance(source, Volume) else read_volume(Path(source), argument)


def _labels(source: Path | str | Volume, moving: Volume) -> Volume:
    labels = source if isinstance(source, Volume) else read_labels(Path(source), "--moving-labels")
    boxes = [(grid.corners.min(axis=0), grid.corners.max(axis=0)) for grid in (labels.grid, moving.grid)]
    if np.any(np.maximum(boxes[0][0], boxes[1][0]) > np.minimum(boxes[0][1], boxes[1][1])):
        raise InputError(
            f"--moving-labels: {labels.path or 'the label map'} lies apart from the moving scan in physical space; "
            "give the label map of that scan, with its header"
        )
    return labels


def _compile_if_cold(stage: Stages) -> None:
    from runtime.warmup import is_cold, warm_up

    if is_cold():
        with stage("compile for this computer (only this once, about a minute)"):
            warm_up()


def _resampled(volume: Volume, displacement: Array, grid: Grid, background: float, order: str = "linear") -> Array:
    from runtime.resample import resample_through

    return resample_through(volume.data, volume.grid, displacement, grid, order, background)
