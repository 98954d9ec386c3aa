"""The bytes of a NIfTI-1 file, in pieces that can be compressed independently."""

import functools
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np

from ...errors import InputError
from ...geometry.grid import Grid
from ...types import Array
from .gzip_stream import Piece
from .remarks import Remarks

Planes = Callable[[slice, tuple[int, ...]], Array]  # (span of K, index of the further axes) -> (I, J, k)
HEADER_SIZE = 348
COMMENT_CODE = 6  # NIFTI_ECODE_COMMENT
SCANNER = 1  # NIfTI code of a transform to scanner coordinates
CODES_NOT_KNOWN = (SCANNER, SCANNER)  # (sform, qform) codes if no image provides them
PIECE = 1 << 20  # approximate bytes of a piece


def storable(data: Array, dtype: type | None, path: Path) -> Array:
    """Convert data to the type on disk; InputError, which names the file, for values beyond an integer type."""
    wanted: type | np.dtype | None = dtype
    if wanted is None:
        smaller: dict[str, type] = {"b": np.uint8, "f": np.float32}
        wanted = smaller.get(data.dtype.kind, data.dtype)
        wanted = np.int32 if data.dtype in (np.int64, np.uint64) else wanted
    stored: np.dtype = np.dtype(wanted).newbyteorder("=")
    if stored.kind in "iu" and data.size:
        low, high = data.min(), data.max()
        if not (np.iinfo(stored).min <= low and high <= np.iinfo(stored).max):
            raise InputError(f"{path}: values from {low} to {high} do not fit {stored}; choose a wider type")
        data = np.rint(data) if data.dtype.kind == "f" else data
    return data.astype(stored, copy=False)


def pieces(first: bytes, data: Array, planes: Planes | None = None) -> Iterator[Piece]:
    """Yield the bytes of a file, first axis fastest, in pieces that are computed when they are called.

    Args:
        first: the header.
        data: (I, J, K, ...).
        planes: computes the values to write in place of ``data[:, :, span, *index]``, in the same type.
    """
    yield lambda: first
    step = max(PIECE // (data.itemsize * data.shape[0] * data.shape[1]), 1)
    for index in np.ndindex(*data.shape[:2:-1]):
        for start in range(0, data.shape[2], step):
            yield functools.partial(_bytes, data, planes, slice(start, start + step), index[::-1])


def _bytes(data: Array, planes: Planes | None, span: slice, index: tuple[int, ...]) -> memoryview:
    where: tuple[slice | int, ...] = (slice(None), slice(None), span, *index)
    values = planes(span, index) if planes else data[where]
    return np.ascontiguousarray(values.T).reshape(-1).view(np.uint8).data


def nifti_header(
    data: Array,
    grid: Grid,
    codes: tuple[int, int],
    intent: str | int,
    slope: float = 1.0,
    comment: str = "",
    step: tuple[float, str] | None = None,
    remarks: Remarks | None = None,
) -> bytes:
    """Return a NIfTI-1 header of 348 bytes and its extension: 4 zero bytes for none, or a comment.

    `step` is from one volume of a series to the next, and its unit; `remarks` replace the intent.
    """
    size, unit = step or (1.0, "unknown")
    extension = _extension(comment) if comment else bytes(4)
    fields = nib.Nifti1Header()
    fields.set_data_dtype(data.dtype)
    fields.set_data_shape(data.shape)
    fields.set_zooms(grid.spacing + (size, 1.0, 1.0, 1.0)[: data.ndim - 3])
    fields.set_xyzt_units("mm", unit)
    fields.set_slope_inter(slope, 0)
    fields.set_intent(intent, allow_unknown=True)
    if remarks is not None:
        remarks.write_into(fields)
    if grid.orthogonal:
        fields.set_qform(grid.affine, codes[1] or codes[0] or SCANNER)
    fields.set_sform(grid.affine, codes[0] or codes[1] or SCANNER)
    fields["vox_offset"] = HEADER_SIZE + len(extension)
    header: bytes = fields.binaryblock
    return header + extension


def _extension(comment: str) -> bytes:
    """Return a plain-text extension: flag, size, code, and text padded to a multiple of 16 bytes."""
    text = comment.encode()
    size = 8 + len(text) + -(8 + len(text)) % 16
    return struct.pack("<4BII", 1, 0, 0, 0, size, COMMENT_CODE) + text.ljust(size - 8, b"\0")
