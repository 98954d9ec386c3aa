"""Image files, compressed or not, read in one pass: header, voxels, checksum and hash, in bounded memory and time.

    with open_image(path, "--fixed") as image:
        image.header            # checked; nothing else is read yet
        voxels = image.voxels()  # as stored, first axis fastest
        image.sha256            # of the whole file, which has been read

Only the memory for the header's voxels is allocated, and only if the file is large enough to hold them.
"""

import gzip
import hashlib
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from os import PathLike
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from ...errors import InputError, ScarceError, explained, first_line
from ...host.files.regular_files import require_file
from ...types import Array
from .foreign import BEGINNING, DICOM_FOLDER, foreign_image
from .headers import Header, header_in
from .itk_image import MARKS, ItkImage

SUFFIXES = (".nii.gz", ".nii", ".mgz", ".mgh", ".nrrd", ".mha")
GZIP = b"\x1f\x8b"
MOST_DENSE = 1040  # largest compression ratio of deflate, rounded up
MOST_BESIDE = 1 << 28  # most bytes before the voxels, and after them: extensions, tags and padding are a few thousand
TAIL = 1 << 16  # most bytes after the voxels that are kept
PIECE = 1 << 20
DAMAGED = (OSError, EOFError, zlib.error, ValueError)


class _Hashing:
    """A file whose bytes are hashed as they are read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.hash = file, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        content = self._file.read(size)
        self.hash.update(content)
        return content


class OpenImage:
    """An image file that is being read, from front to back.

    Attributes:
        header: its header, which includes the footer once the voxels are read.
        path, name: the file; argument and file, for messages.
        between: bytes between the header and the voxels: NIfTI's extensions.
    """

    def __init__(self, path: Path, argument: str, file: BufferedReader) -> None:
        self.path, self.name = path, f"{argument}: {path}"
        self._size = path.stat().st_size
        self._hashing = _Hashing(file)
        self._packed = file.peek(2)[:2] == GZIP
        self._stream: gzip.GzipFile | _Hashing = self._hashing
        if self._packed:  # read from front to back, so that GzipFile needs no method but `read`
            self._stream = gzip.GzipFile(fileobj=cast(BinaryIO, self._hashing), mode="rb")
        self._begun = self._read(BEGINNING)
        self.header = self._checked_header()
        self.between = b""
        self.tail = b""

    @property
    def sha256(self) -> str:
        """The hash of the bytes read so far; of the whole file after `voxels`."""
        return self._hashing.hash.hexdigest()

    def voxels(self) -> Array:
        """Read the values as stored, in the header's shape, first axis fastest, and check the rest of the file.

        Raises:
            InputError: the file is truncated, damaged, or continues far beyond its voxels.
            ScarceError: there is not enough memory.
        """
        header = self.header
        self._check_size(header.offset + header.bytes)
        self.between = self._read_between(header.offset)
        try:
            content = np.empty(header.bytes, np.uint8)
        except MemoryError:
            raise ScarceError(f"{self.name} needs {header.bytes / 2**30:.1f} GiB, which is not available") from None
        self._fill(content.data)
        self.tail = self._finish()
        self.header = header.with_footer(self.tail)
        return content.view(header.dtype).reshape(header.shape, order="F")

    def _checked_header(self) -> Header:
        header = header_in(self._begun, self.name)
        if header is not None:
            return header
        if not self._begun:
            raise InputError(f"{self.name} is empty; copy it again")
        if description := foreign_image(self.path, self._begun):
            raise InputError(f"{self.name} is {description}")
        if not self.path.name.lower().endswith(SUFFIXES):
            expected = f"expected NIfTI, MGH, NRRD or MetaImage, whose names end in {', '.join(SUFFIXES)}"
            raise InputError(f"{self.name} is of unknown type, {expected}")
        raise self._unreadable("its content is neither NIfTI nor MGH")

    def _unreadable(self, reason: str) -> InputError:
        return InputError(f"{self.name} cannot be read, damaged, truncated or not an image ({reason})")

    def _read(self, size: int) -> bytes:
        try:
            return self._stream.read(size)
        except DAMAGED as error:
            raise self._unreadable(first_line(error)) from None

    def _check_size(self, needed: int) -> None:
        """Refuse a header whose voxels the file is too small to hold, before any memory is allocated."""
        most = self._size * MOST_DENSE if self._packed else self._size
        if needed > most:
            raise self._unreadable(f"its header announces {needed} bytes, it holds {most} at most")
        if self.header.offset > MOST_BESIDE:
            raise self._unreadable(f"its header says that voxels begin at byte {self.header.offset}")

    def _read_between(self, offset: int) -> bytes:
        """Read up to the voxels and return those bytes; voxels that were read already stay in `_begun`."""
        if offset <= len(self._begun):
            self._begun, between = self._begun[offset:], self._begun[:offset]
            return between
        gathered = bytearray(self._begun)
        self._begun = b""
        while len(gathered) < offset:
            gathered += self._read_some(min(PIECE, offset - len(gathered)))
        return bytes(gathered)

    def _read_some(self, size: int) -> bytes:
        content = self._read(size)
        if not content:
            raise self._unreadable("it ends before its voxel data")
        return content

    def _fill(self, target: memoryview) -> None:
        filled = min(len(self._begun), len(target))
        target[:filled] = self._begun[:filled]
        self._begun = self._begun[filled:]
        while filled < len(target):
            content = self._read_some(min(PIECE, len(target) - filled))
            target[filled : filled + len(content)] = content
            filled += len(content)

    def _finish(self) -> bytes:
        """Read to the end, which verifies gzip's checksum; return the first bytes after the voxels."""
        tail, behind = self._begun, len(self._begun)
        while content := self._read(PIECE):
            tail, behind = (tail + content)[:TAIL], behind + len(content)
            if behind > MOST_BESIDE:
                raise self._unreadable(f"more than {MOST_BESIDE >> 20} MiB follow its voxels")
        return tail


@contextmanager
def open_image(path: str | PathLike[str], argument: str) -> Iterator[OpenImage | ItkImage]:
    """Open a NIfTI-1, NIfTI-2 or MGH file, compressed or not, or NRRD or MetaImage, recognised by its content.

    Args:
        path: the file.
        argument: what to call it in messages, such as ``--fixed``.

    Raises:
        InputError: no such file, another format, or an invalid header.
    """
    path = Path(path)
    with explained(argument):
        if path.is_dir():
            raise InputError(
                f"{argument}: {path} is not a file but a folder; convert a folder of DICOM files: {DICOM_FOLDER}"
            )
    path = require_file(path, argument)
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"{argument}: {path} cannot be opened ({error.strerror}); check the permissions") from None
    with file:
        of_itk = file.peek(BEGINNING).startswith(MARKS)
        yield ItkImage(path, argument) if of_itk else OpenImage(path, argument, file)


def read_header(path: str | PathLike[str], argument: str) -> Header:
    """Read the header of an image without its voxels.

    Raises:
        InputError: as for `open_image`.
    """
    with open_image(path, argument) as image:
        return image.header
