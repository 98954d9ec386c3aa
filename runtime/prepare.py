"""From scans to two images the network can take: intensities, working grid, affine start, resampling."""

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from runtime.conventions.plain_affine import read_affine
from runtime.geometry.errors import InputError, explained
from runtime.geometry.grid import Grid, plan_working_grid
from runtime.geometry.intensity import Rule
from runtime.geometry.transform import check_plausible
from runtime.geometry.volume import Volume
from runtime.machine import check_fits
from runtime.manifest import EngineSet
from runtime.stages import Stages

Array = np.ndarray


@dataclass(frozen=True)
class Prepared:
    """A pair ready for the network.

    Attributes:
        fixed, moving: (I, J, K) float32 in [0, 1] on `grid`, moving after the affine.
        grid: the working grid.
        affine: (4, 4) RAS mm, fixed -> moving.
        affine_start: facts on how the affine was found, plain types.
    """

    fixed: Array
    moving: Array
    grid: Grid
    affine: Array
    affine_start: dict[str, Any]


@dataclass(frozen=True)
class Normalised:
    """A scan whose intensities are in [0, 1].

    Attributes:
        image: (I, J, K) float32 on `grid`.
        grid: the scan's.
        below_zero: share of the scan's voxels whose intensity was below 0.
    """

    image: Array
    grid: Grid
    below_zero: float


def normalised(volume: Volume, rule: Rule, argument: str) -> Normalised:
    """Applies the rule; InputError, which calls the scan `argument`, where that leaves no contrast."""
    below_zero = float(np.count_nonzero(volume.data < 0) / volume.data.size)
    return Normalised(rule.normalise(volume.data, argument), volume.grid, below_zero)


class PreparedFixed:
    """A fixed scan made ready once, for any number of moving ones. NumPy alone until `on_grid` or `meet` is asked for.

    Attributes:
        grid: the working grid: the fixed foreground and a margin, as the network takes it.

    Args:
        fixed: from `normalised`.
        engine_set: says which spacing and sizes the network takes.
        rule: tells the foreground.

    Raises:
        InputError: there is no foreground, or its working grid does not fit into memory.
    """

    def __init__(self, fixed: Normalised, engine_set: EngineSet, rule: Rule) -> None:
        foreground = rule.foreground(fixed.image)
        self.grid = plan_working_grid(fixed.grid, foreground, engine_set.spacing, engine_set.size_multiple)
        check_fits(self.grid.shape, fixed.image.size, 0)
        self._fixed: Normalised | None = fixed
        self._voxels = fixed.image.size

    @cached_property
    def on_grid(self) -> Array:
        """The fixed image on the working grid, (I, J, K) float32 in [0, 1]."""
        from runtime.resample import resample

        image = resample(self._fixed.image, self._fixed.grid, self.grid)
        return np.clip(image, 0, 1, out=image)

    @cached_property
    def pyramid(self):
        """What the affine start sees of it; a `runtime.affine.FixedPyramid`."""
        from runtime.affine import FixedPyramid

        return FixedPyramid(self._fixed.image, self._fixed.grid)

    def condense(self) -> None:
        """Keeps the image on the working grid, and the pyramid if it was asked for, instead of the whole image."""
        _ = self.on_grid
        self._fixed = None

    def meet(
        self, moving: Normalised, start: Array | None = None, stage: Stages | None = None, again: bool = False
    ) -> Prepared:
        """The pair on the working grid.

        Args:
            moving: from `normalised`.
            start: (4, 4) RAS mm, fixed -> moving, from `read_start`; None: found here.
            stage: told the stages and their seconds.
            again: whether the fixed image's features are held already, so that less memory is needed.

        Raises:
            InputError: constant or empty images, no overlap, too little memory.
        """
        from runtime.resample import resample

        stage = stage or Stages()
        check_fits(self.grid.shape, self._voxels, moving.image.size, again)
        with stage("affine"):
            matrix, facts = self._affine_start(start, moving)
        with stage("resample"):
            image = resample(moving.image, moving.grid, self.grid, physical=matrix)
            np.clip(image, 0, 1, out=image)
            return Prepared(self.on_grid, image, self.grid, matrix, facts)

    def _affine_start(self, start: Array | None, moving: Normalised) -> tuple[Array, dict]:
        if start is not None:
            return start, {"found": False, "matrix": start.tolist()}
        found = self.pyramid.align(moving.image, moving.grid)
        return np.array(found.matrix), {"found": True, **asdict(found)}


def prepare(
    fixed: Volume,
    moving: Volume,
    engine_set: EngineSet,
    rule: Rule,
    start: Array | None = None,
    stage: Stages | None = None,
) -> Prepared:
    """Intensities to [0, 1], the working grid, the affine start, and both images on that grid.

    Args:
        fixed, moving: as read, intensities as in the file.
        engine_set: says which spacing and sizes the network takes.
        rule: intensities to [0, 1].
        start, stage and errors: as in `PreparedFixed.meet`.
    """
    stage = stage or Stages()
    with stage("normalise"):
        images = normalised(fixed, rule, "--fixed"), normalised(moving, rule, "--moving")
        ready = PreparedFixed(images[0], engine_set, rule)
    return ready.meet(images[1], start, stage)


@explained("--affine")
def read_start(choice: str) -> Array | None:
    """The affine a user chose: "none" is the identity (headers only), a path is read, "auto" is None (to be found)."""
    if choice == "auto":
        return None
    if choice == "none":
        return np.eye(4)
    if not Path(choice).is_file():
        raise InputError(f"--affine: got {choice!r}, expected auto, none or an existing 4x4 text file")
    matrix = read_affine(Path(choice), "--affine")
    check_plausible(matrix, f"--affine: {choice}")
    return matrix
