"""FreeSurfer: displacement fields as in surfa, SynthMorph and mri_synthmorph, and linear transforms, ``.lta``.

Fields:

    T(x) = x + s(v)

Numbers are mm in RAS on the fixed image's grid; shape (I, J, K, 1, 3), intent 1006 (displacement vector). ITK from
version 5.4 on converts them to LPS when reading; older versions cannot use them.

Linear transforms: a matrix M from the moving (src) to the fixed (dst) image, and the geometry of both images.

    y = M^-1 x (type 1, RAS to RAS),   y = W_src M^-1 W_dst^-1 x (type 0, voxel to voxel)

The grid's affine has the columns ``voxelsize * [xras yras zras]`` and maps voxel ``volume / 2`` to ``cras``.

Source: surfa, ``Warp`` in the format ``disp_ras``; itk::NiftiImageIO, ``ConvertRASDisplacementVectors``; FreeSurfer's
utils/transform.cpp (``LTAread``, ``readVolGeom``).
"""

from pathlib import Path

import numpy as np

from ...errors import InputError, first_line
from ...geometry.grid import LARGEST_ENTRY, Grid, check_affine
from ...geometry.transform import AffineTransform
from ...host.files.whole_files import write_text
from ...types import Array
from ..spaces import Space, TransformFile
from .frames import Frame
from .plain_affine import rows

INTENT = 1006
VOXEL_TO_VOXEL, RAS_TO_RAS = 0, 1


def frame(start: Grid, end: Grid | None) -> Frame:
    """Return the constants of a field on `start`."""
    return Frame(start, np.eye(3), np.eye(4))


def read_lta(path: Path, argument: str) -> TransformFile:
    """Read the first matrix of an .lta file and the geometry of both images.

    Raises:
        InputError: damaged, or of another type than 0 and 1.
    """
    name = f"{argument}: {path}"
    try:
        return _parsed(path.read_text(encoding="utf-8").splitlines(), path, name)
    except InputError as error:
        message = str(error)
        raise InputError(message if message.startswith(name) else f"{name}: {message}") from None
    except (ValueError, KeyError, IndexError, StopIteration, OverflowError, TypeError) as error:
        raise InputError(f"{name} cannot be read as a linear transform of FreeSurfer ({first_line(error)})") from None


def write_lta(path: Path, affine: Array, start: Space, end: Space | None) -> None:
    """Write an affine fixed -> moving, (4, 4) RAS mm, as its inverse: RAS to RAS from the moving to the fixed image."""
    matrix = ["mean      = 0.0 0.0 0.0", "sigma     = 1.0", "1 4 4", rows(np.linalg.inv(affine)).strip()]
    lines = [f"type      = {RAS_TO_RAS}", "nxforms   = 1", *matrix, *_geometry("src", end), *_geometry("dst", start)]
    write_text(path, "\n".join(lines) + "\n")


def _parsed(lines: list[str], path: Path, name: str) -> TransformFile:
    lines = [line.split("#")[0].strip() for line in lines]
    kind = int(next(line for line in lines if line.startswith("type")).split("=")[1])
    if kind not in (VOXEL_TO_VOXEL, RAS_TO_RAS):
        raise InputError(f"{name} is of type {kind}, expected 0 (voxel to voxel) or 1 (RAS to RAS); use lta_convert")
    at = lines.index("1 4 4") + 1
    matrix = np.array([[float(value) for value in line.split()] for line in lines[at : at + 4]])
    check_affine(matrix, name)
    end, start = (_space(lines[lines.index(f"{side} volume info") :]) for side in ("src", "dst"))
    if kind == VOXEL_TO_VOXEL:
        if start is None or end is None:
            raise InputError(f"{name} takes voxels to voxels but holds no valid geometry of both; use lta_convert")
        matrix = start.grid.affine @ matrix @ np.linalg.inv(end.grid.affine)
    return TransformFile(AffineTransform(np.linalg.inv(matrix)), "freesurfer", path, start, end)


def _space(lines: list[str]) -> Space | None:
    """Return the image described by a ``volume info``; None if it is marked as not valid."""
    fields = {key.strip(): value.strip() for key, _, value in (line.partition("=") for line in lines[1:9])}
    if not int(fields["valid"]):
        return None
    size, spacing = np.array(fields["volume"].split(), int), np.array(fields["voxelsize"].split(), float)
    directions = np.array([fields[key].split() for key in ("xras", "yras", "zras")], float).T
    centre = np.array(fields["cras"].split(), float)
    if not np.abs(np.concatenate([spacing, directions.ravel(), centre])).max() <= LARGEST_ENTRY:
        raise ValueError("a volume info with numbers that are not finite, or too large")
    affine = np.eye(4)
    affine[:3, :3] = directions * spacing
    affine[:3, 3] = centre - affine[:3, :3] @ (size / 2)
    return Space(Grid(tuple(size), affine), name=Path(fields["filename"]).name or None)


def _geometry(side: str, space: Space | None) -> list[str]:
    if space is None:
        return [f"{side} volume info", "valid = 0  # volume info invalid"]
    grid = space.grid
    numbers = {
        "volume": grid.shape,
        "voxelsize": grid.spacing,
        **dict(zip(("xras", "yras", "zras"), grid.directions.T, strict=True)),
        "cras": grid.to_physical(np.array(grid.shape) / 2),
    }
    lines = [f"{side} volume info", "valid = 1  # volume info valid", f"filename = {space.name or 'unknown'}"]
    plain = (lambda value: str(int(value))), (lambda value: repr(float(value)))
    return lines + [f"{key:<6} = {' '.join(map(plain[key != 'volume'], values))}" for key, values in numbers.items()]
