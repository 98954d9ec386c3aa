"""Transform files of all conventions: read, write, and verify what was written."""

from concurrent.futures import Executor
from os import PathLike
from pathlib import Path

import numpy as np

from ..errors import InputError, explained
from ..geometry.grid import Grid
from ..geometry.transform import Transform, check_plausible
from ..host.files.regular_files import require_file
from ..host.files.whole_files import atomic_path
from ..images.formats.nifti_bytes import CODES_NOT_KNOWN
from ..types import Array
from .conventions.foreign import foreign_transform
from .conventions.nifti_field import StoredField
from .formats import AUTO, CONVENTIONS, RAS, Read, ReadRequest, WriteRequest, format_of, writer_of
from .spaces import ConventionError, Space, TransformFile, TransformMetadata

TOLERANCE_MM = 0.01  # largest difference between a transform and its file, read back
COMPACT_TOLERANCE_MM = 0.03  # the same for compact files, whose rounding moves no end by more than 0.0271 mm
PLACES = 4096  # voxels at which the two are compared
ANYWHERE = Grid((513, 513, 513), np.eye(4) - np.outer((256, 256, 256, 0), (0, 0, 0, 1)))  # where no grid is known
BEGINNING = 1024  # bytes by which a format is recognised
NAMES = {"itk": "warp.nii.gz", "freesurfer": "warp_freesurfer.nii.gz", "fsl": "warp_fsl.nii.gz", "h5": "transform.h5"}


def read_transform(
    path: str | PathLike[str],
    argument: str = "-t",
    convention: str = AUTO,
    start: Grid | None = None,
    end: Grid | None = None,
) -> TransformFile:
    """Read a transform of any convention.

    The format is recognised by content: NIfTI fields of intent 1007 (itk), 1006 (freesurfer), 2006 (fsl) or with our
    metadata; ITK's composites in HDF5; affines as ITK's text, ANTs' .mat, FreeSurfer's .lta or our 4x4 text.

    Args:
        path: the file.
        argument: its name in messages.
        convention: "auto", one of `CONVENTIONS`, or "ras" for our own 4x4 text. It has to be named for files that do
            not state it: (I, J, K, 3) without metadata or intent (fsl or learn2reg), a FLIRT matrix (fsl).
        start, end: the fixed and the moving image's grids: FLIRT's matrices need both, FSL's warps without metadata
            the second.

    Raises:
        InputError: missing, damaged, not a transform, of another convention than named, or of an unknown one.
    """
    found = _read(ReadRequest(Path(path), argument, convention, start, end))
    if isinstance(found, TransformFile):
        return found
    return TransformFile(found.transform, found.convention, Path(path), found.start, found.end, found.warnings)


def write_transform(
    path: str | PathLike[str],
    transform: Transform,
    convention: str,
    start: Space | None,
    end: Space | None,
    codes: tuple[int, int] = CODES_NOT_KNOWN,
    pool: Executor | None = None,
    displacement: Array | None = None,
    compact: bool = False,
) -> None:
    """Write a transform, whole or not at all.

    Displacement fields are written to .nii or .nii.gz (itk, freesurfer, fsl, learn2reg), composites to .h5 (h5).
    Affine transforms may also be written to .txt (ras: our 4x4 text), .txt, .tfm or .mat (itk), .mat (fsl: FLIRT) or
    .lta (freesurfer).

    Args:
        path: its suffix and the convention determine the format.
        transform: from the start into the end, RAS mm.
        convention: one of `CONVENTIONS`, or "ras".
        start: the fixed image's side; displacements are sampled on its grid. None: not known, allowed for affines in
            text and .mat other than FLIRT's.
        end: the moving image's side; None: not known, not allowed for FSL's files.
        codes: NIfTI (sform, qform) codes of the fixed image.
        pool: threads that compress; None: the writer starts its own.
        displacement: ``T(x) - x`` on the start's grid, (I, J, K, 3) RAS mm, if already computed.
        compact: True to round a field's numbers so that its file is a quarter to a fifth as large; every end moves by
            0.0271 mm at most. Affines are never rounded.

    Raises:
        InputError: a suffix that the convention does not use, a transform that is not affine for a file that is, a
            displacement of another shape.
    """
    path = Path(path)
    write = writer_of(path, convention)
    if start is not None and displacement is not None and displacement.shape != (*start.grid.shape, 3):
        raise InputError(f"displacement: got shape {displacement.shape}, expected {(*start.grid.shape, 3)}")
    metadata = TransformMetadata(convention, start, end) if start else None
    write(WriteRequest(path, transform, metadata, codes, pool, displacement, compact))


def verify_transform(
    path: str | PathLike[str],
    convention: str,
    transform: Transform,
    start: Space | None,
    end: Space | None,
    displacement: Array | None = None,
    compact: bool = False,
) -> float:
    """Read back a file that was just written, and compare it with the transform at random voxels of the start's grid.

    At voxels, because between them the field is interpolated and the transform is not. An affine whose start is not
    known is compared in the cube of 512 mm about the origin.

    Args:
        path, convention, transform, start, end, compact: as given to `write_transform`.
        displacement: the displacement the file was written from, to compare with instead of the transform.

    Returns:
        The largest distance between the positions to which file and transform map a voxel, mm.

    Raises:
        InputError: a distance of more than `tolerance_mm` of such a file.
    """
    grid = ANYWHERE if start is None else start.grid
    voxels = np.random.default_rng(0).integers(0, grid.shape, (PLACES, 3))
    points = grid.to_physical(voxels)
    expected = transform.points(points) if displacement is None else points + displacement[tuple(voxels.T)]
    found = _read(ReadRequest(Path(path), "read back", convention, grid, end.grid if end else None))
    positions = found.places(voxels) if isinstance(found, StoredField) else found.transform.points(points)
    error = float(np.linalg.norm(positions - expected, axis=1).max())
    most = tolerance_mm(compact)
    if not error <= most:
        raise InputError(
            f"{path}: read back, it differs by {error:.3g} mm from the transform, expected {most} mm at most"
        )
    return error


def write_verified(
    path: str | PathLike[str],
    transform: Transform,
    convention: str,
    start: Space | None,
    end: Space | None,
    codes: tuple[int, int] = CODES_NOT_KNOWN,
    pool: Executor | None = None,
    displacement: Array | None = None,
    compact: bool = False,
) -> float:
    """Write a transform, and give the file its name only after it was read back and found to be the same.

    Args: as for `write_transform`.

    Returns:
        The largest distance, as `verify_transform`, mm.

    Raises:
        InputError: as `write_transform` and `verify_transform`; nothing is written then, and an earlier file is kept.
    """
    with atomic_path(path) as temporary:
        try:
            write_transform(temporary, transform, convention, start, end, codes, pool, displacement, compact)
            return verify_transform(temporary, convention, transform, start, end, displacement, compact)
        except InputError as error:
            message = str(error).replace(str(temporary), str(path))
            raise InputError(f"{message}; nothing was written") from None


def tolerance_mm(compact: bool) -> float:
    """Return the largest distance, mm, that `verify_transform` accepts between a transform and its file."""
    return COMPACT_TOLERANCE_MM if compact else TOLERANCE_MM


def file_name(convention: str, inverse: bool, fixed_name: str, moving_name: str) -> str:
    """Return the file name of a registration's transform from the fixed to the moving image, or of the inverse.

    Args:
        convention: one of `CONVENTIONS`.
        inverse: True for the transform from the moving to the fixed image.
        fixed_name, moving_name: the scans' names without suffix, which Learn2Reg's files are named after.
    """
    if convention == "learn2reg":
        return "disp_{}_{}.nii.gz".format(*((moving_name, fixed_name) if inverse else (fixed_name, moving_name)))
    return f"inverse_{NAMES[convention]}" if inverse else NAMES[convention]


def _read(reading: ReadRequest) -> Read:
    known = (AUTO, *CONVENTIONS, RAS)
    if reading.convention not in known:
        raise InputError(f"convention: got {reading.convention!r}, expected one of {', '.join(known)}")
    require_file(reading.path, reading.argument)
    with explained(reading.argument), reading.path.open("rb") as stream:
        beginning = stream.read(BEGINNING)
    found = format_of(reading.path, beginning)
    require_file(reading.path, reading.argument, found.largest)
    if not found.certain and (foreign := foreign_transform(reading.path, beginning)):
        raise InputError(f"{reading.name} is {foreign}")
    if reading.convention not in (AUTO, *found.conventions):
        allowed = " or ".join(found.conventions)
        raise ConventionError(
            f"{reading.name} is {found.what}, expected the convention {allowed}, got {reading.convention}"
        )
    with explained(reading.argument):
        result = found.read(reading)
    _check_plausible(result, reading.name)
    return result


def _check_plausible(found: Read, name: str) -> None:
    """Refuse affines that no body scan can have: damaged, in other units, or in another tool's form."""
    if isinstance(found, StoredField):
        check_plausible(found.frame.affine, name)
        return
    for link in found.transform.merged:
        if link.matrix is not None:
            check_plausible(link.matrix, name)
