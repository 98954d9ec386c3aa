"""The bytes of a NIfTI-1 file, in pieces that can be compressed one by one."""

import functools
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np

from runtime.geometry.errors import InputError
from runtime.geometry.grid import Grid
from runtime.geometry.gzip_stream import Piece

Array = np.ndarray
SCANNER = 1  # NIfTI code of a transform to scanner coordinates
PIECE = 1 << 20  # bytes of a piece, about


def storable(data: Array, dtype: type | None, path: Path) -> Array:
    """The data in the type they are stored in; InputError, which names the file, for integers beyond it."""
    if dtype is None:
        dtype = {"b": np.uint8, "f": np.float32}.get(data.dtype.kind, data.dtype)
        dtype = np.int32 if data.dtype in (np.int64, np.uint64) else dtype
    dtype = np.dtype(dtype).newbyteorder("=")
    if dtype.kind in "iu" and data.size:
        low, high = data.min(), data.max()
        if not (np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max):
            raise InputError(f"{path}: values from {low} to {high} do not fit {dtype}; choose a wider type")
        data = np.rint(data) if data.dtype.kind == "f" else data
    return data.astype(dtype, copy=False)


def pieces(first: bytes, data: Array, signs: tuple[int, ...] | None) -> Iterator[Piece]:
    """The bytes of a file, first axis fastest, in pieces that are made when they are called."""
    yield lambda: first
    step = max(PIECE // (data.itemsize * data.shape[0] * data.shape[1]), 1)
    for index in np.ndindex(*data.shape[:2:-1]):
        for start in range(0, data.shape[2], step):
            planes = data[(slice(None), slice(None), slice(start, start + step), *reversed(index))]
            yield functools.partial(_bytes, planes, signs[index[0]] if signs else 1)


def _bytes(planes: Array, sign: int) -> memoryview:
    planes = np.ascontiguousarray(planes.T).reshape(-1)
    return (planes if sign == 1 else planes * planes.dtype.type(sign)).view(np.uint8).data


def nifti_header(data: Array, grid: Grid, codes: tuple[int, int], intent: str | int, slope: float = 1.0) -> bytes:
    """348 bytes of NIfTI-1 header and 4 that say that no extension follows."""
    fields = nib.Nifti1Header()
    fields.set_data_dtype(data.dtype)
    fields.set_data_shape(data.shape)
    fields.set_zooms(grid.spacing + (1.0,) * (data.ndim - 3))
    fields.set_xyzt_units("mm")
    fields.set_slope_inter(slope, 0)
    fields.set_intent(intent)
    if grid.orthogonal:
        fields.set_qform(grid.affine, codes[1] or codes[0] or SCANNER)
    fields.set_sform(grid.affine, codes[0] or codes[1] or SCANNER)
    fields["vox_offset"] = fields.single_vox_offset
    return fields.binaryblock + bytes(4)
