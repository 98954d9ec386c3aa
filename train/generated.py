"""Pairs made on the fly: random anatomies seen through two random smooth deformations. No scan is needed.

A pair is a shared scene (a shape on a black ground, cut into a folded sheet, a core and deep structures), drawn twice
with small differences of anatomy, contrast and noise, each time through its own nearly invertible deformation. A scene
is all noise, or takes its large-scale layout from a template volume. Pair `n` depends on the seed and on `n` alone.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from runtime.geometry.errors import InputError
from runtime.geometry.grid import bounding_box, closest_ras, reorient_array
from runtime.geometry.intensity import PercentileRule
from runtime.geometry.volume import read_volume

MARGIN = 12
_SPLINE_DEVIATION = 0.479**1.5
MNI152 = "mni152"
TEMPLATE_SHARE = 0.65
CLEFT_SHARE = 0.8
GROUND = 0.03


@dataclass(frozen=True)
class Template:
    """A skull-stripped volume in [0, 1] and each voxel's depth below its surface in voxels, both (I, J, K)."""

    image: Tensor
    depth: Tensor


@dataclass(frozen=True)
class Scene:
    """What both images of a pair show, on the window's grid with `MARGIN` voxels more on each side.

    depth: millimetres below the outer surface, negative outside. folds: level function whose zero set is the outer
    face of the folded sheet. sheet: its thickness in the units of `folds`. texture: additive, unit deviation.
    deep: blobs and bands (level function, value), painted where `folds` is well inside.
    """

    depth: Tensor
    folds: Tensor
    sheet: float
    softness: float
    texture: Tensor
    deep: tuple[tuple[Tensor, float], ...]
    values: tuple[float, float, float]


def _spline_matrix(size: int, spacing: float, phase: float) -> Tensor:
    """Cubic B-spline weights (size, controls) of control points `spacing` voxels apart."""
    position = torch.arange(size, dtype=torch.float32) / spacing + phase + 1
    controls = int(size / spacing) + 5
    t = (position[:, None] - torch.arange(controls, dtype=torch.float32)).abs()
    return torch.where(t < 1, 2 / 3 - t**2 + t**3 / 2, (2 - t).clamp(min=0) ** 3 / 6)


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int, int], spacing: float) -> Tensor:
    """A smooth random field (I, J, K) of about unit deviation whose features are about `spacing` voxels wide."""
    matrices = [_spline_matrix(size, spacing, float(rng.random())) for size in shape]
    grid = torch.from_numpy(rng.standard_normal([m.shape[1] for m in matrices], dtype=np.float32))
    grid = torch.einsum("ia,abc->ibc", matrices[0], grid)
    return torch.matmul(torch.matmul(matrices[1], grid), matrices[2].T) / _SPLINE_DEVIATION


def _sample(volume: Tensor, coordinates: Tensor) -> Tensor:
    """Trilinear samples of (I, J, K) at voxel coordinates (3, A, B, C); the border's value outside."""
    size = torch.tensor(volume.shape, dtype=torch.float32).view(3, 1, 1, 1)
    grid = ((2 * coordinates + 1) / size - 1).permute(1, 2, 3, 0).flip(-1)
    return F.grid_sample(volume[None, None], grid[None], padding_mode="border", align_corners=False)[0, 0]


def _identity(shape: tuple[int, int, int]) -> Tensor:
    return torch.stack(torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in shape), indexing="ij"))


def _linear(rng: np.random.Generator, amount: float) -> Tensor:
    """A random 3x3 matrix near the identity: rotation, scale and shear of about `amount`."""
    return torch.from_numpy(np.eye(3, dtype=np.float32) + amount * rng.standard_normal((3, 3), dtype=np.float32))


def deformation(rng: np.random.Generator, shape: tuple[int, int, int]) -> Tensor:
    """A random displacement (3, I, J, K) in voxels: a small affine plus three scales, folding rarely if at all."""
    centred = _identity(shape) - torch.tensor(shape, dtype=torch.float32).view(3, 1, 1, 1) / 2
    flow = torch.einsum("ab,bijk->aijk", _linear(rng, 0.02) - torch.eye(3), centred)
    flow += torch.from_numpy(rng.normal(0, 1.0, 3).astype(np.float32)).view(3, 1, 1, 1)
    strength = rng.uniform(0.4, 1.0)
    for low, high, smallest, largest in ((32, 60, 1.5, 4.5), (18, 28, 0.5, 2.0), (9, 16, 0.3, 1.3)):
        spacing, deviation = rng.uniform(low, high), strength * rng.uniform(smallest, largest)
        flow += deviation * torch.stack([smooth_noise(rng, shape, spacing) for _ in range(3)])
    return flow


def _values(rng: np.random.Generator) -> tuple[float, float, float]:
    """Intensities outside the sheet, in it and below it: dark to bright as in T1 scans, or any three."""
    if rng.random() < 0.8:
        # Skull stripping often takes the fluid along and leaves its place black.
        outer = rng.uniform(0.0, 0.03) if rng.random() < 0.5 else rng.uniform(0.05, 0.4)
        return outer, rng.uniform(0.45, 0.72), rng.uniform(0.78, 1.0)
    low, middle, high = rng.permutation([rng.uniform(0.05, 0.3), rng.uniform(0.4, 0.6), rng.uniform(0.75, 1.0)])
    return float(low), float(middle), float(high)


def _deep_structures(rng: np.random.Generator, shape: tuple[int, int, int], count: int) -> tuple:
    """Blobs where noise is high, and thin sheets about the zero set of noise."""
    structures = []
    for _ in range(count):
        noise = smooth_noise(rng, shape, rng.uniform(10, 28))
        level = noise - rng.uniform(0.6, 1.4) if rng.random() < 0.7 else rng.uniform(0.08, 0.2) - noise.abs()
        structures.append((level, float(rng.uniform(0.05, 1.0))))
    return tuple(structures)


def _clefts(rng: np.random.Generator, depth: Tensor) -> Tensor:
    """Distance in voxels to thin winding clefts that run inwards from the surface, as sulci do: noise's zero set."""
    noise = smooth_noise(rng, tuple(depth.shape), rng.uniform(6, 13))
    slope = sum(derivative.square() for derivative in torch.gradient(noise)).sqrt()
    distance = noise.abs() / slope.clamp(min=0.4 * slope.mean())
    return distance - rng.uniform(0.2, 1.2) + 0.8 * (depth - rng.uniform(6, 22)).clamp(min=0)


def _noise_scene(rng: np.random.Generator, shape: tuple[int, int, int]) -> Scene:
    """A smooth random body; its folded sheet is a level set of depth plus noise."""
    whole = rng.random() < 0.25
    radii = torch.from_numpy(rng.uniform(*((30, 50) if whole else (50, 85)), 3).astype(np.float32)).view(3, 1, 1, 1)
    reach = np.maximum(radii.numpy().ravel() - (28 if whole else 10), 4)
    centre = torch.from_numpy((rng.uniform(-reach, reach) + np.array(shape) / 2).astype(np.float32)).view(3, 1, 1, 1)
    distance = ((_identity(shape) - centre) / radii).square().sum(0).sqrt()
    depth = (1 - distance) * radii.mean()
    depth = depth + 4 * smooth_noise(rng, shape, rng.uniform(25, 45)) + smooth_noise(rng, shape, rng.uniform(10, 16))
    amplitude = rng.uniform(3, 9) * torch.exp(-(depth - 8).clamp(min=0) / rng.uniform(8, 25))
    folds = depth - rng.uniform(1, 6) + amplitude * smooth_noise(rng, shape, rng.uniform(7, 14))
    if rng.random() < CLEFT_SHARE:
        folds = torch.minimum(folds, _clefts(rng, depth))
    return Scene(
        depth, folds, rng.uniform(2.2, 4.5), rng.uniform(0.3, 0.9), smooth_noise(rng, shape, rng.uniform(3, 8)),
        _deep_structures(rng, shape, int(rng.integers(2, 7))), _values(rng),
    )  # fmt: skip


def _template_scene(rng: np.random.Generator, shape: tuple[int, int, int], template: Template) -> Scene:
    """A random window of the template, deformed, its tissue borders folded anew by noise."""
    size = torch.tensor(template.image.shape, dtype=torch.float32).view(3, 1, 1, 1)
    zoom = rng.uniform(1.6, 2.1) if rng.random() < 0.15 else rng.uniform(0.85, 1.2)
    spread = np.maximum(np.array(template.image.shape) - 0.75 * zoom * np.array(shape), 0) / 2
    centre = size / 2 + torch.from_numpy(rng.uniform(-spread, spread).astype(np.float32)).view(3, 1, 1, 1)
    centred = _identity(shape) - torch.tensor(shape, dtype=torch.float32).view(3, 1, 1, 1) / 2
    if rng.random() < 0.5:
        centred[0] *= -1
    linear = _linear(rng, 0.05) * zoom
    coordinates = torch.einsum("ab,bijk->aijk", linear, centred + deformation(rng, shape)) + centre
    layout = _sample(template.image, coordinates)
    folding = rng.uniform(0.05, 0.22) * smooth_noise(rng, shape, rng.uniform(5, 11))
    folds = (layout - rng.uniform(0.5, 0.6) + folding) * 14
    if rng.random() < CLEFT_SHARE:
        folds = torch.minimum(folds, _clefts(rng, _sample(template.depth, coordinates)))
    # The template's own shades keep what lies between the three values apart, such as the deep grey matter.
    texture = smooth_noise(rng, shape, rng.uniform(3, 8)) + rng.uniform(0, 12) * (layout - 0.75)
    return Scene(
        (layout - 0.25) * 20, folds, rng.uniform(2.4, 4.4), rng.uniform(0.3, 1.2), texture,
        _deep_structures(rng, shape, int(rng.integers(0, 4))), _values(rng),
    )  # fmt: skip


def _paint(rng: np.random.Generator, scene: Scene) -> Tensor:
    """One image of the scene: the shared anatomy with its own small differences, values in about [0, 1]."""
    shape = tuple(scene.depth.shape)
    folds = scene.folds + rng.uniform(0.2, 1.2) * smooth_noise(rng, shape, rng.uniform(7, 14))
    outer, sheet, core = (value + rng.normal(0, 0.02) for value in scene.values)
    image = outer + (sheet - outer) * torch.sigmoid(folds / scene.softness)
    image += (core - sheet) * torch.sigmoid((folds - scene.sheet) / scene.softness)
    image += rng.uniform(0.0, 0.04) * scene.texture
    inside = torch.sigmoid((folds - 2 * scene.sheet) / scene.softness)
    for level, value in (*scene.deep, *_deep_structures(rng, shape, int(rng.integers(0, 2)))):
        image += (value - image) * inside * torch.sigmoid(level * 8)
    depth = scene.depth + rng.uniform(0, 0.8) * smooth_noise(rng, shape, rng.uniform(8, 20))
    return image.clamp(min=0) * torch.sigmoid(depth / 0.4)


def _blur(image: Tensor, weight: float) -> Tensor:
    """Mix with the neighbours along each axis: partial volume."""
    for axis in range(3):
        first, last = image.narrow(axis, 0, 1), image.narrow(axis, image.shape[axis] - 1, 1)
        padded = torch.cat((first, image, last), axis)
        ends = padded.narrow(axis, 0, image.shape[axis]) + padded.narrow(axis, 2, image.shape[axis])
        image = (1 - weight) * image + weight / 2 * ends
    return image


def _normalise(image: Tensor) -> Tensor:
    """By the intensity rule for MRI; an empty image stays empty."""
    return torch.from_numpy(PercentileRule().normalise(image.numpy())) if image.any() else image


def _acquire(rng: np.random.Generator, painted: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Deform, blur, shade and add noise to a painted scene, and normalise what lies in the window."""
    coordinates = _identity(shape) + deformation(rng, shape) + MARGIN
    image = _sample(painted, coordinates)
    ground = image < GROUND
    image = _blur(image, rng.uniform(0, 0.35)).clamp(min=0) ** rng.uniform(0.85, 1.18)
    image *= 1 + rng.uniform(0, 0.1) * smooth_noise(rng, shape, rng.uniform(35, 70))
    noise = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
    image += rng.uniform(0, 0.03) * noise
    return _normalise(image.clamp(min=1e-3).masked_fill(ground, 0))


def load_template(name: str | Path) -> Template:
    """A skull-stripped volume, cropped to its foreground; `mni152` is the one that ships with nilearn.

    Raises:
        InputError: the file is missing or is no volume with a background at 0.
    """
    if str(name) == MNI152:
        import nilearn.datasets

        name = Path(nilearn.datasets.__file__).parent / "data" / "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
    volume = read_volume(name, "template")
    data = PercentileRule().normalise(reorient_array(volume.data, *closest_ras(volume.grid.affine)), "template")
    first, last = bounding_box(data > 0)
    box = tuple(slice(max(a - 4, 0), b + 5) for a, b in zip(first, last, strict=True))
    image = np.ascontiguousarray(data[box])
    depth = distance_transform_edt(image > 0).astype(np.float32)
    return Template(torch.from_numpy(image), torch.from_numpy(depth))


@dataclass(frozen=True)
class GeneratedPairs:
    """Endless generated pairs. shape: the window (I, J, K), multiples of 8; template: see `load_template`."""

    shape: tuple[int, int, int]
    seed: int
    template: Template | None = None
    _latest: dict = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or any(size < 8 or size % 8 for size in self.shape):
            raise InputError(f"shape: got {self.shape}, expected three multiples of 8")

    def scene(self, rng: np.random.Generator) -> Scene:
        shape = tuple(size + 2 * MARGIN for size in self.shape)
        if self.template is not None and rng.random() < TEMPLATE_SHARE:
            return _template_scene(rng, shape, self.template)
        return _noise_scene(rng, shape)

    def pair(self, index: int) -> tuple[Tensor, Tensor]:
        """(moving, fixed), each (I, J, K) float32 in [0, 1], a function of the seed and `index` alone.

        An odd index is the pair before it the other way round: half the work, and no side looks like the moving one.
        """
        if index // 2 not in self._latest:
            self._latest.clear()
            self._latest[index // 2] = self._make(index // 2)
        first, second = self._latest[index // 2]
        return (second, first) if index % 2 else (first, second)

    def _make(self, index: int) -> tuple[Tensor, Tensor]:
        """Two images of one scene; scenes that leave most of the window empty are drawn again."""
        for attempt in range(20):
            rng = np.random.default_rng([self.seed, index, attempt])
            scene = self.scene(rng)
            first, second = (_acquire(rng, _paint(rng, scene), self.shape) for _ in range(2))
            if min((image > 0).float().mean() for image in (first, second)) > 0.2:
                break
        return first, second
