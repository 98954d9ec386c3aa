"""ITK's composite transforms in HDF5, ``...Composite.h5``: an affine and a displacement field, or an affine alone.

    T(x) = affine( x + diag(-1, -1, 1) s(v) )

``/TransformGroup/0`` names the composite, 1, 2, ... hold its parts, of which the *last* is applied first: affine, then
field. A field's fixed parameters are size, origin, spacing and direction of its grid, in LPS; its parameters are the
vectors in mm of LPS, component fastest, then I, J, K. Outside the grid ITK takes displacements to be 0, so there only
the affine remains; ours continue the border values. Any direction matrix is kept as it is: unlike NIfTI in ITK, these
files may have sheared grids.

Source: itk::HDF5TransformIO (also for the older spelling "Tranform"), itk::CompositeTransform,
itk::DisplacementFieldTransform::SetFixedParameters.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ....errors import InputError
from ....geometry.grid import LARGEST_ENTRY, Grid
from ....geometry.transform import AffineTransform, Chain, SpatialTransform, Transform
from ....host.files.reading_process import UnreadableError, read_elsewhere
from ....host.files.whole_files import atomic_path
from ....images.formats.gzip_stream import DENSE
from ....types import Array
from ...spaces import TransformFile, TransformMetadata, metadata_in, sides
from ..frames import LPS, TO_LPS, ComponentPlanes, Frame
from ..nifti_field import StoredField, check_field
from .affine import matrix_of, parameters_of

if TYPE_CHECKING:
    import h5py

MAGIC = b"\x89HDF\r\n\x1a\n"
ATTRIBUTE = "description"  # attribute of /TransformGroup that holds the metadata
FIELD, AFFINE = "DisplacementFieldTransform", "AffineTransform"
GRID_NUMBERS = 18  # size, origin, spacing, direction
READER = Path(__file__).with_name("h5_reader.py")
PLANES = 16  # planes of K written at a time


def write_composite(
    path: Path, transform: Transform, displacement: Array | None, metadata: TransformMetadata, compact: bool = False
) -> None:
    """Write an affine and the displacement field applied before it, float32.

    Args:
        path: ends in .h5.
        transform: the affine of a `SpatialTransform` is stored as a part of its own; for others it is the identity.
        displacement: ``T(x) - x``, (I, J, K, 3) RAS mm on the start's grid; None: the transform is an affine, and the
            file holds it alone.
        metadata: convention and both sides.
        compact: True to round the field's numbers, see `Frame.compact_step`, and to compress them.
    """
    import h5py

    if displacement is None:
        assert transform.matrix is not None  # without a displacement it is an affine
        affine = transform.matrix
    else:
        affine = transform.affine if isinstance(transform, SpatialTransform) else np.eye(4)
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        group = file.create_group("TransformGroup")
        group.attrs[ATTRIBUTE] = metadata.line()
        _add(group, "CompositeTransform_double_3_3")
        _add(group, f"{AFFINE}_double_3_3", np.zeros(3), parameters_of(affine))
        if displacement is not None:
            frame = _frame(metadata.start.grid, affine)
            part = _add(group, f"{FIELD}_double_3_3", _grid_parameters(frame.grid))
            plane = 3 * math.prod(frame.grid.shape[:2])
            packed = {"chunks": (plane,), "shuffle": True, "compression": DENSE.level} if compact else {}
            parameters = part.create_dataset("TransformParameters", (displacement.size,), np.float32, **packed)
            _fill(parameters, frame, frame.numbers(displacement, compact))


def read_composite(path: Path, argument: str) -> StoredField | TransformFile:
    """Read a composite of affines and displacement fields, or one of these alone.

    Returns:
        A field with the affine that follows it as `StoredField`, any other list of parts as `TransformFile`.

    Raises:
        InputError: damaged, or with parts of other kinds.
    """
    name = f"{argument}: {path}"
    contents, description = _contents(path, name)
    metadata = metadata_in(description, name)
    parts = [_part(*content, name, metadata) for content in contents]
    links = tuple(part for part in reversed(parts) if part is not None)
    match links:
        case ():
            raise InputError(f"{name} holds no transform, expected a displacement field or an affine")
        case (StoredField() as field,):
            return field
        case (StoredField() as field, AffineTransform() as affine):
            return replace(field, frame=replace(field.frame, affine=affine.matrix))
        case (AffineTransform() as affine,):
            return TransformFile(affine, "h5", path, *((metadata.start, metadata.end) if metadata else (None, None)))
    transforms = tuple(link.transform if isinstance(link, StoredField) else link for link in links)
    first = links[0].start if isinstance(links[0], StoredField) else None
    return TransformFile(Chain(transforms), "h5", path, first, None)


def _contents(path: Path, name: str) -> tuple[list[tuple[str, Array, Array]], str]:
    """Read (kind, fixed parameters, parameters) of each part, and the description, in a separate process.

    Raises:
        InputError: a damaged file, on which the HDF5 library may raise an error, crash or hang.
    """
    try:
        head, content = read_elsewhere(READER, path)
    except UnreadableError as error:
        raise _damaged(name, str(error)) from None
    parts, at = [], 0
    for part in head["parts"]:
        fixed = np.frombuffer(content, "<f8", part["fixed"], at)
        numbers = np.frombuffer(content, part["type"], part["parameters"], at + fixed.nbytes)
        at += fixed.nbytes + numbers.nbytes
        parts.append((part["kind"], fixed, numbers))
    return parts, head["description"]


def _damaged(name: str, reason: str) -> InputError:
    return InputError(f"{name} cannot be read as a composite transform of ITK ({reason})")


def _part(
    kind: str, fixed: Array, parameters: Array, name: str, metadata: TransformMetadata | None
) -> StoredField | AffineTransform | None:
    """Return one part of a composite; None for the entry that only names the composite."""
    if kind == "CompositeTransform":
        return None
    if kind != FIELD:
        return AffineTransform(matrix_of(kind, parameters, fixed, name))
    grid = _grid(fixed, name)
    if parameters.size != 3 * math.prod(grid.shape):
        raise _damaged(name, f"{parameters.size} numbers for a field of {grid.shape}, expected 3 per voxel")
    start, end = sides(metadata, grid)
    with np.errstate(over="ignore"):  # infinite numbers are refused
        numbers = parameters.astype(np.float32, copy=False).reshape(3, *grid.shape, order="F")
    field = StoredField("h5", np.moveaxis(numbers, 0, -1), _frame(grid, np.eye(4)), start, end)
    check_field(field, name)
    return field


def _frame(grid: Grid, affine: Array) -> Frame:
    return Frame(grid, np.diag(LPS), affine)


def _grid(fixed: Array, name: str) -> Grid:
    if fixed.size != GRID_NUMBERS or not np.abs(fixed).max() <= LARGEST_ENTRY:
        raise _damaged(
            name, f"{fixed.size} numbers for a field's grid, expected {GRID_NUMBERS}, finite and not too large"
        )
    size, origin, spacing, direction = fixed[:3], fixed[3:6], fixed[6:9], fixed[9:18].reshape(3, 3)
    lps = np.eye(4)
    lps[:3, :3], lps[:3, 3] = direction * spacing, origin
    try:
        return Grid(tuple(size.astype(int)), TO_LPS @ lps)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None


def _grid_parameters(grid: Grid) -> Array:
    direction = LPS[:, None] * grid.directions
    return np.concatenate([grid.shape, LPS * grid.affine[:3, 3], grid.spacing, direction.ravel()])


def _fill(parameters: "h5py.Dataset", frame: Frame, numbers: ComponentPlanes) -> None:
    """Write the numbers of a displacement, some planes at a time, since the file's memory order differs."""
    width, height, depth = frame.grid.shape
    for k in range(0, depth, PLANES):
        span = slice(k, min(k + PLANES, depth))
        vectors = np.stack([numbers(component, span).T for component in range(3)], -1)
        parameters[3 * width * height * span.start : 3 * width * height * span.stop] = vectors.ravel()


def _add(group: "h5py.Group", kind: str, fixed: Array | None = None, parameters: Array | None = None) -> "h5py.Group":
    """Add a part with the next number, and return it."""
    part = group.create_group(str(len(group)))
    part.create_dataset("TransformType", data=[kind.encode()])
    for name, values in (("TransformFixedParameters", fixed), ("TransformParameters", parameters)):
        if values is not None:
            part.create_dataset(name, data=values)
    return part
