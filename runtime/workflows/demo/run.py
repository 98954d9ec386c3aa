"""A sample pair with a known transform: the MNI152 brain shipped with nilearn, and the same brain warped and degraded.

The moving scan is the template seen through a known warp, with another contrast, a bias field, noise, thicker slices,
another storage order and an oblique header, as from another scanner. The position of every point of the template in it
is known, so the demonstration can report the distance of a registration from the truth.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ...images import overlap
from ...errors import InputError
from ...geometry.grid import Grid
from ...images.mni152 import mni152_file
from ...images.volume import Volume, read_labels, read_volume
from ...images.formats.nifti_writer import write_volume
from ...host.files.whole_files import atomic_path
from .known_warp import KnownWarp, interpolate, move, random_pose, random_warp, rotation, smooth_field
from ...host.progress import Progress, silent
from ...types import Array

PointMap = Callable[[Array], Array]
Echo = Callable[[str], object]

IN_VENTRICLE = (-21.0, -38.0, 17.0)  # RAS mm; separates the ventricles from the fluid in the sulci
LABELS = {
    1: "grey matter, left",
    2: "grey matter, right",
    3: "white matter, left",
    4: "white matter, right",
    5: "ventricles",
}
MOVING_SPACING = (1.0, 1.0, 1.2)
MOVING_TILT_DEGREES = (14.0, -6.0, 9.0)
MARGIN_MM = 14.0
TRUTH = "truth.npz"
TRUTH_STEP = 4


@dataclass(frozen=True, eq=False)
class DemoPair:
    """A pair on disk and its true transform at a set of points.

    Attributes:
        fixed, fixed_labels: the template brain and its structures (`LABELS`).
        moving, moving_labels: the warped and degraded brain, and its structures.
        points: (N, 3), RAS mm, a lattice over the fixed brain.
        moving_points: (N, 3), RAS mm, the true positions of these points in the moving scan.
    """

    fixed: Path
    moving: Path
    fixed_labels: Path
    moving_labels: Path
    points: Array
    moving_points: Array


@dataclass(frozen=True)
class StageOutcome:
    """Quality of a stage: distance from the truth over the fixed brain in mm, and mean Dice over `LABELS`."""

    mean_mm: float
    percentile_95_mm: float
    dice: float


def run_demo(
    folder: str | Path, engine_dir: str | Path, echo: Echo = print, progress: Progress = silent
) -> dict[str, StageOutcome]:
    """Make the pair, register it, and report the distance of each stage from the truth and which files to open.

    Args:
        folder: receives the pair, and the registration in ``aligned/``.
        engine_dir: the engine set to register with.
        echo: receives the findings, one line of text at a time.
        progress: receives the name of each stage as it begins.

    Returns:
        Outcome of "headers only", "affine initialisation" and "registered".

    Raises:
        InputError: nilearn is missing, or the engine set is missing or damaged.
    """
    from ...registration.engines import open_engines
    from ...registration.scans import register

    folder = Path(folder)
    _check_folder(folder)
    with open_engines(engine_dir) as engines:
        progress("make a pair with a known transform from the MNI152 brain")
        pair = make_pair(folder)
        result = register(pair.fixed, pair.moving, engines, moving_labels=pair.moving_labels, progress=progress)
        result.save(folder / "aligned", overwrite=True, progress=progress)
        progress("compare with the known transform")
        outcomes = _outcomes(pair, result)
    for line in (*result.summary(inverse=True).splitlines(), *_table(outcomes), *_what_to_open(folder)):
        echo(line)
    return outcomes


def _check_folder(folder: Path) -> None:
    """Refuse a file, and a folder with other files than those of an earlier demo."""
    if folder.is_file():
        raise InputError(f"--output: {folder} is a file, expected a folder; choose another")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / TRUTH).is_file():
        raise InputError(f"--output: {folder} holds other files, expected a new folder or an earlier demo's")


def make_pair(folder: str | Path, seed: int = 0) -> DemoPair:
    """Write fixed, moving, fixed_labels, moving_labels (.nii.gz) and truth.npz into a folder.

    ``truth.npz`` holds `points` and `moving_points` of `DemoPair`. The same seed gives the same pair.

    Raises:
        InputError: nilearn, whose template brain is used, is not installed.
    """
    folder = Path(folder)
    template, grey, white = (_template(kind) for kind in ("t1", "gm", "wm"))
    brain = template.grid.to_physical(np.argwhere(template.data > 0).astype(np.float64))
    labels = _structures(template, grey.data, white.data)
    rng = np.random.default_rng(seed)
    affine = random_pose(rng, brain.mean(axis=0))
    warp = random_warp(rng, affine, _moving_grid(move(affine, brain)))
    moving, moving_labels = _rescan(rng, template, labels, warp)
    points = _lattice(template)

    folder.mkdir(parents=True, exist_ok=True)
    pair = DemoPair(
        fixed=folder / "fixed.nii.gz",
        moving=folder / "moving.nii.gz",
        fixed_labels=folder / "fixed_labels.nii.gz",
        moving_labels=folder / "moving_labels.nii.gz",
        points=points,
        moving_points=warp.to_moving(points),
    )
    write_volume(pair.fixed, template.data, template.grid, dtype=np.uint8)
    write_volume(pair.moving, moving, warp.grid)
    write_volume(pair.fixed_labels, labels, template.grid)
    write_volume(pair.moving_labels, moving_labels, warp.grid)
    with atomic_path(folder / TRUTH) as partial:
        np.savez_compressed(partial, points=pair.points, moving_points=pair.moving_points)
    return pair


def error_mm(transform: PointMap, pair: DemoPair) -> tuple[float, float]:
    """Return the distance of a transform from the truth: mean and 95th percentile over the fixed brain, mm.

    Args:
        transform: fixed points (N, 3) -> moving points (N, 3), RAS mm, such as `SpatialTransform.points`.
        pair: from `make_pair`.
    """
    distance = np.linalg.norm(transform(pair.points) - pair.moving_points, axis=1)
    return float(distance.mean()), float(np.percentile(distance, 95))


def mean_dice(fixed_labels: Array, labels: Array) -> float:
    """Return the mean Dice over `LABELS` of two label maps (I, J, K) on one grid, in [0, 1]."""
    return overlap.mean_dice(fixed_labels, labels, LABELS)


def _template(kind: str) -> Volume:
    """Read the template's T1 image ("t1", skull-stripped), or its grey ("gm") or white ("wm") matter map, 0 to 255."""
    return read_volume(mni152_file(kind), "template brain")


def _structures(template: Volume, grey: Array, white: Array) -> Array:
    """Return the label map `LABELS`: the most likely tissue of every brain voxel; left and right meet at x = 0."""
    from scipy.ndimage import label

    tissue = np.argmax([grey, white, 255 - grey - white], axis=0)
    brain = template.data > 0
    fluid, _ = label(brain & (tissue == 2))
    ventricles = fluid == fluid[tuple(np.rint(template.grid.to_voxels(np.array(IN_VENTRICLE))).astype(int))]
    along_i = np.arange(tissue.shape[0])[:, None] * [1, 0, 0]
    right = (template.grid.to_physical(along_i)[:, 0] > 0)[:, None, None]
    # tissue 0 or 1 (grey, white) and side give labels 1 to 4; fluid outside the ventricles is background
    labels = np.where(tissue == 2, 5 * ventricles, 1 + 2 * tissue + right)
    return np.where(brain, labels, 0).astype(np.uint8)


def _lattice(template: Volume) -> Array:
    """Return the position of every fourth voxel along each axis inside the brain, (N, 3) RAS mm."""
    voxels = np.argwhere(template.data > 0)
    return template.grid.to_physical(voxels[(voxels % TRUTH_STEP == 0).all(axis=1)].astype(np.float64))


def _moving_grid(brain: Array) -> Grid:
    """Return a tilted LPS grid with thicker slices around points (N, 3) of moving space."""
    axes = rotation(MOVING_TILT_DEGREES) @ np.diag((-1.0, -1.0, 1.0))
    low, high = (brain @ axes).min(axis=0) - MARGIN_MM, (brain @ axes).max(axis=0) + MARGIN_MM
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = axes * MOVING_SPACING, axes @ low
    return Grid(tuple(np.ceil((high - low) / MOVING_SPACING).astype(int) + 1), affine)


def _rescan(rng: np.random.Generator, template: Volume, labels: Array, warp: KnownWarp) -> tuple[Array, Array]:
    """Return the moving scan (int16) and its labels, on the warp's grid."""
    voxels = template.grid.to_voxels(warp.voxels_to_fixed())
    image = interpolate(template.data / template.data.max(), voxels)
    brain, image = image > 0, image ** rng.uniform(1.3, 1.7)
    image *= 1 + 0.12 * np.clip(smooth_field(rng, warp.grid, 90), -2, 2)
    image += brain * rng.normal(0, 0.02, image.shape)
    return np.clip(np.rint(1000 * image), 0, None).astype(np.int16), interpolate(labels, voxels, order=0)


def _outcomes(pair: DemoPair, result) -> dict[str, StageOutcome]:
    """Return the outcome of each stage of a `runtime.Registration` of the pair."""
    from ...images.resampling.resample import resample

    fixed, moving = read_labels(pair.fixed_labels, "fixed labels"), result.labels
    outcomes = {}
    for stage, affine in (("headers only", np.eye(4)), ("affine initialisation", result.transform.affine)):
        labels = resample(moving.data, moving.grid, fixed.grid, affine, "nearest")
        error = error_mm(partial(move, affine), pair)
        outcomes[stage] = StageOutcome(*error, mean_dice(fixed.data, labels))
    error = error_mm(result.transform.points, pair)
    return outcomes | {"registered": StageOutcome(*error, mean_dice(fixed.data, result.warped_labels))}


def _table(outcomes: Mapping[str, StageOutcome]) -> list[str]:
    lines = [
        "",
        f"{'':<24}distance from the known warp      overlap of",
        f"{'':<24}mean          95th percentile     {len(LABELS)} structures (Dice)",
    ]
    for stage, it in outcomes.items():
        lines.append(f"  {stage:<22}{it.mean_mm:5.2f} mm      {it.percentile_95_mm:5.2f} mm            {it.dice:.3f}")
    return lines


def _what_to_open(folder: Path) -> list[str]:
    aligned = folder / "aligned"
    notes = {
        aligned / "report.html": "the result in a browser: flicker, maps, viewer, every figure",
        aligned / "preview.png": "the result in one picture",
        aligned / "warped.nii.gz": f"the moving scan on the fixed grid; lay it over {folder / 'fixed.nii.gz'}",
        aligned / "warp.nii.gz": "the displacement field, as ANTs and ITK read it",
        aligned / "report.json": "every stop decision, times, hashes",
        folder / TRUTH: "the known warp at points of the fixed brain, RAS mm",
    }
    width = max(len(str(path)) for path in notes) + 2
    return ["", "Open", *(f"  {path!s:<{width}}{note}" for path, note in notes.items())]
