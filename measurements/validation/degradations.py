"""Degraded scans, each change drawn from a fixed seed: thick slices, noise, another contrast, a bias field."""

from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter, uniform_filter1d

from runtime.geometry.grid import Grid
from runtime.images.formats.nifti_writer import write_volume
from runtime.images.volume import Volume

Array = np.ndarray
THICKNESS = 5  # voxels averaged into one slice, along the last axis
NOISE = 0.08  # standard deviation, of the 99th percentile of the brain
BIAS = 0.5  # largest change of the logarithm of the intensity
CONTRAST = ((0, 0.3, 0.6, 0.8, 1, 1.6), (0, 0.45, 0.62, 0.74, 0.8, 1))  # brings grey and white matter together


def thick(image: Array, chance: np.random.Generator) -> Array:
    """Average every five voxels along the last axis into one slice."""
    return uniform_filter1d(image, THICKNESS, axis=2, mode="constant")[:, :, THICKNESS // 2 :: THICKNESS]


def noise(image: Array, chance: np.random.Generator, strength: float = NOISE) -> Array:
    """Add Rician noise inside the brain."""
    real, imaginary = (strength * chance.standard_normal(image.shape) for _ in range(2))
    return np.hypot(image + real, imaginary) * (image > 0)


def contrast(image: Array, chance: np.random.Generator) -> Array:
    """Bring the intensities of grey and white matter together."""
    return np.interp(image, *CONTRAST)


def bias(image: Array, chance: np.random.Generator, strength: float = BIAS) -> Array:
    """Multiply by a smooth bias field."""
    field = gaussian_filter(chance.standard_normal(image.shape), min(image.shape) / 5)
    return image * np.exp(strength * field / np.abs(field).max())


DEGRADATIONS = {"thick": thick, "noise": noise, "contrast": contrast, "bias": bias}


def write_degraded(path: Path, scan: Volume, kind: str) -> None:
    """Write a scan after one of `DEGRADATIONS`; thick slices get their own grid."""
    scaled = scan.data / np.percentile(scan.data[scan.data > 0], 99)
    image = DEGRADATIONS[kind](scaled, np.random.default_rng(5)).astype(np.float32)
    affine = scan.grid.affine
    if kind == "thick":
        # Slice n averages the voxels around 5 n + 2, so the first slice is centred on voxel 2.
        step = np.diag([1.0, 1.0, THICKNESS, 1.0])
        step[2, 3] = THICKNESS // 2
        affine = affine @ step
    write_volume(path, image, Grid(image.shape, affine))
