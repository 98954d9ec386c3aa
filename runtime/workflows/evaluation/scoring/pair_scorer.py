"""Scorer of one pair on one engine set: reads, aligns and encodes once, then registers and scores by any method."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from ....backends.engines import OpenEngines
from ....errors import InputError
from ....host.machine import available_bytes
from ....host.progress import Progress, silent
from ....images.label_position import label_position_warnings
from ....images.masks import mask_of, read_mask
from ....images.volume import Volume, read_labels, read_volume
from ....loop import iterstop
from ....registration.options import Options
from ....registration.preprocessing import normalised
from ....registration.scans import FixedScan, Registration
from ....transforms.chain import Route, read_route
from ....transforms.points.tables import read_points
from ....types import Array
from ..methods import BEFORE, NO_ITERATION, Method
from ..pair_list import EvaluationPair
from .memoised_pair import LIMIT, MemoisedPair, ResultMemory, TimeAccount
from .scores import LabelPair, TransformScorer, pair_labels

MEMORY_SHARE = 4  # flows kept take at most 1 / MEMORY_SHARE of the free memory
LOOP_STAGES = ("encode", "iterate")
NETWORK_STAGES = (*LOOP_STAGES, "finish")  # not counted for the affine initialisation alone


class PairScorer:
    """A pair prepared for any number of methods.

    Args:
        pair: files of the pair.
        engines: open engines.
        start: affine and window, which all methods share.
        label_ids: labels to score; None: all that both maps hold.
        points_in: coordinate frame of landmark files with columns x,y,z, which do not state it; see
            `runtime.transforms.points.tables`.
        progress: receives the name of each stage.

    Raises:
        InputError: files that cannot be read, registered or scored.
    """

    def __init__(
        self,
        pair: EvaluationPair,
        engines: OpenEngines,
        start: Options,
        label_ids: Sequence[int] | None = None,
        points_in: str | None = None,
        progress: Progress = silent,
    ) -> None:
        self._pair, self._engines, self._progress = pair, engines, progress
        progress(f"{pair.name}: read")
        self._fixed, self._moving = (read_volume(getattr(pair, side), f"--{side}") for side in ("fixed", "moving"))
        self._labels, self._warnings = _read_labels(pair, (self._fixed, self._moving), label_ids)
        landmarks = _read_landmarks(pair, (self._fixed, self._moving), points_in)
        progress(f"{pair.name}: prepare")
        onto = FixedScan(self._fixed, engines, start, mask=pair.fixed_mask)
        self._ready = onto.align(self._moving, mask=pair.moving_mask)
        self._memory = ResultMemory(_limit(), None if engines.networks.device == "cpu" else engines.fields.extremes)
        self._before = self._register(Options(schedule=NO_ITERATION).resolved(engines.engine_set))[0]
        self._scorer = self._make_scorer(start, landmarks)

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Facts common to all methods of this pair on this engine set, plain types."""
        grid, labels = self._before.transform.grid, self._labels
        return {
            "labels_scored": list(labels.chosen) if labels else [],
            "labels_absent": list(labels.absent) if labels else [],
            "working_grid": {"shape": list(grid.shape), "affine": grid.affine.tolist()},
            "affine": self._before.affine_initialisation,
            "engine": self._engines.as_dict(),
            "warnings": [*self._before.warnings, *self._warnings],
        }

    def run(self, method: Method) -> dict[str, Any]:
        """Register by a method and score the result; return scores, times and iterations, plain types.

        Raises:
            InputError: this method gave no transform.
        """
        self._progress(f"{self._pair.name}: {method.title}")
        result, seconds = self._register(method.settings)
        if method.name == BEFORE:
            seconds = {stage: spent for stage, spent in seconds.items() if stage not in NETWORK_STAGES}
        return {
            **self._scorer.score(result.transform).as_dict(),
            "seconds": sum(seconds.values()),
            "seconds_loop": sum(seconds.get(stage, 0.0) for stage in LOOP_STAGES),
            "seconds_by_stage": seconds,
            "iterations": [list(counts) for counts in result.iterations.counts],
            "similarity": {"measure": result.options.similarity, "after": result.iterations.similarity},
            "schedule": result.schedule.as_dict(),
        }

    def run_transform(self) -> dict[str, Any]:
        """Score the transform that was given with the pair."""
        self._progress(f"{self._pair.name}: the given transform")
        pair = self._pair
        route = Route(pair.transform, pair.convention, reference=pair.fixed)  # always fixed -> moving, after inversions
        try:
            read = read_route(route, self._moving.source)
        except InputError as error:
            if "convention" not in str(error):
                raise
            raise InputError(f"{error} (--convention, or the column convention of --pairs)") from None
        return {**self._scorer.score(read.transform).as_dict(), "warnings": list(read.warnings)}

    def _register(self, options: Options) -> tuple[Registration, dict[str, float]]:
        """Register, and return the result and the seconds by stage that it would have taken alone."""
        account = TimeAccount()

        def memoised(pair: iterstop.Pair) -> MemoisedPair:
            return MemoisedPair(pair, self._memory, options.similarity, options.smooth, account)

        result = self._ready.register(options, through=memoised)
        return result, {**result.seconds, "iterate": account.seconds}

    def _make_scorer(self, start: Options, landmarks: tuple[Array, Array] | None) -> TransformScorer:
        rule = start.rule(self._engines.engine_set)
        image = self._before.working.fixed
        mask = None if self._pair.moving_mask is None else read_mask(self._pair.moving_mask, "--moving-mask")
        counts = None if mask is None else mask_of(mask, self._moving.grid, "--moving-mask")
        moving = normalised(self._moving, rule, "--moving", counts)
        return TransformScorer(
            moving, image, rule.foreground(image), self._before.transform.grid, self._labels, landmarks
        )


def _limit() -> int:
    free = available_bytes()
    return LIMIT if free is None else min(LIMIT, free // MEMORY_SHARE)


def _read_labels(
    pair: EvaluationPair, scans: tuple[Volume, Volume], ids: Sequence[int] | None
) -> tuple[LabelPair | None, tuple[str, ...]]:
    """Read the label maps of both scans; return them with warnings about their headers and positions."""
    if pair.fixed_labels is None or pair.moving_labels is None:
        return None, ()
    maps, warnings = [], []
    for side, path, scan in zip(("fixed", "moving"), (pair.fixed_labels, pair.moving_labels), scans, strict=True):
        labels = read_labels(path, f"--{side}-labels", lowest=0)
        place = label_position_warnings(labels.grid, scan.grid, f"--{side}-labels: {path}", f"the {side} scan")
        warnings += [*labels.warnings, *(f"{path.name}: {line}" for line in place)]
        maps.append(labels)
    fixed, moving = maps
    return pair_labels(fixed, moving, ids), tuple(warnings)


def _read_landmarks(
    pair: EvaluationPair, scans: tuple[Volume, Volume], frame: str | None
) -> tuple[Array, Array] | None:
    """Read the landmarks of both scans, (N, 3) RAS mm each."""
    if pair.fixed_landmarks is None or pair.moving_landmarks is None:
        return None
    files = ("--fixed-landmarks", pair.fixed_landmarks), ("--moving-landmarks", pair.moving_landmarks)
    fixed, moving = (
        read_points(path, None, argument, default=frame).physical(scan.grid)
        for (argument, path), scan in zip(files, scans, strict=True)
    )
    if len(fixed) != len(moving):
        raise InputError(
            f"--moving-landmarks: {pair.moving_landmarks} has {len(moving)} points, the fixed file {len(fixed)}; "
            "expected the same points in the same order"
        )
    return fixed, moving
