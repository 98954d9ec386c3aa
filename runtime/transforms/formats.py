"""Table of the transform file formats: the module that reads and writes each, and the bytes it is recognised by.

A file's *format* follows from its first bytes, its convention from the format, the NIfTI intent, the metadata, or the
caller. The format to write follows from the convention and the suffix.
"""

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..geometry.grid import Grid
from ..geometry.transform import AffineTransform, Transform
from ..host.files.whole_files import write_text
from ..images.formats.image_file import GZIP, SUFFIXES
from ..types import Array
from .conventions import freesurfer, fsl, nifti_field, plain_affine
from .conventions.itk import affine as itk_affine
from .conventions.itk import h5 as itk_h5
from .conventions.nifti_field import StoredField
from .spaces import ConventionError, ImagesNeededError, Space, TransformFile, TransformMetadata, metadata_in

Read = StoredField | TransformFile
CONVENTIONS = ("itk", "freesurfer", "fsl", "learn2reg", "h5")
AUTO, RAS = "auto", "ras"  # "ras": our own text of a 4x4 matrix
NIFTI = (".nii", ".nii.gz")
LARGEST_TEXT = 1 << 24  # bytes of a file that holds a few numbers


@dataclass(frozen=True)
class ReadRequest:
    """The arguments of a reader.

    Attributes:
        path: the file.
        argument: its name in messages.
        convention: one of `CONVENTIONS`, "ras" or "auto".
        start, end: the fixed and the moving image's grids, for files that need them and do not hold them.
    """

    path: Path
    argument: str
    convention: str = AUTO
    start: Grid | None = None
    end: Grid | None = None

    @property
    def name(self) -> str:
        return f"{self.argument}: {self.path}"


@dataclass(frozen=True, eq=False)
class WriteRequest:
    """The arguments of a writer.

    Attributes:
        path: the file.
        transform: from the start into the end.
        metadata: convention and sides; None: the start is not known.
        codes: NIfTI (sform, qform) codes of the start's image.
        pool: threads that compress; None: the writer starts its own.
        known: ``T(x) - x`` on the start's grid if already computed, else None.
        compact: True to store displacements rounded and compressed; see `runtime.transforms.files.tolerance_mm`.
    """

    path: Path
    transform: Transform
    metadata: TransformMetadata | None
    codes: tuple[int, int]
    pool: Executor | None
    known: Array | None
    compact: bool = False

    @property
    def displacement(self) -> Array:
        """The displacement ``T(x) - x`` on the start's grid, (I, J, K, 3) RAS mm."""
        return self.transform.displacement(self.sides.start.grid) if self.known is None else self.known

    @property
    def sides(self) -> TransformMetadata:
        """The metadata, for formats that need the fixed image's grid; InputError if it is not known."""
        if self.metadata is None:
            raise InputError(f"{self.path}: needs the fixed image's grid, which is not known; name that image")
        return self.metadata

    @property
    def matrix(self) -> Array:
        """The affine, (4, 4) RAS mm; InputError if the transform is not affine."""
        if self.transform.matrix is None:
            raise InputError(
                f"{self.path}: is a file for affine transforms, got one that is not affine; choose .nii.gz or .h5"
            )
        return self.transform.matrix


def _read_field(reading: ReadRequest) -> Read:
    return nifti_field.read_field(reading.path, reading.argument, reading.convention, reading.end)


def _read_composite(reading: ReadRequest) -> Read:
    return itk_h5.read_composite(reading.path, reading.argument)


def _read_lta(reading: ReadRequest) -> Read:
    return freesurfer.read_lta(reading.path, reading.argument)


def _read_itk_text(reading: ReadRequest) -> Read:
    return _affine(reading, "itk", itk_affine.read_text(reading.path, reading.argument))


def _read_matlab(reading: ReadRequest) -> Read:
    return _affine(reading, "itk", itk_affine.read_matlab(reading.path, reading.argument))


def _read_matrix(reading: ReadRequest) -> Read:
    """Read four rows of four numbers.

    They are in RAS mm where the metadata or, without metadata, the name says so, else of the convention asked for.
    """
    matrix = plain_affine.read_affine(reading.path, reading.argument)
    text = reading.path.read_text(encoding="utf-8")
    metadata = metadata_in(text, reading.name)
    if reading.convention == "fsl" and metadata:
        raise ConventionError(
            f"{reading.name}: is in RAS mm according to its first lines, not a FLIRT matrix; name no convention, or ras"
        )
    if reading.convention == "fsl":
        if reading.start is None or reading.end is None:
            raise ImagesNeededError(
                f"{reading.name}: is a FLIRT matrix, which needs the grids of both images", "fixed", "moving"
            )
        matrix = fsl.flirt_affine(matrix, reading.start, reading.end)
        return _affine(reading, "fsl", matrix, Space(reading.start), Space(reading.end))
    plain = reading.path.suffix.lower() == ".txt" and not fsl.looks_like_flirt(text)
    if reading.convention == AUTO and not metadata and not plain:
        raise InputError(
            f"{reading.name}: may be a FLIRT matrix or a matrix in RAS mm; name its convention: fsl or ras"
        )
    return _affine(reading, RAS, matrix, *((metadata.start, metadata.end) if metadata else (None, None)))


def _affine(
    reading: ReadRequest, convention: str, matrix: Array, start: Space | None = None, end: Space | None = None
) -> TransformFile:
    return TransformFile(AffineTransform(matrix), convention, reading.path, start, end)


@dataclass(frozen=True)
class Format:
    """A file format.

    Attributes:
        what: its name in messages.
        conventions: the conventions that use it.
        read: its reader.
        certain: True if its first bytes identify it beyond warning.
        largest: largest size of a file, bytes; None: any.
    """

    what: str
    conventions: tuple[str, ...]
    read: Callable[[ReadRequest], Read]
    certain: bool = False
    largest: int | None = LARGEST_TEXT


FIELD = Format("a NIfTI file", tuple(nifti_field.LAYOUTS), _read_field, largest=None)
COMPOSITE = Format("an ITK composite", ("h5", "itk"), _read_composite, certain=True, largest=None)
LTA = Format("a FreeSurfer linear transform", ("freesurfer",), _read_lta)
ITK_TEXT = Format("an ITK affine", ("itk",), _read_itk_text, certain=True)
MATLAB = Format("an ANTs affine", ("itk",), _read_matlab)
MATRIX = Format("a text file of a matrix", (RAS, "fsl"), _read_matrix)


def format_of(path: Path, beginning: bytes) -> Format:
    """Return the format of a file by its first bytes, or by its name where these leave it open."""
    name = path.name.lower()
    if beginning.startswith(itk_h5.MAGIC):
        return COMPOSITE
    if beginning.startswith(GZIP) or name.endswith(SUFFIXES):
        return FIELD
    if beginning.startswith(itk_affine.BANNER[:8].encode()):
        return ITK_TEXT
    if name.endswith(".lta"):
        return LTA
    return MATLAB if b"\0" in beginning or beginning.startswith(b"MATLAB") else MATRIX


def _write_field(writing: WriteRequest) -> None:
    nifti_field.write_field(
        writing.path, writing.displacement, writing.sides, writing.codes, writing.pool, writing.compact
    )


def _write_composite(writing: WriteRequest) -> None:
    affine = writing.known is None and writing.transform.matrix is not None
    displacement = None if affine else writing.displacement
    itk_h5.write_composite(writing.path, writing.transform, displacement, writing.sides, writing.compact)


def _write_matrix(writing: WriteRequest) -> None:
    plain_affine.write_affine(writing.path, writing.matrix, writing.metadata)


def _write_itk_text(writing: WriteRequest) -> None:
    itk_affine.write_text_file(writing.path, writing.matrix)


def _write_matlab(writing: WriteRequest) -> None:
    itk_affine.write_matlab(writing.path, writing.matrix)


def _write_flirt(writing: WriteRequest) -> None:
    start, end = writing.sides.start, writing.sides.end
    fsl.check_zooms(start, end)
    write_text(
        writing.path, plain_affine.rows(fsl.flirt_matrix(writing.matrix, start.grid, None if end is None else end.grid))
    )


def _write_lta(writing: WriteRequest) -> None:
    freesurfer.write_lta(writing.path, writing.matrix, writing.sides.start, writing.sides.end)


WRITERS: dict[tuple[str, str], Callable[[WriteRequest], None]] = {  # (convention, suffix): writer
    **{(convention, suffix): _write_field for convention in nifti_field.LAYOUTS for suffix in NIFTI},
    ("h5", ".h5"): _write_composite,
    (RAS, ".txt"): _write_matrix,
    ("itk", ".txt"): _write_itk_text,
    ("itk", ".tfm"): _write_itk_text,
    ("itk", ".mat"): _write_matlab,
    ("fsl", ".mat"): _write_flirt,
    ("freesurfer", ".lta"): _write_lta,
}


GRIDLESS = (_write_matrix, _write_itk_text, _write_matlab)  # their files map mm to mm and need no grid


def needs_start(path: Path, convention: str) -> bool:
    """Return True if a file of this name and convention needs the fixed image's grid; errors as for `writer_of`."""
    return writer_of(path, convention) not in GRIDLESS


def writer_of(path: Path, convention: str) -> Callable[[WriteRequest], None]:
    """Return the writer of this convention for a file of this name.

    Raises:
        InputError: no such convention, or a suffix that it does not use.
    """
    suffixes = [suffix for key, suffix in WRITERS if key == convention]
    if not suffixes:
        raise InputError(f"convention: got {convention!r}, expected one of {', '.join((*CONVENTIONS, RAS))}")
    fitting = [suffix for suffix in suffixes if path.name.lower().endswith(suffix)]
    if not fitting:
        raise InputError(
            f"{path}: cannot be written as {convention}, expected a name that ends in {', '.join(suffixes)}"
        )
    return WRITERS[convention, fitting[0]]
