"""NRRD and MetaImage files, read with SimpleITK if it is installed; see `runtime.images.formats.image_file`."""

from functools import cached_property
from pathlib import Path

import numpy as np

from ...errors import InputError
from ...host.files.hashes import sha256_of_file
from ...host.files.reading_process import UnreadableError, read_elsewhere
from ...types import Array, Record
from .headers import Header

READER = Path(__file__).with_name("itk_reader.py")
MARKS = (b"NRRD000", b"ObjectType", b"NDims", b"Comment")  # first bytes of such files
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


class ItkImage:
    """An image that is read in a separate process.

    Attributes:
        header: its header.
        name: argument and file, for messages.

    Raises:
        InputError: the file is damaged, has voxels in another file or several values per voxel, or no SimpleITK.
    """

    def __init__(self, path: Path, argument: str) -> None:
        self.path, self.name = path, f"{argument}: {path}"
        self.header = self._header(self._read()[0])

    @cached_property
    def sha256(self) -> str:
        """The hash of the file's bytes."""
        return sha256_of_file(self.path)

    def voxels(self) -> Array:
        """Read the values in the header's shape, first axis fastest."""
        head, content = self._read("--voxels")
        header = self._header(head)
        if len(content) != header.bytes:
            raise InputError(f"{self.name} cannot be read, damaged or truncated ({len(content)} bytes of voxels)")
        self.header = header
        return np.frombuffer(content, header.dtype).reshape(header.shape, order="F")

    def _read(self, *options: str) -> tuple[Record, memoryview]:
        try:
            return read_elsewhere(READER, self.path, *options)
        except UnreadableError as error:
            raise InputError(f"{self.name} cannot be read as NRRD or MetaImage ({error})") from None

    def _header(self, head: Record) -> Header:
        affine = LPS_TO_RAS @ np.array(head["affine"], dtype=np.float64)
        warnings = () if head["placed"] else ("the header has no position; ITK's default is assumed",)
        return Header(
            kind="ITK",
            shape=tuple(head["shape"]),
            dtype=np.dtype(head["type"]),
            offset=0,
            affine=affine,
            zooms=tuple(np.linalg.norm(affine[:3, :3], axis=0).tolist()),
            warnings=warnings,
        )
