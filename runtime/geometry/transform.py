"""Spatial transforms, fixed -> moving, and the files that carry them.

Inside, everything is RAS mm. The LPS convention of ITK appears only where its displacement files are written and read.
"""

from concurrent.futures import Executor
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import nibabel as nib
import numpy as np

from runtime.geometry.errors import InputError, explained, first_line
from runtime.geometry.flow import sample
from runtime.geometry.grid import Grid, check_affine
from runtime.geometry.volume import SCANNER, write_nifti, write_text

Array = np.ndarray
RAS_TO_LPS = (-1, -1, 1)
VECTOR_INTENT = 1007


@dataclass(frozen=True, eq=False)
class SpatialTransform:
    """An affine and a flow, one after the other, as one map from the fixed into the moving image's space.

    A point x of fixed space (RAS mm) goes to

        y = affine( W( w + flow(w) ) ),   w = W^-1 x

    with W the working grid's voxel -> RAS map and flow(w) trilinear. Outside the working grid the flow is continued by
    its nearest border value, so the map is continuous everywhere.

    Attributes:
        affine: (4, 4) RAS mm, fixed -> moving.
        flow: (3, I, J, K), voxels of `grid`; every axis has at least 2 voxels.
        grid: the working grid, a part of fixed space.

    Raises:
        InputError: if the flow's shape is not the grid's or the affine is no invertible 4x4 matrix.
    """

    affine: Array
    flow: Array
    grid: Grid

    def __post_init__(self) -> None:
        check_affine(self.affine, "affine")
        if self.flow.shape != (3, *self.grid.shape) or min(self.grid.shape) < 2:
            raise InputError(f"flow: got shape {self.flow.shape}, expected {(3, *self.grid.shape)}, 2 or more voxels")

    def points(self, points: Array) -> Array:
        """Where points of fixed space lie in moving space, (N, 3) -> (N, 3), RAS mm: the definition in NumPy."""
        voxels = self.grid.to_voxels(np.asarray(points, dtype=np.float64))
        inside = np.clip(voxels, 0, np.array(self.grid.shape) - 1)
        moved = self.grid.to_physical(voxels + sample(self.flow.astype(np.float64), inside.T).T)
        return moved @ self.affine[:3, :3].T + self.affine[:3, 3]

    def displacement(self, target: Grid) -> Array:
        """The whole transform as a displacement on a grid: ``points(x) - x`` at every voxel, compiled.

        Args:
            target: where it is wanted, usually the fixed image's grid.

        Returns:
            (I, J, K, 3) float32, RAS mm.
        """
        from runtime.resample import displacement_field

        linear = (self.affine @ self.grid.affine)[:3, :3]
        base = (self.affine - np.eye(4)) @ target.affine
        return displacement_field(self.flow, target.voxel_map(self.grid), base, linear, target.shape)


def read_affine(path: str | PathLike, argument: str) -> Array:
    """Read a plain text file of four rows of four numbers: RAS mm, fixed -> moving.

    Raises:
        InputError: missing or unreadable file, another number of entries, not invertible.
    """
    path = Path(path)
    with explained(argument):
        if not path.is_file():
            raise InputError(f"{argument}: {path} does not exist or is not a file")
    try:
        matrix = np.loadtxt(path, ndmin=2)
    except (ValueError, UnicodeDecodeError, OSError) as error:
        raise InputError(
            f"{argument}: {path} is no text file of four rows of four numbers ({first_line(error)})"
        ) from None
    check_affine(matrix, f"{argument}: {path}")
    return matrix


def write_affine(path: str | PathLike, matrix: Array) -> None:
    """Write a (4, 4) RAS mm affine, fixed -> moving, as `read_affine` reads it, without loss."""
    rows = "".join(" ".join(repr(float(value)) for value in row) + "\n" for row in matrix)
    write_text(path, "# 4x4, RAS mm, fixed to moving\n" + rows)


def write_itk_displacement(
    path: str | PathLike,
    displacement: Array,
    grid: Grid,
    codes: tuple[int, int] = (SCANNER, SCANNER),
    pool: Executor | None = None,
) -> None:
    """Write a displacement field as ANTs and ITK read it: shape (I, J, K, 1, 3), intent 1007, LPS mm.

    ITK holds no sheared grids: on one (``not grid.orthogonal``) the file is written but ITK refuses it.

    Args:
        path: ends in .nii or .nii.gz.
        displacement: (I, J, K, 3) RAS mm on `grid`, fixed -> moving.
        grid: the fixed image's.
        codes: NIfTI (sform, qform) codes of the fixed image.
        pool: compresses; None: threads of its own.
    """
    if displacement.shape != (*grid.shape, 3):
        raise InputError(f"displacement: got shape {displacement.shape}, expected {(*grid.shape, 3)}")
    values = displacement.astype(np.float32, copy=False)[:, :, :, None, :]
    write_nifti(path, values, grid, codes, intent=VECTOR_INTENT, signs=RAS_TO_LPS, pool=pool)


def read_itk_displacement(path: str | PathLike, argument: str = "displacement") -> tuple[Array, Grid]:
    """Read an ANTs or ITK displacement field.

    Returns:
        (displacement, grid): (I, J, K, 3) float32 RAS mm, and its grid.

    Raises:
        InputError: missing or unreadable file, or not of shape (I, J, K, 1, 3) with intent 1007.
    """
    try:
        image = nib.load(path)
        values = image.get_fdata(dtype=np.float32, caching="unchanged")
    except Exception as error:  # as in `volume`: damaged files raise errors of a dozen kinds
        raise InputError(f"{argument}: {path} cannot be read ({first_line(error)})") from None
    intent = int(image.header["intent_code"]) if "intent_code" in image.header else 0
    if values.ndim != 5 or values.shape[3:] != (1, 3) or intent != VECTOR_INTENT:
        raise InputError(
            f"{argument}: {path} has shape {values.shape} and intent {intent}, expected a displacement field of ITK, "
            f"(I, J, K, 1, 3) with intent {VECTOR_INTENT}"
        )
    return np.ascontiguousarray(values[:, :, :, 0, :]) * np.float32(RAS_TO_LPS), Grid(values.shape[:3], image.affine)
