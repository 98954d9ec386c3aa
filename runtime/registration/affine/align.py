"""Affine initialisation: fixed -> moving in RAS mm by correlation, coarse to fine, even if a header is wrong.

Start from the centres of mass and a grid of rotations, optimise rigid, then affine parameters on the whole images,
then refine on the detail inside them (`runtime.registration.affine.detail`), whose correlation selects the result.
Deterministic to the bit.
"""

import itertools
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numba
import numpy as np

from ...errors import InputError
from ...geometry.field_of_view import FieldOfView
from ...geometry.grid import Grid
from ...types import Array
from .detail import MIN_DETAIL_CORRELATION, ascend_detail, detail, details_correlate
from .gauss_newton import AFFINE, RIGID, ascend
from .limits import LIMITS, Limits
from .pyramid import Level, build_levels, cropped_to_foreground, longest_edge
from .rotations import REORIENTATIONS, TILTS, describe_orientation, nearest_orientation

# Correlations below which the orientation in a header may be wrong: of details at the finest spacing (pairs of brains
# reach 0.2 to 0.37, rotated ones 0.02 to 0.13), of whole images at the coarsest (0.985 to 0.993; 0.90 to 0.974).
MIN_UNROTATED = (0.16, 0.985)
ROTATION_GAIN = 0.05  # by which the detail's correlation must be higher after a rotated start
SHIFTS = (-0.25, 0.0, 0.25)  # along S, in longest edges: necks move the centre of mass
REFINED_STARTS = 10  # number of best starts that get rigid steps
HEADER_TOLERANCE = 1e-5  # the headers are kept if no candidate is better by more than this correlation
KINDS = {"rigid": RIGID, "affine": AFFINE}


@dataclass(frozen=True)
class Stage:
    """The outcome of one stage: its name, the spacing (mm) and the correlation at that spacing."""

    name: str
    spacing: float
    similarity: float


@dataclass(frozen=True, eq=False)
class AffineInitialisation:
    """The result of `align`.

    Attributes:
        matrix: (4, 4) RAS mm, fixed -> moving.
        similarity_before: correlation of the whole images at the finest spacing, with the headers alone.
        similarity_after: the same with `matrix`.
        detail_before, detail_after: the same for the details inside them, which decide where they are similar.
        stages: the stages that led there.
        used: the best of "headers", "centres of mass", "rigid" and "affine", which is `matrix`.
        note: a warning about the result, or None.
    """

    matrix: Array
    similarity_before: float
    similarity_after: float
    detail_before: float
    detail_after: float
    stages: tuple[Stage, ...]
    used: str
    note: str | None = None

    @property
    def may_be_rotated(self) -> bool:
        """True if the images correlate as little as two that are rotated against each other."""
        coarse = next((stage.similarity for stage in self.stages if stage.name == "affine"), 1.0)
        return self.detail_after < MIN_UNROTATED[0] or coarse < MIN_UNROTATED[1]


class FixedPyramid:
    """The pyramid of a fixed image, for `align` with any number of moving ones.

    Args:
        fixed: (I, J, K) float32 in [0, 1], background at 0.
        grid: RAS mm.
        holes: (I, J, K) bool, where the image is unknown and 0; None: nowhere.
        view: field of view of the scan; None: it is cut off at no side but the image's border.

    Raises:
        InputError: if the image is constant.
    """

    def __init__(self, fixed: Array, grid: Grid, holes: Array | None = None, view: FieldOfView | None = None) -> None:
        image = cropped_to_foreground(fixed, grid, "fixed", holes, view)
        self._edge = longest_edge(image)
        self._levels = build_levels(image, self._edge)
        self._details = [detail(level, level.spacing) for level in self._levels[1:]]

    def align(self, moving: Array, grid: Grid, holes: Array | None = None) -> AffineInitialisation:
        """Align a moving image, as the function `align`."""
        return self.pair_with(moving, grid, holes).align()

    def pair_with(
        self, moving: Array, grid: Grid, holes: Array | None = None, view: FieldOfView | None = None
    ) -> "PairPyramid":
        """Return both images, level by level; InputError if the moving one is constant."""
        images = build_levels(cropped_to_foreground(moving, grid, "moving", holes, view), self._edge)
        levels = [Level(*both) for both in zip(self._levels, images, strict=True)]
        details = [
            Level(fixed, detail(level.moving, level.spacing))
            for fixed, level in zip(self._details, levels[1:], strict=True)
        ]
        return PairPyramid(levels, details)


@dataclass(frozen=True, eq=False)
class PairPyramid:
    """A fixed and a moving image, coarse to fine.

    Attributes:
        levels: the whole images.
        details: their details, for all levels but the coarsest.
    """

    levels: list[Level]
    details: list[Level]

    def align(self, kind: str = "auto", limits: Limits = LIMITS) -> AffineInitialisation:
        """Align as the function `align`; for "rigid" or "affine", take the result of these steps whatever it is.

        If the details hardly correlate in the orientation of the headers, the other orientations are searched too.

        Args:
            kind: "auto", "rigid" or "affine".
            limits: limits of a plausible affine.

        Raises:
            InputError: the images do not correlate from any start, or a requested affine is beyond the limits.
        """
        best, error = self._attempt(kind, limits, reoriented=False)
        if best is None or best.may_be_rotated:
            other, _ = self._attempt(kind, limits, reoriented=True)
            needed = MIN_DETAIL_CORRELATION
            if best is not None:
                needed = max(best.detail_after + ROTATION_GAIN, needed)
            best = other if other is not None and other.detail_after > needed else best
        if best is None:
            assert error is not None  # of the first attempt
            raise error
        rigid = nearest_rigid(best.matrix, self.levels[-1].fixed.centre)
        if rotation := describe_orientation(nearest_orientation(rigid)):
            note = (
                f"the moving scan's content is rotated relative to its header ({rotation}); check its orientation, and "
                "left and right: a header that mirrors an axis looks the same"
            )
            return replace(best, note=note if best.note is None else f"{note}; {best.note}")
        return best

    def _attempt(
        self, kind: str, limits: Limits, reoriented: bool
    ) -> tuple[AffineInitialisation | None, InputError | None]:
        try:
            return self._aligned(kind, limits, reoriented), None
        except InputError as error:
            return None, error

    def _aligned(self, kind: str, limits: Limits, reoriented: bool) -> AffineInitialisation:
        """Align from starts around the orientation of the headers or, if `reoriented`, around each of the others.

        Raises:
            InputError: see `align`.
        """
        whole, inside = self.levels[-1], self.details[-1]
        candidates = {"headers": np.eye(4), "centres of mass": _centres(whole)}
        starts = _rotated_starts(self.levels[0], candidates["centres of mass"], REORIENTATIONS if reoriented else TILTS)
        if not reoriented:
            starts = [*candidates.values(), *starts]
        rigid, affine, stages = _best_start(self.levels[0], limits, starts, 0 if reoriented else len(candidates))
        used, note, (matrix, steps) = "affine", None, self.refined(affine, "affine")
        if kind == "rigid":
            used, (matrix, steps) = kind, self.refined(nearest_rigid(matrix, whole.fixed.centre), kind)
        elif not limits.allow(matrix):
            volume = np.linalg.det(matrix[:3, :3])
            note = (
                f"the affine was implausible (volume factor {volume:.3g}, expected {limits.smallest:g} to "
                f"{limits.largest:g}, or stretch)"
            )
            if kind == "affine":
                raise InputError(f"--affine: {note}; take rigid, or for children and animals a wider --volume-factor")
            note += " and is not used; for children and animals widen --volume-factor"
            used, (matrix, steps) = "rigid", self.refined(rigid, "rigid")
        candidates = {**candidates, used: matrix} if kind == "auto" else {"headers": np.eye(4), used: matrix}
        best = _best(inside if details_correlate(inside, matrix) else whole, candidates) if kind == "auto" else used
        before, after = (self._correlations(candidates[name]) for name in ("headers", best))
        if not after[0] > 0:
            raise InputError(
                "--affine: got fixed and moving scans that do not correlate from any start, expected two of one body "
                "part and contrast; give --affine a transform file, or none to use the headers"
            )
        found = candidates[best]
        return AffineInitialisation(found, before[0], after[0], before[1], after[1], (*stages, *steps), best, note)

    def _correlations(self, matrix: Array) -> tuple[float, float]:
        """Return the correlations of the whole images and of the details, at the finest spacing."""
        return self.levels[-1].similarity(matrix), self.details[-1].similarity(matrix)

    def refined(self, matrix: Array, kind: str) -> tuple[Array, list[Stage]]:
        """Refine a matrix by rigid or affine steps on each level, coarse to fine, then on the details."""
        stages = []
        for level in self.levels:
            matrix, similarity = ascend(level, matrix, KINDS[kind])
            stages.append(Stage(kind, level.spacing, similarity))
        matrix = ascend_detail(self.details, matrix, KINDS[kind])
        finest = self.details[-1]
        return matrix, [*stages, Stage(f"{kind}, detail", finest.spacing, finest.similarity(matrix))]


def align(fixed: Array, fixed_grid: Grid, moving: Array, moving_grid: Grid) -> AffineInitialisation:
    """Find the affine that maps fixed to moving space.

    Args:
        fixed, moving: (I, J, K) float32 in [0, 1], background at 0, each on its own grid.
        fixed_grid, moving_grid: RAS mm.

    Returns:
        The best of headers, centres of mass, rigid and affine by correlation at the finest spacing: of the details
        inside the images, or of whole images if the details are not similar.

    Raises:
        InputError: an image is constant, or the images do not correlate from any start.
    """
    return FixedPyramid(fixed, fixed_grid).align(moving, moving_grid)


def _best(level: Level, candidates: dict[str, Array]) -> str:
    """Return the name of the matrix with the highest correlation; headers that are equally good win."""
    scores = {name: level.similarity(matrix) for name, matrix in candidates.items()}
    return max(scores, key=lambda name: scores[name] + (HEADER_TOLERANCE if name == "headers" else 0))


def _centres(level: Level) -> Array:
    """Return the translation of the fixed centre of mass onto the moving one."""
    matrix = np.eye(4)
    matrix[:3, 3] = level.moving.centre - level.fixed.centre
    return matrix


def nearest_rigid(matrix: Array, centre: Array) -> Array:
    """Return the rotation nearest to an affine map (4, 4), with the shift that maps `centre` (3,) as the map does."""
    left, _, right = np.linalg.svd(matrix[:3, :3])
    rigid = np.eye(4)
    rigid[:3, :3] = left @ np.diag((1, 1, np.sign(np.linalg.det(left @ right)))) @ right
    rigid[:3, 3] = matrix[:3, :3] @ centre + matrix[:3, 3] - rigid[:3, :3] @ centre
    return rigid


def _best_start(level: Level, limits: Limits, starts: list[Array], kept: int) -> tuple[Array, Array, list[Stage]]:
    """Refine the best of the starts, and the first `kept`, rigidly, then affinely, and return the best result.

    A wrong rotation can beat the right one as long as sizes differ, so the affine decides.

    Returns:
        (rigid, affine, stages) from the start with the highest final correlation.
    """
    with _one_thread_each() as pool:
        scores = list(pool.map(level.similarity, starts))
        order = sorted(range(len(starts)), key=lambda index: -scores[index])[:REFINED_STARTS]
        rigids = list(pool.map(lambda index: ascend(level, starts[index], RIGID), sorted({*range(kept), *order})))
        affines = list(pool.map(lambda rigid: ascend(level, rigid[0], AFFINE), rigids))
    plausible = [affine if limits.allow(affine[0]) else rigid for rigid, affine in zip(rigids, affines, strict=True)]
    best = max(range(len(rigids)), key=lambda index: plausible[index][1])
    reached = dict(zip(("headers", "centres of mass")[:kept], scores, strict=False))
    reached |= {"rotation search": max(scores), "rigid": rigids[best][1], "affine": affines[best][1]}
    return rigids[best][0], affines[best][0], [Stage(name, level.spacing, score) for name, score in reached.items()]


def _one_thread_each() -> ThreadPoolExecutor:
    """Return a pool for tasks on coarse levels, which are too small for several threads: each runs on one thread."""
    return ThreadPoolExecutor(numba.get_num_threads(), initializer=numba.set_num_threads, initargs=(1,))


def _rotated_starts(level: Level, centres: Array, rotations: Iterable[Array]) -> list[Array]:
    """Return `centres` after each rotation (3, 3) of fixed space about its centre of mass, with three S shifts."""
    edge = float((np.array(level.fixed.grid.shape) * level.fixed.grid.spacing).max())
    starts = []
    for rotation, shift in itertools.product(rotations, SHIFTS):
        about_centre = np.eye(4)
        about_centre[:3, :3] = rotation
        about_centre[:3, 3] = level.fixed.centre - rotation @ level.fixed.centre
        start = centres @ about_centre
        start[2, 3] += shift * edge
        starts.append(start)
    return starts
