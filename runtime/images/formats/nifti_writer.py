"""Atomic writing of NIfTI volumes."""

from concurrent.futures import Executor
from os import PathLike
from pathlib import Path

import numpy as np

from ...errors import InputError
from ...geometry.grid import Grid
from ...host.files.whole_files import atomic_path
from ...types import Array
from .gzip_stream import DENSE, FAST, Compression, write_gzip
from .nifti_bytes import CODES_NOT_KNOWN, Planes, nifti_header, pieces, storable
from .remarks import Remarks
from .rounding import rounded_to_bits

COMPACT_BITS = 8  # bits of mantissa in a compact volume
COMPACT_ERROR = 2.0 ** -(COMPACT_BITS + 1)  # largest relative error of its values


def write_volume(
    path: str | PathLike[str],
    data: Array,
    grid: Grid,
    codes: tuple[int, int] = CODES_NOT_KNOWN,
    dtype: type | None = None,
    pool: Executor | None = None,
    slope: float = 1.0,
    step: tuple[float, str] | None = None,
    remarks: Remarks | None = None,
) -> None:
    """Write a NIfTI volume atomically; quickest for data in the file's memory order, first axis fastest.

    The sform is always set, the qform if the axes are orthogonal enough for its quaternion. A code of 0 is replaced by
    the other form's, or by scanner (1).

    Args:
        path: ends in .nii or .nii.gz.
        data: (I, J, K) or, with trailing axes, (I, J, K, ...).
        grid: of the first three axes.
        codes: (sform, qform) codes, `Volume.codes` of the image whose space this is.
        dtype: type on disk; None keeps the data's (bool, 64-bit and half types become uint8, int32 and float32).
        pool: runs the compression; None: a pool created for this call.
        slope: factor that readers multiply the stored values, which are `data`, by.
        step: of a series, `Volume.step`.
        remarks: `Volume.remarks`.

    Raises:
        InputError: for another suffix, another shape than the grid's, or integers beyond the type.
    """
    write_nifti(path, data, grid, codes, dtype, pool=pool, slope=slope, step=step, remarks=remarks)


def write_compact_volume(
    path: str | PathLike[str],
    data: Array,
    grid: Grid,
    codes: tuple[int, int] = CODES_NOT_KNOWN,
    pool: Executor | None = None,
) -> None:
    """Write a float32 volume small: its values, (I, J, K), rounded to `COMPACT_ERROR` of their size, signs kept.

    Arguments and errors are those of `write_volume`.
    """
    write_nifti(
        path,
        data,
        grid,
        codes,
        np.float32,
        planes=lambda span, _: rounded_to_bits(data[:, :, span], COMPACT_BITS),
        pool=pool,
        compression=DENSE,
    )


def write_nifti(
    path: str | PathLike[str],
    data: Array,
    grid: Grid,
    codes: tuple[int, int] = CODES_NOT_KNOWN,
    dtype: type | None = None,
    intent: str | int = "none",
    planes: Planes | None = None,
    pool: Executor | None = None,
    slope: float = 1.0,
    comment: str = "",
    step: tuple[float, str] | None = None,
    remarks: Remarks | None = None,
    compression: Compression = FAST,
) -> None:
    """Write a volume as `write_volume` does, with a NIfTI intent (name or code), such as "vector" for (I, J, K, 1, 3).

    `planes`, see `pieces`, transforms the data as they are written; `comment` is stored in a header extension;
    `compression` is used for .nii.gz.
    """
    path = Path(path)
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        raise InputError(f"{path}: cannot be written, expected a name that ends in .nii or .nii.gz")
    if data.shape[:3] != grid.shape:
        raise InputError(f"{path}: got data of shape {data.shape} for a grid of {grid.shape}")
    data = storable(data, dtype, path)
    content = pieces(nifti_header(data, grid, codes, intent, slope, comment, step, remarks), data, planes)
    with atomic_path(path) as temporary, open(temporary, "wb") as stream:
        if path.name.lower().endswith(".gz"):
            write_gzip(stream, content, pool, compression)
        else:
            stream.writelines(piece() for piece in content)
