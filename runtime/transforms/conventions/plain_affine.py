"""An affine as plain text: four rows of four numbers, RAS mm, from the fixed into the moving image's space."""

from os import PathLike

import numpy as np

from ...errors import InputError, first_line
from ...geometry.grid import check_affine
from ...host.files.regular_files import read_bytes
from ...host.files.whole_files import write_text
from ...types import Array
from ..spaces import TransformMetadata

LARGEST = 1 << 24  # bytes of a text of 16 numbers, including comments


def read_affine(path: str | PathLike[str], argument: str) -> Array:
    """Read a plain text file of four rows of four numbers: RAS mm, fixed -> moving.

    Raises:
        InputError: missing or unreadable file, another number of entries, not invertible.
    """
    content = read_bytes(path, argument, LARGEST)
    try:
        lines = [line for line in content.decode().splitlines() if line.split("#")[0].strip()]
        matrix = np.loadtxt(lines, ndmin=2) if lines else np.empty((0, 0))
    except ValueError as error:
        raise InputError(
            f"{argument}: {path} is not a text file of four rows of four numbers ({first_line(error)})"
        ) from None
    check_affine(matrix, f"{argument}: {path}")
    return matrix


def write_affine(path: str | PathLike[str], matrix: Array, metadata: TransformMetadata | None = None) -> None:
    """Write a (4, 4) RAS mm affine, fixed -> moving, for `read_affine`, without loss; metadata becomes a comment."""
    comment = f"# {metadata.line()}\n" if metadata else ""
    write_text(path, "# 4x4, RAS mm, fixed to moving\n" + comment + rows(matrix))


def rows(matrix: Array) -> str:
    """Format a matrix as lines of numbers, without loss."""
    return "".join(" ".join(repr(float(value)) for value in row) + "\n" for row in matrix)
