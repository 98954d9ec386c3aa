"""From two scans to two images the network can take: intensities, working grid, affine start, resampling."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime.geometry.errors import InputError
from runtime.geometry.grid import Grid, plan_working_grid
from runtime.geometry.intensity import Rule
from runtime.geometry.transform import read_affine
from runtime.geometry.volume import Volume
from runtime.machine import check_fits
from runtime.manifest import EngineSet
from runtime.stages import Stages

Array = np.ndarray
LARGEST_STRETCH = 5.0  # of a plausible affine; beyond it a matrix is in other units or another tool's form


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
        start: (4, 4) RAS mm, fixed -> moving, from `read_start`; None: found here.
        stage: told the stages and their seconds.

    Raises:
        InputError: constant or empty images, no overlap, too little memory.
    """
    stage = stage or Stages()
    with stage("normalise"):
        fixed_image, moving_image = rule.normalise(fixed.data, "--fixed"), rule.normalise(moving.data, "--moving")
        foreground = rule.foreground(fixed_image)
        grid = plan_working_grid(fixed.grid, foreground, engine_set.spacing, engine_set.size_multiple)
        check_fits(grid.shape, fixed.data.size, moving.data.size)
    with stage("affine"):
        matrix, facts = _affine_start(start, fixed_image, fixed.grid, moving_image, moving.grid)
    with stage("resample"):
        images = _working_images(fixed_image, fixed.grid, moving_image, moving.grid, grid, matrix)
    return Prepared(*images, grid, matrix, facts)


def read_start(choice: str) -> Array | None:
    """The affine a user chose: "none" is the identity (headers only), a path is read, "auto" is None (to be found)."""
    if choice == "auto":
        return None
    if choice == "none":
        return np.eye(4)
    if not Path(choice).is_file():
        raise InputError(f"--affine: got {choice!r}, expected auto, none or an existing 4x4 text file")
    matrix = read_affine(Path(choice), "--affine")
    stretch = np.linalg.svd(matrix[:3, :3], compute_uv=False)
    if stretch.max() > LARGEST_STRETCH or stretch.min() < 1 / LARGEST_STRETCH:
        raise InputError(
            f"--affine: {choice} stretches by {stretch.min():.3g} to {stretch.max():.3g}, expected "
            f"{1 / LARGEST_STRETCH:g} to {LARGEST_STRETCH:g}; give RAS mm, fixed to moving (not FSL's or ITK's form)"
        )
    return matrix


def _affine_start(start: Array | None, fixed, fixed_grid: Grid, moving, moving_grid: Grid) -> tuple[Array, dict]:
    if start is not None:
        return start, {"found": False, "matrix": start.tolist()}
    from runtime.affine import align

    found = align(fixed, fixed_grid, moving, moving_grid)
    return np.array(found.matrix), {"found": True, **asdict(found)}


def _working_images(fixed, fixed_grid: Grid, moving, moving_grid: Grid, grid: Grid, affine: Array):
    from runtime.resample import resample

    on_grid = resample(fixed, fixed_grid, grid), resample(moving, moving_grid, grid, physical=affine)
    return tuple(np.clip(image, 0, 1, dtype=np.float32) for image in on_grid)
