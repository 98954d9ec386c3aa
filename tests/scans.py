"""Small scans for tests: a body of soft blobs whose value is known at every point of space, on any grid."""

from pathlib import Path

import numpy as np

from runtime.geometry.grid import Grid
from runtime.images.formats.nifti_writer import write_volume

OBLIQUE = np.array([[0.96, -0.28, 0.0], [0.28, 0.96, 0.0], [0.0, 0.0, 1.0]])
CENTRE = np.array([5.0, -12.0, 20.0])


def body(points: np.ndarray) -> np.ndarray:
    """Intensity, 0 to about 900, at RAS points (..., 3) in mm: an ellipsoid of 13 x 16 x 12 mm with bumps inside."""
    x, y, z = np.moveaxis(points - CENTRE, -1, 0)
    inside = 1 / (1 + np.exp(np.clip(8 * ((x / 13) ** 2 + (y / 16) ** 2 + (z / 12) ** 2 - 1), -30, 30)))
    bumps = np.sin(x / 2.5) * np.cos(y / 3) + np.sin(z / 2 + x / 5) + np.cos((x + y - z) / 3.5)
    return np.where(inside > 1e-3, inside * (500 + 130 * bumps), 0.0)


def grid(shape=(36, 42, 34), spacing=(1.0, 1.0, 1.0), rotation=None, axes="RAS") -> Grid:
    """A grid centred on the body; `axes` such as "LPS" or "PIR" names its voxel order."""
    columns = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}
    directions = np.array([columns[letter] for letter in axes], float).T
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) if rotation is None else rotation) @ directions @ np.diag(spacing)
    affine[:3, 3] = CENTRE - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(shape, affine)


def scan(place: Grid, move=lambda points: points) -> np.ndarray:
    """The body seen through a map of points (RAS mm), float32 on a grid."""
    voxels = np.stack(np.meshgrid(*(np.arange(size) for size in place.shape), indexing="ij"), axis=-1)
    return body(move(place.to_physical(voxels))).astype(np.float32)


def bend(points: np.ndarray) -> np.ndarray:
    """A smooth map of points, up to about 1.5 mm."""
    x, y, z = np.moveaxis(points - CENTRE, -1, 0)
    return points + np.stack((np.sin(y / 9), 1.2 * np.cos(z / 8), np.sin(x / 10) - 0.5), axis=-1)


def write_scan(path: Path, place: Grid, move=lambda points: points, dtype=np.int16) -> Path:
    write_volume(path, np.rint(scan(place, move)), place, dtype=dtype)
    return path


def write_labels(path: Path, place: Grid, move=lambda points: points) -> Path:
    """Three nested labels, 0 outside: 10, 250, 1035 from the border inwards."""
    levels = np.digitize(scan(place, move), (150, 450, 650))
    write_volume(path, np.array((0, 10, 250, 1035), np.int16)[levels], place)
    return path
