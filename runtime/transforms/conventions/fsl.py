"""FSL: relative warps (``applywarp --rel -w``) and FLIRT's matrices (``-applyxfm -init``).

FSL measures in mm of *scaled voxels*, one frame for each image: F v = spacing * v, and if the image's affine has a
positive determinant, the first axis is reversed, (I - 1 - i) * spacing. With W and F of both images

    T(W v) = W_end F_end^-1 ( F_start v + s(v) )

Shape (I, J, K, 3), intent 2006; the file holds only W_start and the shape, so the end's grid has to be given.

A FLIRT matrix M maps the moving (``-in``) into the fixed frame (``-ref``): T = W_end F_end^-1 M^-1 F_start W_start^-1.

Source: FSL's FLIRT FAQ, "What is the format of the matrix used by FLIRT, and how does it relate to the transformation
parameters?"; MISCMATHS, ``write_ascii_matrix``, for the blanks in its files; fslpy's documentation of
``fsl.transform.fnirt`` and ``fsl.data.image.Nifti.getAffine``.
"""

import numpy as np

from ...errors import InputError
from ...geometry.grid import Grid
from ...types import Array
from ..spaces import Space
from .frames import Frame

INTENT = 2006
OTHER_INTENTS = range(2007, 2019)  # coefficients of splines and the like


def scaled_voxels(grid: Grid) -> Array:
    """Return F, (4, 4): voxel -> FSL's mm of an image."""
    result = np.diag([*grid.spacing, 1.0])
    if np.linalg.det(grid.affine[:3, :3]) > 0:
        result[0, 0], result[0, 3] = -grid.spacing[0], (grid.shape[0] - 1) * grid.spacing[0]
    return result


def to_physical(grid: Grid) -> Array:
    """Return W F^-1, (4, 4): FSL's mm -> RAS mm."""
    return grid.affine @ np.linalg.inv(scaled_voxels(grid))


def frame(start: Grid, end: Grid | None) -> Frame:
    """Return the constants of a warp on `start`: x + W F^-1 s(v), then from the start's frame into the end's."""
    begin = to_physical(start)
    return Frame(start, begin[:3, :3], _end_to_physical(end) @ np.linalg.inv(begin))


def _end_to_physical(end: Grid | None) -> Array:
    """Return `to_physical` of the moving image; InputError if its grid is not known."""
    if end is None:
        raise InputError("end: is not known, expected the moving image's grid, in whose frame FSL's warps end")
    return to_physical(end)


def check_zooms(*spaces: Space | None) -> None:
    """Refuse images whose header has other voxel sizes (pixdim, which FSL uses) than their affine.

    Raises:
        InputError: the first such image, in one line.
    """
    for space in spaces:
        if space is not None and space.zooms:
            sizes, own = (" x ".join(f"{size:.4g}" for size in zooms) for zooms in (space.zooms, space.grid.spacing))
            raise InputError(
                f"{space.name or 'an image'}: has voxels of {sizes} mm in its header (pixdim), which FSL uses, but of "
                f"{own} by its affine; use a copy made with apply --image IT --reference IT, where they agree"
            )


def flirt_matrix(affine: Array, start: Grid, end: Grid | None) -> Array:
    """Return FLIRT's (4, 4) matrix for an affine fixed -> moving, RAS mm; InputError if the end is not known."""
    return np.linalg.inv(to_physical(start)) @ np.linalg.inv(affine) @ _end_to_physical(end)


def flirt_affine(matrix: Array, start: Grid, end: Grid) -> Array:
    """Return the affine fixed -> moving, (4, 4) RAS mm, of a FLIRT matrix."""
    return to_physical(end) @ np.linalg.inv(matrix) @ np.linalg.inv(to_physical(start))


def looks_like_flirt(text: str) -> bool:
    """Return True if a text is a matrix as FLIRT writes it: two blanks after each number, also at the end of lines."""
    return all(line.endswith("  ") for line in text.splitlines() if line.strip())


def looks_absolute(numbers: Array, warp: Frame) -> bool:
    """Return True if a file seems to hold coordinates instead of displacements.

    It does where the voxels' motions scatter less if the numbers are read as coordinates.

    Args:
        numbers: (I, J, K, 3).
        warp: the frame of the numbers if they are displacements.
    """
    lattice = [np.arange(0, size, max(size // 16, 1)) for size in warp.grid.shape]
    voxels = np.stack(np.meshgrid(*lattice, indexing="ij"), -1).reshape(-1, 3)
    found = numbers[tuple(voxels.T)].astype(np.float64)
    scaled = scaled_voxels(warp.grid)
    own = voxels @ scaled[:3, :3].T + scaled[:3, 3]
    points = warp.grid.to_physical(voxels)
    relative, absolute = (warp.places(voxels, numbers) - points for numbers in (found, found - own))
    return bool(relative.var(axis=0).sum() > absolute.var(axis=0).sum())
