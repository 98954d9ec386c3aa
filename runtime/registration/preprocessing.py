"""Preprocessing of two scans for the network: intensities, working grid, affine initialisation, resampling."""

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backends.engine_set import EngineSet
from ..geometry.field_of_view import FieldOfView, field_of_view
from ..geometry.grid import Grid, plan_working_grid
from ..host.machine import check_fits
from ..host.progress import Stages
from ..images.intensity import FOREGROUND, PercentileRule, Rule, is_standardised
from ..images.masks import Mask, filled
from ..images.volume import Source, Volume
from ..types import Array
from .affine.choice import AffineChoice

if TYPE_CHECKING:
    from .affine.align import FixedPyramid

AUTO = AffineChoice("auto")
LEAST_PART = 1e-3  # share of a hole above which an interpolated voxel counts as a hole
LEAST_UNSEEN = 2e-3  # share of one scan's foreground beyond the other's field of view that is worth a hole


@dataclass(frozen=True)
class Prepared:
    """A pair ready for the network.

    Attributes:
        fixed, moving: (I, J, K) float32 in [0, 1] on `grid`, moving after the affine.
        grid: the working grid.
        affine: (4, 4) RAS mm, fixed -> moving.
        affine_initialisation: facts on how the affine was found, plain types.
        holes: (I, J, K) bool on `grid`, where fixed and moving are unknown, by their masks or beyond their fields of
            view; each None: nowhere. In a hole an image holds the other one's intensities, 0 where neither is known.
    """

    fixed: Array
    moving: Array
    grid: Grid
    affine: Array
    affine_initialisation: dict[str, Any]
    holes: tuple[Array | None, Array | None] = (None, None)


@dataclass(frozen=True)
class Normalised:
    """A scan whose intensities are in [0, 1].

    Attributes:
        image: (I, J, K) float32 on `grid`.
        grid: grid of the scan.
        foreground: (I, J, K) bool, the voxels of the body (`runtime.images.intensity.foreground_mask`).
        below_zero: share of the scan's voxels whose intensity was below 0.
        source: the scan's file, header and grid.
        mask: voxels that count; the image is 0 elsewhere. None: all voxels.
    """

    image: Array
    grid: Grid
    foreground: Array
    below_zero: float
    source: Source
    mask: Mask | None = None

    @cached_property
    def view(self) -> FieldOfView:
        """The field of view: where the scan ends although the body goes on."""
        return field_of_view(self.foreground, self.grid)

    @cached_property
    def holes(self) -> Array | None:
        """The holes of the mask and the padding beyond the field of view, (I, J, K) bool; None: there are none."""
        return _either(None if self.mask is None else self.mask.holes, self.view.unseen)


def normalised(volume: Volume, rule: Rule, argument: str, mask: Mask | None = None) -> Normalised:
    """Normalise the voxels that count by the rule; InputError, naming `argument`, if that leaves no contrast."""
    data = volume.data if mask is None else mask.applied(volume.data, rule.background(volume.data))
    shifted = isinstance(rule, PercentileRule) and is_standardised(data)
    below_zero = 0.0 if shifted else float(np.count_nonzero(data < 0) / data.size)
    image = rule.normalise(data, argument)
    return Normalised(image, volume.grid, rule.foreground(image), below_zero, volume.source, mask)


class PreparedFixed:
    """A fixed scan that is prepared once, for any number of moving ones. Uses only NumPy before `on_grid` or `align`.

    Attributes:
        grid: the working grid: the fixed foreground and a margin, in the network's spacing and sizes.

    Args:
        fixed: from `normalised`.
        engine_set: states the spacing and sizes of the network's input.
        rule: determines the foreground.

    Raises:
        InputError: there is no foreground, or its working grid does not fit into memory.
    """

    def __init__(self, fixed: Normalised, engine_set: EngineSet, rule: Rule) -> None:
        holes = None if fixed.mask is None else fixed.mask.holes
        body = fixed.foreground if holes is None else fixed.foreground | holes
        self.grid = plan_working_grid(fixed.grid, body, engine_set.spacing, engine_set.size_multiple)
        check_fits(self.grid.shape, fixed.image.size, 0)
        self._fixed: Normalised | None = fixed
        self._voxels, self._source = fixed.image.size, fixed.source

    @property
    def _original(self) -> Normalised:
        assert self._fixed is not None  # what needs it is computed before `condense`
        return self._fixed

    @cached_property
    def on_grid(self) -> Array:
        """The fixed image on the working grid, (I, J, K) float32 in [0, 1]."""
        from ..images.resampling.resample import resample

        fixed = self._original
        image = resample(fixed.image, fixed.grid, self.grid)
        return np.clip(image, 0, 1, out=image)

    @cached_property
    def holes(self) -> Array | None:
        """The holes of the mask on the working grid, (I, J, K) bool; None: there are none."""
        return _holes_on(self.grid, self._original)

    @cached_property
    def beyond(self) -> Array | None:
        """The voxels of the working grid beyond the fixed scan's field of view, (I, J, K) bool; None: none."""
        return self._original.view.beyond(self.grid)

    @cached_property
    def pyramid(self) -> "FixedPyramid":
        """The fixed image for the affine initialisation; a `runtime.registration.affine.align.FixedPyramid`."""
        from .affine.align import FixedPyramid

        fixed = self._original
        return FixedPyramid(fixed.image, fixed.grid, fixed.holes, fixed.view)

    def condense(self) -> None:
        """Keep the image on the working grid, and the pyramid if already computed, and release the original image."""
        _ = self.on_grid, self.holes, self.beyond
        self._fixed = None

    def align(
        self, moving: Normalised, start: AffineChoice = AUTO, stage: Stages | None = None, again: bool = False
    ) -> Prepared:
        """Align a moving scan by the affine, and resample it onto the working grid.

        Args:
            moving: from `normalised`.
            start: choice of affine initialisation.
            stage: reports the stages and records their seconds.
            again: True if the fixed image's features are already in memory, so that less memory is needed.

        Raises:
            InputError: constant or empty images, no overlap, too little memory.
        """
        from ..images.resampling.resample import resample

        stage = stage or Stages()
        check_fits(self.grid.shape, self._voxels, moving.image.size, again)
        with stage("affine"):
            matrix, facts = self._affine_start(start, moving)
        with stage("resample"):
            image = resample(moving.image, moving.grid, self.grid, physical=matrix)
            np.clip(image, 0, 1, out=image)
            beyond = moving.view.beyond(self.grid, matrix)
            holes = (
                _either(self.holes, _worthwhile(self.beyond, image)),
                _either(_holes_on(self.grid, moving, matrix), _worthwhile(beyond, self.on_grid)),
            )
            return Prepared(*filled(self.on_grid, image, *holes), self.grid, matrix, facts, holes)

    def _affine_start(self, start: AffineChoice, moving: Normalised) -> tuple[Array, dict[str, Any]]:
        if not start.found:
            return start.given(self._source, moving.source, self._foreground_positions())
        pair = self.pyramid.pair_with(moving.image, moving.grid, moving.holes, moving.view)
        found = pair.align(start.kind, start.limits)
        return np.array(found.matrix), {"found": True, **asdict(found)}

    def _foreground_positions(self) -> Array:
        """Return the positions of the foreground voxels, (N, 3) RAS mm."""
        return self.grid.to_physical(np.argwhere(self.on_grid > FOREGROUND).astype(np.float64))


def _holes_on(grid: Grid, scan: Normalised, matrix: Array | None = None) -> Array | None:
    """Resample the holes of a mask onto a grid; a voxel counts if any notable part of it is interpolated from one."""
    from ..images.resampling.resample import resample

    if scan.mask is None or scan.mask.holes is None:
        return None
    holes = resample(scan.mask.holes.astype(np.float32), scan.grid, grid, physical=matrix) > LEAST_PART
    return holes if holes.any() else None


def _worthwhile(beyond: Array | None, other: Array) -> Array | None:
    """Return the voxels beyond a scan's field of view, unless the other image shows next to nothing there."""
    if beyond is None:
        return None
    body = other > FOREGROUND
    return beyond if np.count_nonzero(body & beyond) > LEAST_UNSEEN * np.count_nonzero(body) else None


def _either(one: Array | None, other: Array | None) -> Array | None:
    """Return the union of two masks (I, J, K) bool, each None if empty."""
    if one is None or other is None:
        return other if one is None else one
    return one | other


def prepare(
    fixed: Volume,
    moving: Volume,
    engine_set: EngineSet,
    rule: Rule,
    start: AffineChoice = AUTO,
    stage: Stages | None = None,
) -> Prepared:
    """Prepare two scans for the network: normalise them, align them by the affine, resample to the working grid.

    Args:
        fixed, moving: as read, intensities as in the file.
        engine_set: states the spacing and sizes of the network's input.
        rule: rule that maps intensities to [0, 1].
        start, stage: as in `PreparedFixed.align`, and so are the errors.
    """
    stage = stage or Stages()
    with stage("normalise"):
        images = normalised(fixed, rule, "--fixed"), normalised(moving, rule, "--moving")
        ready = PreparedFixed(images[0], engine_set, rule)
    return ready.align(images[1], start, stage)
