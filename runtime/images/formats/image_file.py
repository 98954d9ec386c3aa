"""Image files, compressed or not, read in one pass: header, voxels, checksum and hash, in bounded memory and time.

    with open_image(path, "--fixed") as image:
        image.header            # checked; nothing else is read yet
        voxels = image.voxels()  # as they are stored, first axis fastest
        image.sha256            # of the file's bytes, all of which were read

No more memory is asked for than the header's voxels take, and that only once the file can hold them.
"""

import gzip
import hashlib
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ...errors import InputError, ScarceError, explained, first_line
from ...host.files.regular_files import require_file
from ...types import Array
from .foreign import BEGINNING, DICOM_FOLDER, foreign_image
from .headers import Header, header_in
from .itk_image import MARKS, ItkImage

SUFFIXES = (".nii.gz", ".nii", ".mgz", ".mgh", ".nrrd", ".mha")
GZIP = b"\x1f\x8b"
MOST_DENSE = 1040  # times the bytes that deflate can make of one, rounded up
MOST_BESIDE = 1 << 28  # bytes before the voxels, and behind them: extensions, tags and padding are a few thousand
TAIL = 1 << 16  # of them that are kept
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
        header: what it says, with what stands behind the voxels once these are read.
        path, name: the file; argument and file, for messages.
        between: bytes from the header's end to the voxels, which are NIfTI's extensions.
    """

    def __init__(self, path: Path, argument: str, file: BinaryIO) -> None:
        self.path, self.name = path, f"{argument}: {path}"
        self._size = path.stat().st_size
        self._hashing = _Hashing(file)
        self._packed = file.peek(2)[:2] == GZIP
        self._stream = gzip.GzipFile(fileobj=self._hashing, mode="rb") if self._packed else self._hashing
        self._begun = self._read(BEGINNING)
        self.header = self._checked_header()
        self.between = b""
        self.tail = b""

    @property
    def sha256(self) -> str:
        """Of the bytes read so far: the whole file's after `voxels`."""
        return self._hashing.hash.hexdigest()

    def voxels(self) -> Array:
        """The numbers as they are stored, of the header's shape, first axis fastest; what is behind them is checked.

        Raises:
            InputError: the file is cut, damaged, or goes on far beyond its voxels.
            ScarceError: too little memory.
        """
        header = self.header
        self._check_size(header.offset + header.bytes)
        self.between = self._passed(header.offset)
        try:
            content = np.empty(header.bytes, np.uint8)
        except MemoryError:
            raise ScarceError(f"{self.name} needs {header.bytes / 2**30:.1f} GiB, which cannot be had") from None
        self._fill(memoryview(content))
        self.tail = self._finish()
        self.header = header.with_footer(self.tail)
        return content.view(header.dtype).reshape(header.shape, order="F")

    def _checked_header(self) -> Header:
        header = header_in(self._begun, self.name)
        if header is not None:
            return header
        if not self._begun:
            raise InputError(f"{self.name} is empty; copy it again")
        if told := foreign_image(self.path, self._begun):
            raise InputError(f"{self.name} is {told}")
        if not self.path.name.lower().endswith(SUFFIXES):
            expected = f"expected NIfTI, MGH, NRRD or MetaImage, whose names end in {', '.join(SUFFIXES)}"
            raise InputError(f"{self.name} is of no known type, {expected}")
        raise self._unreadable("its content is neither NIfTI nor MGH")

    def _unreadable(self, reason: str) -> InputError:
        return InputError(f"{self.name} cannot be read, damaged, truncated or not an image ({reason})")

    def _read(self, size: int) -> bytes:
        try:
            return self._stream.read(size)
        except DAMAGED as error:
            raise self._unreadable(first_line(error)) from None

    def _check_size(self, needed: int) -> None:
        """Refuses before any memory is taken what the file cannot hold."""
        most = self._size * MOST_DENSE if self._packed else self._size
        if needed > most:
            raise self._unreadable(f"by its header it has {needed} bytes, it holds {most} at most")
        if self.header.offset > MOST_BESIDE:
            raise self._unreadable(f"by its header its voxels begin at byte {self.header.offset}")

    def _passed(self, offset: int) -> bytes:
        """What lies between the header and the voxels; the stream then stands at the voxels, or in what was read."""
        if offset <= len(self._begun):
            self._begun, between = self._begun[offset:], self._begun[:offset]
            return between
        between = bytearray(self._begun)
        self._begun = b""
        while len(between) < offset:
            between += self._some(min(PIECE, offset - len(between)))
        return bytes(between)

    def _some(self, size: int) -> bytes:
        content = self._read(size)
        if not content:
            raise self._unreadable("it ends before its voxels do")
        return content

    def _fill(self, target: memoryview) -> None:
        filled = min(len(self._begun), len(target))
        target[:filled] = self._begun[:filled]
        self._begun = self._begun[filled:]
        while filled < len(target):
            content = self._some(min(PIECE, len(target) - filled))
            target[filled : filled + len(content)] = content
            filled += len(content)

    def _finish(self) -> bytes:
        """Reads to the end, which verifies gzip's checksum; the first bytes behind the voxels."""
        tail, behind = self._begun, len(self._begun)
        while content := self._read(PIECE):
            tail, behind = (tail + content)[:TAIL], behind + len(content)
            if behind > MOST_BESIDE:
                raise self._unreadable(f"more than {MOST_BESIDE >> 20} MiB follow its voxels")
        return tail


@contextmanager
def open_image(path: str | PathLike, argument: str) -> Iterator[OpenImage | ItkImage]:
    """Open a NIfTI-1, NIfTI-2 or MGH file, compressed or not, or NRRD or MetaImage, told by its content.

    Args:
        path: the file.
        argument: what to call it in messages, such as ``--fixed``.

    Raises:
        InputError: no such file, another format, or a header with no meaning.
    """
    path = Path(path)
    with explained(argument):
        if path.is_dir():
            raise InputError(
                f"{argument}: {path} is not a file but a folder; of a folder of DICOM files make NIfTI: {DICOM_FOLDER}"
            )
    path = require_file(path, argument)
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"{argument}: {path} cannot be opened ({error.strerror}); check the permissions") from None
    with file:
        of_itk = file.peek(BEGINNING).startswith(MARKS)
        yield ItkImage(path, argument) if of_itk else OpenImage(path, argument, file)


def read_header(path: str | PathLike, argument: str) -> Header:
    """The header of an image, for which no voxel is read.

    Raises:
        InputError: as `open_image`.
    """
    with open_image(path, argument) as image:
        return image.header
