"""The affine start: fixed -> moving in RAS mm by correlation, coarse to fine, without any header being trusted.

Centres of mass, a search over rotations, then rigid and affine Gauss-Newton steps that maximise the enhanced
correlation coefficient (Evangelidis and Psarakis, IEEE TPAMI 30(10), 2008) with Levenberg-Marquardt damping: no step
is taken that lowers the correlation. Deterministic to the bit.
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numba
import numpy as np

from runtime.affine_kernels import MOMENTS, SUMS, block_means, correlation_moments, normal_equations
from runtime.geometry.errors import InputError
from runtime.geometry.grid import Grid, bounding_box, closest_ras, reorient, reorient_array
from runtime.geometry.intensity import FOREGROUND
from runtime.resample import smooth

Array = np.ndarray
FINEST_SHARE = 1 / 85  # finest spacing as a share of the fixed foreground's longest edge: about 2 mm for a head
LEVELS = (4, 2, 1)  # spacings, in units of the finest
MARGIN = 0.12  # of the longest edge, kept around the fixed foreground
SMALLEST = 8  # voxels along an axis below which a level does not go
CUT = 0.02  # share of a face of the image that is foreground from which the object counts as cut off there
OVERLAP = 0.25  # share of the fixed intensity that must fall on known parts of the moving image
ANGLES = (-30.0, 0.0, 30.0)  # degrees, about each axis
SHIFTS = (-0.25, 0.0, 0.25)  # along S, of the longest edge: necks move the centre of mass
REFINED = 4  # starts that get rigid steps
STEPS = 30
DETERMINANT = (0.3, 3.0)
STRETCH = (0.5, 2.0)  # singular values of a plausible affine
BLUR = 0.7  # voxels of each level
VOXELS_PER_THREAD = 150_000


@dataclass(frozen=True)
class Stage:
    """What one stage reached: its name, the spacing (mm) and the correlation at that spacing."""

    name: str
    spacing: float
    similarity: float


@dataclass(frozen=True, eq=False)
class AffineStart:
    """The result of `align`.

    Attributes:
        matrix: (4, 4) RAS mm, fixed -> moving.
        similarity_before: correlation at the finest spacing with the headers as they are.
        similarity_after: the same with `matrix`.
        stages: what led there.
        note: why the result is less than an affine, if it is.
    """

    matrix: Array
    similarity_before: float
    similarity_after: float
    stages: tuple[Stage, ...]
    note: str | None = None


@dataclass(frozen=True, eq=False)
class _Image:
    """One level of one image: voxels, grid, and the faces (3, 2) beyond which the object goes on unseen."""

    data: Array
    grid: Grid
    cut: Array

    @property
    def known(self) -> tuple[Array, Array]:
        """Lowest and highest voxel coordinates about which something is known."""
        last = np.array(self.grid.shape) - 1.0
        return np.where(self.cut[:, 0], 0.0, -np.inf), np.where(self.cut[:, 1], last, np.inf)


@dataclass(frozen=True, eq=False)
class _Level:
    fixed: _Image
    moving: _Image
    stages: list[Stage] = field(default_factory=list)

    @property
    def spacing(self) -> float:
        return float(np.mean(self.fixed.grid.spacing))

    @contextmanager
    def threads(self) -> Iterator[None]:
        """No more threads than there is work for: on coarse levels waking them takes longer than the sums."""
        allowed = numba.get_num_threads()
        numba.set_num_threads(min(allowed, 1 + self.fixed.data.size // VOXELS_PER_THREAD))
        try:
            yield
        finally:
            numba.set_num_threads(allowed)

    def similarity(self, matrix: Array) -> float:
        """Correlation for a physical map fixed -> moving; -1 where it means nothing."""
        slices = np.zeros((self.fixed.grid.shape[0], MOMENTS))
        voxels = self.fixed.grid.voxel_map(self.moving.grid, matrix)
        with self.threads():
            correlation_moments(self.fixed.data, self.moving.data, voxels, *self.moving.known, slices)
        return self.correlation(slices.sum(axis=0))

    def correlation(self, moments: Array) -> float:
        n, f, m, ff, mm, fm = moments
        if n < 8 or f < OVERLAP * float(self.fixed.data.sum(dtype=np.float64)):
            return -1.0
        norm = (ff - f * f / n) * (mm - m * m / n)
        return float((fm - f * m / n) / np.sqrt(norm)) if norm > 0 else -1.0


def align(fixed: Array, fixed_grid: Grid, moving: Array, moving_grid: Grid) -> AffineStart:
    """Find the affine that maps fixed to moving space.

    Args:
        fixed, moving: (I, J, K) float32 in [0, 1], background at 0, each on its own grid.
        fixed_grid, moving_grid: RAS mm.

    Returns:
        The best of headers, centres of mass, rigid and affine by correlation at the finest spacing.

    Raises:
        InputError: if an image is constant, or no start makes them correlate.
    """
    levels = _levels(_prepared(fixed, fixed_grid, "fixed"), _prepared(moving, moving_grid, "moving"))
    finest = levels[-1]
    headers, centres = np.eye(4), _centres(finest)
    rigid, stages = _best_rigid(levels[0], headers, centres)
    affine = rigid
    for level in levels:
        affine, similarity = _climb(level, affine, AFFINE)
        stages.append(Stage("affine", level.spacing, similarity))
    candidates, note = {"headers": headers, "centres of mass": centres, "rigid": rigid, "affine": affine}, None
    if not _plausible(affine):
        note = "the affine was implausible (volume or stretch); rigid is used"
        candidates.pop("affine")
        for level in levels[1:]:
            candidates["rigid"], similarity = _climb(level, candidates["rigid"], RIGID)
            stages.append(Stage("rigid", level.spacing, similarity))
    scores = {name: finest.similarity(matrix) for name, matrix in candidates.items()}
    best = max(scores, key=scores.get)
    if not scores[best] > 0:
        raise InputError(
            "affine start: fixed and moving do not correlate anywhere, expected two images of one body part and "
            "contrast; give --affine a matrix, or none to use the headers"
        )
    if best != "affine" and note is None:
        note = f"{best} correlates best and is used"
    return AffineStart(candidates[best], scores["headers"], scores[best], tuple(stages), note)


def _prepared(data: Array, grid: Grid, argument: str) -> _Image:
    """The image in closest RAS+ order, cut to its foreground; the same for every orientation of the same voxels."""
    if data.shape != grid.shape:
        raise InputError(f"{argument}: got shape {data.shape}, expected {grid.shape}, its grid's")
    mask = data > FOREGROUND
    if not mask.any():
        raise InputError(f"{argument}: is empty, expected an image with its foreground above {FOREGROUND}")
    first, last = bounding_box(mask)
    data = data[tuple(slice(a, b + 1) for a, b in zip(first, last, strict=True))]
    if data.min() == data.max():
        raise InputError(f"{argument}: is constant inside its foreground, expected an image with contrast to align")
    axes, signs = closest_ras(grid.affine)
    cut = _cut_faces(reorient_array(mask, axes, signs))
    grid = reorient(grid.crop(first, data.shape), axes, signs)
    return _Image(np.ascontiguousarray(reorient_array(data, axes, signs), dtype=np.float32), grid, cut)


def _cut_faces(mask: Array) -> Array:
    """(3, 2) bool: the faces of the image (low, high) that cut through the foreground."""
    cut = np.zeros((3, 2), dtype=bool)
    for axis, side in itertools.product(range(3), (0, 1)):
        face: list[slice | int] = [slice(None)] * 3
        face[axis] = -side
        cut[axis, side] = mask[tuple(face)].mean() > CUT
    return cut


def _levels(fixed: _Image, moving: _Image) -> list[_Level]:
    """Coarse to fine. The fixed image gets a margin: moving tissue where fixed has none must count."""
    edge = float((np.array(fixed.grid.shape) * fixed.grid.spacing).max())
    fixed = _padded(fixed, MARGIN * edge)
    moving = _padded(moving, 2 * max(LEVELS) * FINEST_SHARE * edge)
    levels: list[_Level] = []
    for step in sorted(LEVELS):
        spacing = step * FINEST_SHARE * edge
        fixed, moving = _coarser(fixed, spacing), _coarser(moving, spacing)
        levels.insert(0, _Level(_blurred(fixed), _blurred(moving)))
    return levels


def _padded(image: _Image, margin: float) -> _Image:
    """Zeros added on the sides where the object is not cut off."""
    voxels = np.ceil(margin / np.array(image.grid.spacing)).astype(int)
    width = np.where(image.cut, 0, voxels[:, None])
    return _Image(np.pad(image.data, width), _grown(image.grid, width), image.cut)


def _grown(grid: Grid, width: Array) -> Grid:
    return grid.crop(-width[:, 0], tuple(np.array(grid.shape) + width.sum(axis=1)))


def _coarser(image: _Image, spacing: float) -> _Image:
    """Means of blocks, about `spacing` wide; axes that would become too short keep their voxels."""
    shape, old = np.array(image.grid.shape), np.array(image.grid.spacing)
    factors = np.clip(np.rint(spacing / old), 1, np.maximum(shape // SMALLEST, 1)).astype(int)
    if (factors == 1).all():
        return image
    data = np.empty(tuple(shape // factors), np.float32)
    block_means(image.data, tuple(int(factor) for factor in factors), data)
    step = np.eye(4)
    step[:3, :3] = np.diag(factors)
    step[:3, 3] = (factors - 1) / 2
    return _Image(data, Grid(data.shape, image.grid.affine @ step), image.cut)


def _blurred(image: _Image) -> _Image:
    return _Image(smooth(image.data, (BLUR,) * 3), image.grid, image.cut)


def _centres(level: _Level) -> Array:
    """Translation that brings the fixed centre of mass onto the moving one."""
    matrix = np.eye(4)
    matrix[:3, 3] = _centre(level.moving) - _centre(level.fixed)
    return matrix


def _centre(image: _Image) -> Array:
    """Centre of mass, RAS mm."""
    mass = [image.data.sum(axis=tuple(a for a in range(3) if a != axis), dtype=np.float64) for axis in range(3)]
    return image.grid.to_physical(np.array([np.sum(np.arange(len(m)) * m) / np.sum(m) for m in mass]))


def _best_rigid(level: _Level, headers: Array, centres: Array) -> tuple[Array, list[Stage]]:
    """Rotations and shifts about the centres of mass, the best of them (and the headers) refined by rigid steps."""
    edge = float((np.array(level.fixed.grid.shape) * level.fixed.grid.spacing).max())
    pivot = _centre(level.fixed)
    starts = [headers, centres]
    for angles, shift in itertools.product(itertools.product(ANGLES, repeat=3), SHIFTS):
        starts.append(_turned(centres, np.radians(angles), pivot, shift * edge))
    scores = [level.similarity(start) for start in starts]
    order = sorted(range(len(starts)), key=lambda index: -scores[index])[:REFINED]
    chosen = sorted({0, 1, *order})
    found = [_climb(level, starts[index], RIGID) for index in chosen]
    best = max(range(len(found)), key=lambda index: found[index][1])
    stages = [
        Stage("headers", level.spacing, scores[0]),
        Stage("centres of mass", level.spacing, scores[1]),
        Stage("rotation search", level.spacing, max(scores)),
        Stage("rigid", level.spacing, found[best][1]),
    ]
    return found[best][0], stages


def _turned(matrix: Array, angles: Array, pivot: Array, shift: float) -> Array:
    """Rotate fixed space about `pivot` (I, then J, then K axis, radians), then apply `matrix` and a shift along S."""
    rotation = np.eye(4)
    for axis, angle in enumerate(angles):
        a, b = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[b, a], turn[a, b] = np.sin(angle), -np.sin(angle)
        rotation[:3, :3] = turn @ rotation[:3, :3]
    rotation[:3, 3] = pivot - rotation[:3, :3] @ pivot
    result = matrix @ rotation
    result[2, 3] += shift
    return result


def _elementary(row: int, column: int) -> Array:
    matrix = np.zeros((4, 4))
    matrix[row, column] = 1
    return matrix


_SHIFTS = [_elementary(row, 3) for row in range(3)]
RIGID = [_elementary(b, a) - _elementary(a, b) for a, b in ((0, 1), (1, 2), (2, 0))] + _SHIFTS
AFFINE = [_elementary(row, column) for row in range(3) for column in range(3)] + _SHIFTS


def _climb(level: _Level, matrix: Array, generators: list[Array]) -> tuple[Array, float]:
    """Gauss-Newton with damping until a step moves no corner by more than a hundredth of a voxel.

    Args:
        level: images.
        matrix: start, (4, 4) RAS mm.
        generators: infinitesimal moves in moving space; six keep a rigid matrix rigid.

    Returns:
        (matrix, correlation): never worse than the start.
    """
    equations = _Equations(level)
    current, damping = equations.at(matrix), 1e-3
    for _ in range(STEPS):
        pivot = equations.pivot(matrix)
        step = current.solve(equations.jacobian(matrix, pivot, generators), damping)
        if step is None:
            break
        candidate = _moved(matrix, pivot, generators, step)
        trial = equations.at(candidate)
        if trial.correlation > current.correlation:
            size = equations.largest_move(matrix, candidate)
            matrix, current, damping = candidate, trial, damping / 10
            if size < 0.01 * level.spacing:
                break
        else:
            damping = max(10 * damping, 1e-2)
            if damping > 1e3:
                break
    return matrix, current.correlation


def _moved(matrix: Array, pivot: Array, generators: list[Array], step: Array) -> Array:
    change = np.eye(4) + sum(size * generator for size, generator in zip(step, generators, strict=True))
    if len(generators) == len(RIGID):
        left, _, right = np.linalg.svd(change[:3, :3])
        change[:3, :3] = left @ right
    return pivot @ change @ np.linalg.inv(pivot) @ matrix


@dataclass(frozen=True, eq=False)
class _Normal:
    """Sums at one matrix: Hessian (12, 12), gradients against fixed and moving (12), all about the means."""

    correlation: float
    hessian: Array
    against_fixed: Array
    against_moving: Array
    covariances: tuple[float, float, float]

    def solve(self, jacobian: Array, damping: float) -> Array | None:
        """The step along the columns of `jacobian` (12, parameters); None where there is none."""
        hessian = jacobian.T @ self.hessian @ jacobian
        b_fixed, b_moving = jacobian.T @ self.against_fixed, jacobian.T @ self.against_moving
        hessian = hessian + damping * np.diag(np.diag(hessian))
        try:
            x_fixed, x_moving = np.linalg.solve(hessian, np.stack([b_fixed, b_moving], axis=1)).T
        except np.linalg.LinAlgError:
            return None
        ff, mm, fm = self.covariances
        below = fm - b_fixed @ x_moving
        gain = (mm - b_moving @ x_moving) / below if below > 0 else np.sqrt(mm / ff)
        step = gain * x_fixed - x_moving
        return step if np.isfinite(step).all() else None


class _Equations:
    """Normal equations of one level, with coordinates scaled so that all parameters are of one size."""

    def __init__(self, level: _Level) -> None:
        shape = np.array(level.fixed.grid.shape)
        self.level = level
        self.centre, self.scale = (shape - 1) / 2, np.maximum(shape / 2, 1)
        unit = np.eye(4)
        unit[:3, :3], unit[:3, 3] = np.diag(self.scale), self.centre
        self.place = level.fixed.grid.affine @ unit  # normalised fixed coordinates -> RAS
        self.to_moving = np.linalg.inv(level.moving.grid.affine)
        self.corners = np.array([(*corner, 1.0) for corner in itertools.product((-1, 1), repeat=3)]).T

    def at(self, matrix: Array) -> _Normal:
        level = self.level
        slices = np.zeros((level.fixed.grid.shape[0], SUMS))
        voxels = level.fixed.grid.voxel_map(level.moving.grid, matrix)
        with level.threads():
            normal_equations(
                level.fixed.data, level.moving.data, voxels, *level.moving.known, self.centre, self.scale, slices
            )
        return _normal(slices.sum(axis=0), level.correlation)

    def pivot(self, matrix: Array) -> Array:
        """Moves are made about the image's centre and in units of its radius."""
        pivot = np.eye(4)
        pivot[:3, :3] *= np.linalg.norm(self.place[:3, :3], axis=0).mean()
        pivot[:3, 3] = (matrix @ self.place)[:3, 3]
        return pivot

    def jacobian(self, matrix: Array, pivot: Array, generators: list[Array]) -> Array:
        """Derivative of the twelve entries fixed -> moving voxel with respect to the generators, (12, parameters)."""
        behind = np.linalg.inv(pivot) @ matrix @ self.place
        ahead = (self.to_moving @ pivot)[:3]
        return np.stack([(ahead @ generator @ behind).ravel() for generator in generators], axis=1)

    def largest_move(self, before: Array, after: Array) -> float:
        """How far the corners of the fixed image move, mm."""
        return float(np.linalg.norm(((after - before) @ self.place @ self.corners)[:3], axis=0).max())


def _normal(sums: Array, correlation: Callable[[Array], float]) -> _Normal:
    n, f, m, ff, mm, fm = sums[:MOMENTS]
    j, jf, jm = sums[MOMENTS : MOMENTS + 36].reshape(3, 12)
    packed = iter(sums[MOMENTS + 36 :])
    hessian = np.zeros((3, 4, 3, 4))
    for a in range(3):
        for b in range(a, 3):
            for p in range(4):
                for q in range(p, 4):
                    value = next(packed)
                    for one, two in ((a, b), (b, a)):
                        hessian[one, p, two, q] = hessian[one, q, two, p] = value
    n = max(n, 1.0)
    return _Normal(
        correlation(sums[:MOMENTS]),
        hessian.reshape(12, 12) - np.outer(j, j) / n,
        jf - j * f / n,
        jm - j * m / n,
        (ff - f * f / n, mm - m * m / n, fm - f * m / n),
    )


def _plausible(matrix: Array) -> bool:
    stretch = np.linalg.svd(matrix[:3, :3], compute_uv=False)
    volume = np.linalg.det(matrix[:3, :3])
    return bool(DETERMINANT[0] <= volume <= DETERMINANT[1] and STRETCH[0] <= stretch[-1] and stretch[0] <= STRETCH[1])
