"""Displacement fields in NIfTI files: one reader and one writer for the four conventions that use them."""

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...errors import InputError
from ...geometry.grid import FARTHEST_MM, Grid
from ...geometry.transform import SpatialTransform
from ...images.formats.gzip_stream import DENSE, FAST
from ...images.formats.headers import MGH_VERSION, Header
from ...images.formats.image_file import OpenImage, open_image
from ...images.formats.nifti_bytes import CODES_NOT_KNOWN
from ...images.formats.nifti_writer import write_nifti
from ...images.volume import grid_of, rescaled
from ...types import Array
from ..spaces import ConventionError, ImagesNeededError, Space, TransformMetadata, metadata_in, sides
from . import freesurfer, fsl, learn2reg
from .frames import Frame
from .itk import field as itk_field
from .other_fields import FieldOrigin, displacements, field_origin

LARGEST_EXTENSION = 1 << 24  # bytes before the voxels that are searched for metadata


@dataclass(frozen=True)
class Layout:
    """The layout of a convention's NIfTI files.

    Attributes:
        frame: (grid of the start, grid of the end) -> meaning of the numbers.
        intent: NIfTI intent code.
        axes: number of axes of the array: five, (I, J, K, 1, 3), or four, (I, J, K, 3).
    """

    frame: Callable[[Grid, Grid | None], Frame]
    intent: int
    axes: int


LAYOUTS = {
    "itk": Layout(itk_field.frame, itk_field.INTENT, 5),
    "freesurfer": Layout(freesurfer.frame, freesurfer.INTENT, 5),
    "fsl": Layout(fsl.frame, fsl.INTENT, 4),
    "learn2reg": Layout(learn2reg.frame, learn2reg.INTENT, 4),
}


@dataclass(frozen=True, eq=False)
class StoredField:
    """A displacement field as it was read.

    Attributes:
        convention: convention of the file.
        numbers: (I, J, K, 3) as stored.
        frame: their meaning.
        start, end: the sides.
        warnings: warnings about the header, one line each.
    """

    convention: str
    numbers: Array
    frame: Frame
    start: Space
    end: Space | None
    warnings: tuple[str, ...] = ()

    @property
    def transform(self) -> SpatialTransform:
        return self.frame.transform(self.numbers)

    def places(self, voxels: Array) -> Array:
        """Return the positions, (N, 3) RAS mm, to which voxels, (N, 3) integers, are mapped."""
        return self.frame.places(voxels, self.numbers[tuple(voxels.T)])


def write_field(
    path: Path,
    displacement: Array,
    metadata: TransformMetadata,
    codes: tuple[int, int] = CODES_NOT_KNOWN,
    pool: Executor | None = None,
    compact: bool = False,
) -> None:
    """Write ``T(x) - x`` on the start's grid in the metadata's convention, float32.

    Args:
        path: ends in .nii or .nii.gz.
        displacement: (I, J, K, 3) RAS mm; fastest if the first axis is contiguous in memory.
        metadata: convention and both sides, stored in the header's extension.
        codes: NIfTI (sform, qform) codes of the start's image.
        pool: threads that compress; None: the writer starts its own.
        compact: True to round the numbers, see `Frame.compact_step`, and to compress harder.
    """
    layout, grid = LAYOUTS[metadata.convention], metadata.start.grid
    if metadata.convention == "fsl":
        fsl.check_zooms(metadata.start, metadata.end)
    numbers = layout.frame(grid, metadata.end.grid if metadata.end else None).numbers(displacement, compact)
    values = displacement if layout.axes == 4 else displacement[:, :, :, None]
    write_nifti(
        path,
        values,
        grid,
        codes,
        np.float32,
        layout.intent,
        planes=lambda span, index: numbers(index[-1], span),
        pool=pool,
        comment=metadata.line(),
        compression=DENSE if compact else FAST,
    )


def read_field(path: Path, argument: str, convention: str, end: Grid | None) -> StoredField:
    """Read a displacement file; gzip's checksum is verified.

    Args:
        path: NIfTI or MGH, compressed or not.
        argument: its name in messages.
        convention: a key of `LAYOUTS`, or "auto".
        end: the moving image's grid, for FSL's warps without metadata.

    Raises:
        InputError: damaged, not a displacement field, or of an unknown convention.
    """
    name = f"{argument}: {path}"
    with open_image(path, argument) as image:
        _check_kind(image.header, path, name)
        assert isinstance(image, OpenImage)  # the kinds that pass
        grid = grid_of(image.header, name)
        stored = image.voxels()
    header, metadata = image.header, metadata_in(image.between[:LARGEST_EXTENSION].decode(errors="replace"), name)
    other = None if metadata else field_origin(header, image.between[:LARGEST_EXTENSION], name)
    convention = _convention(header, metadata, other, convention, name)
    start, known_end = sides(metadata, grid)
    ours = known_end is not None
    if convention == "fsl":
        fsl.check_zooms(Space(grid, name=name, zooms=header.other_zooms))
        known_end = known_end or _end_of_warp(end, name)
    numbers = rescaled(header, stored.reshape(*grid.shape, 3, order="F"), np.float32)
    if other is not None and other.absolute:
        numbers = displacements(numbers, grid)
    frame = LAYOUTS[convention].frame(grid, known_end.grid if known_end else None)
    warnings = tuple(f"{path.name}: {line}" for line in header.warnings)
    field = StoredField(convention, numbers, frame, start, known_end, warnings)
    check_field(field, name)
    # Where a map changes sizes by half or more, displacements look like coordinates; ours are known not to be.
    if convention == "fsl" and not ours and fsl.looks_absolute(field.numbers, field.frame):
        raise InputError(f"{name}: seems to hold coordinates, expected displacements; use FSL's convertwarp --relout")
    return field


def _axes(header: Header) -> int:
    """Return the number of axes of an array of vectors: 5, (I, J, K, 1, 3), or 4, (I, J, K, 3); 0 for others."""
    shape = header.shape
    return 5 if len(shape) == 5 and shape[3:] == (1, 3) else 4 if len(shape) == 4 and shape[3] == 3 else 0


def _check_kind(header: Header, path: Path, name: str) -> None:
    """Refuse files that hold no vectors, and vectors that are not displacements."""
    what = f"{name} has shape {header.shape} and intent {header.intent}"
    if header.intent in fsl.OTHER_INTENTS:
        raise InputError(
            f"{what}, coefficients of fnirt or topup, expected a displacement field; convert them: fnirtfileutils "
            f"--in={path.name} --ref=TARGET --out=field --withaff"
        )
    if header.version > MGH_VERSION:
        raise InputError(f"{what}, a warp in FreeSurfer's own form; convert it to ITK's: mri_warp_convert --outitk")
    if (
        header.kind not in ("NIfTI", "MGH")
        or not _axes(header)
        or header.dtype.kind not in "iuf"
        or header.dtype.itemsize > 8
    ):
        raise InputError(f"{what}, expected a displacement field, (I, J, K, 1, 3) or (I, J, K, 3)")


def _convention(
    header: Header, metadata: TransformMetadata | None, other: FieldOrigin | None, wanted: str, name: str
) -> str:
    """Return the convention: as asked for, or from the metadata or the header; refuse contradictions and no answer."""
    axes, intent = _axes(header), header.intent
    possible = [key for key, layout in LAYOUTS.items() if layout.axes == axes]
    possible = ["freesurfer"] if header.kind == "MGH" else possible
    what = f"{name} has shape {header.shape} and intent {intent}"
    by_intent = next((key for key in possible if intent and LAYOUTS[key].intent == intent), None)
    stated = metadata.convention if metadata else other.convention if other else by_intent
    choice = stated if wanted == "auto" else wanted
    if choice is None:
        hint = " (AFNI's fields are as ITK's)" if "itk" in possible else ""
        raise InputError(f"{what}, which does not state its convention; name it: {' or '.join(possible)}{hint}")
    if choice not in possible or ((metadata or other) and choice != stated):
        of = f"which is {other.tool if other else stated}'s" if stated else f"as {' and '.join(possible)} have"
        raise ConventionError(f"{what}, {of}, not {choice}'s; name another convention, or none")
    return choice


def _end_of_warp(end: Grid | None, name: str) -> Space:
    if end is None:
        raise ImagesNeededError(f"{name}: is an FSL warp, which needs the moving image's grid as well", "moving")
    return Space(end)


def check_field(field: StoredField, name: str) -> None:
    """Refuse, in one line, numbers that are not finite or too large, and grids with a single voxel along an axis."""
    with np.errstate(invalid="ignore"):
        total = field.numbers.sum(dtype=np.float64)
    if not np.isfinite(total):
        raise InputError(f"{name}: holds numbers that are NaN or infinite, expected displacements; write it again")
    if min(field.frame.grid.shape) < 2:
        raise InputError(f"{name}: has shape {field.frame.grid.shape}, expected 2 or more voxels along each axis")
    most = float(np.linalg.norm(field.frame.units, 2)) * max(float(field.numbers.max()), -float(field.numbers.min()))
    if not most <= FARTHEST_MM:
        raise InputError(
            f"{name}: moves by {most:.3g} mm, expected {FARTHEST_MM:.0f} mm at most; is it in another unit, or of "
            "another convention?"
        )
