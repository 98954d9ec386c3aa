"""Native scans to prepare: the body of `tests.scans` in three poses and voxel orders, with labels and a list."""

from pathlib import Path

import numpy as np

from runtime.images.volume import read_volume
from runtime.workflows.preparation import Preparation, PrepareOptions
from tests import scans

SHAPE = (40, 48, 40)


def affine_map(degrees: float, scale: float, shift=(0.0, 0.0, 0.0)) -> np.ndarray:
    """Return an affine (4, 4): rotation about S through the body's centre, scaling, and a shift in mm."""
    angle = np.radians(degrees)
    matrix = np.eye(4)
    matrix[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    matrix[:3, :3] *= scale
    matrix[:3, 3] = scans.CENTRE + shift - matrix[:3, :3] @ scans.CENTRE
    return matrix


def moved(matrix: np.ndarray):
    """Return the map for `scans.scan` that moves the body by `matrix`: its point x lies at ``matrix @ x``."""
    inverse = np.linalg.inv(matrix)
    return lambda points: points @ inverse[:3, :3].T + inverse[:3, 3]


TURNED = affine_map(10, 1.1, (4, -3, 5))
PLACES = {
    "first": (scans.grid((44, 50, 42)), np.eye(4)),
    "turned": (scans.grid((56, 60, 54), axes="LPS"), TURNED),
    "shifted": (scans.grid((60, 64, 56), axes="PIR"), affine_map(-6, 0.95, (-5, 4, 3))),
}


def write_native(folder: Path) -> Path:
    """Write the three scans and list.csv into a new folder."""
    folder.mkdir()
    for name, (place, matrix) in PLACES.items():
        scans.write_scan(folder / f"{name}.nii.gz", place, moved(matrix))
        scans.write_labels(folder / f"{name}_labels.nii.gz", place, moved(matrix))
    write_list(folder, "image,labels", *(f"{name}.nii.gz,{name}_labels.nii.gz" for name in PLACES))
    return folder


def write_list(folder: Path, *lines: str) -> None:
    (folder / "list.csv").write_text("\n".join(lines) + "\n")


def options(native: Path, output: Path, **others) -> PrepareOptions:
    """Return options for list.csv of a folder, aligned with its first scan, in this process."""
    choices = {"data": str(native / "list.csv"), "reference": "first", "shape": SHAPE, "jobs": 1} | others
    return PrepareOptions(output=output, **choices)


def image_of(result: Preparation, name: str) -> np.ndarray:
    return read_volume(result.folder / "images" / f"{name}.nii.gz", "image").data
