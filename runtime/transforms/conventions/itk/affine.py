"""ITK's and ANTs' affine maps: text (.txt, .tfm) and MATLAB-4 (.mat, ``0GenericAffine.mat``).

    y = A (x - c) + c + t,   x, y and the centre c in mm of LPS

from the fixed into the moving image's space. Parameters are A row by row, then t; c is the fixed parameter. Rigid and
similarity transforms have fewer parameters, from which A is computed.

A MATLAB-4 file is a list of matrices: five 32-bit integers (type, rows, columns, flag for an imaginary part, length of
the name with its zero), name, numbers column by column.

Source: itk::MatrixOffsetTransformBase and its subclasses, itk::TxtTransformIO, itk::MatlabTransformIO; "Level 4
MAT-File Format" in MathWorks' MAT-File Format.
"""

import functools
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ....errors import InputError, first_line
from ....geometry.grid import LARGEST_ENTRY, check_affine
from ....host.files.whole_files import write_bytes, write_text
from ....types import Array
from ..frames import TO_LPS

BANNER = "#Insight Transform File V1.0"
NAME = "AffineTransform_double_3_3"
SHORTER = 1e-10  # relative margin in a versor's length, as in itk::VersorRigid3DTransform::SetParameters
LONGEST_NAME = 256  # bytes of a matrix's name in a .mat file
MATLAB_TYPES = {0: "f8", 10: "f4", 20: "i4"}


def matrix_of(kind: str, parameters: Array, fixed: Array, name: str) -> Array:
    """Return the (4, 4) RAS mm matrix of an ITK transform.

    Args:
        kind: name of the class without precision, such as ``AffineTransform``.
        parameters, fixed: its parameters and fixed parameters.
        name: name of the file, for messages.

    Raises:
        InputError: a class that is not an affine map, a wrong number of parameters, or parameters out of range.
    """
    if kind not in LINEAR_PARTS:
        raise InputError(f"{name} holds a {kind}, expected one of {', '.join(LINEAR_PARTS)}")
    part = LINEAR_PARTS[kind]
    parameters, fixed = np.ravel(parameters).astype(np.float64), np.ravel(fixed).astype(np.float64)
    if parameters.size != part.count:
        raise InputError(f"{name} holds a {kind} of {parameters.size} parameters, expected {part.count}")
    if not np.abs(np.concatenate([parameters, fixed])).max(initial=0) <= LARGEST_ENTRY:
        raise InputError(f"{name} holds a {kind} with numbers that are not finite, or too large; write it again")
    if 0 < fixed.size < 3:
        raise InputError(f"{name} holds a {kind} with a centre of {fixed.size} numbers, expected 3; write it again")
    matrix, shift = np.eye(4), np.zeros(3)
    matrix[:3, :3] = part.linear(parameters, fixed)
    if part.shift is not None:
        shift = parameters[part.shift : part.shift + 3]
    centre = fixed[:3] if fixed.size >= 3 else np.zeros(3)
    matrix[:3, 3] = shift + centre - matrix[:3, :3] @ centre
    check_affine(matrix, name)
    ras: Array = TO_LPS @ matrix @ TO_LPS
    return ras


def parameters_of(matrix: Array) -> Array:
    """Return the 12 parameters of an AffineTransform with its centre at 0, for a (4, 4) RAS mm affine."""
    lps = TO_LPS @ matrix @ TO_LPS
    return np.concatenate([lps[:3, :3].ravel(), lps[:3, 3]])


def read_text(path: Path, argument: str) -> Array:
    """Read the affine in an ITK text file, (4, 4) RAS mm; a composite's parts are multiplied, the last applied first.

    Raises:
        InputError: no transform, several that are not a composite, or one that is not an affine map.
    """
    name = f"{argument}: {path}"
    parts = list(_text_parts(path, name))
    composite = bool(parts) and parts[0][0] == "CompositeTransform"
    matrices = [matrix_of(*part, name) for part in (parts[1:] if composite else parts)]
    if not matrices or (len(matrices) > 1 and not composite):
        raise InputError(f"{name} holds {len(matrices)} transforms, expected one, or a composite; split the file")
    return functools.reduce(np.matmul, matrices)


def read_matlab(path: Path, argument: str) -> Array:
    """Read the affine in an ANTs .mat file, (4, 4) RAS mm.

    Raises:
        InputError: another version of MATLAB's format, damaged, or not an affine map.
    """
    name, content = f"{argument}: {path}", path.read_bytes()
    if content.startswith(b"MATLAB"):
        raise InputError(
            f"{name} is a MATLAB file of version 5 or later, expected one of ANTs, which are of version 4; convert an "
            "..._sn.mat of SPM to a y_*.nii with its Deformations tool"
        )
    try:
        numbers = dict(_matlab_matrices(content))
        kind = next(key for key in numbers if key != "fixed")
        fixed = numbers["fixed"]
    except (struct.error, KeyError, ValueError, StopIteration) as error:
        raise InputError(f"{name} cannot be read as an affine of ANTs ({first_line(error)})") from None
    return matrix_of(kind.split("_")[0], numbers[kind], fixed, name)


def write_text_file(path: Path, matrix: Array) -> None:
    """Write a (4, 4) RAS mm affine as text that ITK and ANTs read, without loss."""
    parameters = " ".join(repr(float(value)) for value in parameters_of(matrix))
    write_text(path, f"{BANNER}\n#Transform 0\nTransform: {NAME}\nParameters: {parameters}\nFixedParameters: 0 0 0\n")


def write_matlab(path: Path, matrix: Array) -> None:
    """Write a (4, 4) RAS mm affine as an ANTs .mat, without loss."""
    write_bytes(path, _matlab_matrix(NAME, parameters_of(matrix)) + _matlab_matrix("fixed", np.zeros(3)))


def _text_parts(path: Path, name: str) -> Iterator[tuple[str, Array, Array]]:
    """Yield (kind, parameters, fixed parameters) of each transform in a text file."""
    kind, found = "", {}
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            key, _, values = line.partition(":")
            if key.strip() == "Transform":
                kind = values.strip().split("_")[0]
                if kind == "CompositeTransform":
                    yield kind, np.empty(0), np.empty(0)
            elif key.strip() in ("Parameters", "FixedParameters"):
                found[key.strip()] = np.array([float(value) for value in values.split()])
                if len(found) == 2:
                    yield kind, found.pop("Parameters"), found.pop("FixedParameters")
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{name} cannot be read as a transform of ITK ({first_line(error)})") from None


def _matlab_matrices(content: bytes) -> Iterator[tuple[str, Array]]:
    at = 0
    while at < len(content):
        # Types are below 5000 (MOPT), so the first integer reveals the byte order.
        order = "<" if int.from_bytes(content[at : at + 4], "little") < 5000 else ">"
        kind, rows, columns, _, length = struct.unpack_from(f"{order}5i", content, at)
        if not (0 < length <= LONGEST_NAME and 0 <= rows * columns <= len(content) and rows >= 0):
            raise ValueError(f"a matrix of {rows} x {columns} whose name has {length} bytes")
        at += 20
        key = content[at : at + length].rstrip(b"\0").decode()
        numbers = np.frombuffer(content, order + MATLAB_TYPES[kind % 100], rows * columns, at + length)
        yield key, numbers
        at += length + numbers.nbytes


def _matlab_matrix(key: str, numbers: Array) -> bytes:
    text = key.encode() + b"\0"
    return struct.pack("<5i", 0, numbers.size, 1, 0, len(text)) + text + numbers.astype("<f8").tobytes()


def _rows(parameters: Array, fixed: Array) -> Array:
    return parameters[:9].reshape(3, 3)


def _versor(parameters: Array, fixed: Array) -> Array:
    """Return the rotation of a unit quaternion's vector part; one longer than 1 is shortened as in ITK."""
    length = np.linalg.norm(parameters[:3])
    x, y, z = parameters[:3] / (length * (1 + SHORTER) if length >= 1 - SHORTER else 1.0)
    w = np.sqrt(max(1 - x * x - y * y - z * z, 0.0))
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def _euler(parameters: Array, fixed: Array) -> Array:
    """Return the rotation about x, y and z, Rz Rx Ry, or Rz Ry Rx if the fourth fixed parameter is set."""
    cosines, sines = np.cos(parameters[:3]), np.sin(parameters[:3])
    about = [np.eye(3) for _ in range(3)]
    for axis, (c, s) in enumerate(zip(cosines, sines, strict=True)):
        one, two = (axis + 1) % 3, (axis + 2) % 3
        about[axis][one, one], about[axis][two, two] = c, c
        about[axis][one, two], about[axis][two, one] = -s, s
    x, y, z = about
    turned: Array = z @ y @ x if fixed.size > 3 and fixed[3] else z @ x @ y
    return turned


def _similarity(parameters: Array, fixed: Array) -> Array:
    scaled: Array = parameters[6] * _versor(parameters, fixed)
    return scaled


def _scale_versor(parameters: Array, fixed: Array) -> Array:
    """Return rotation and scales: ITK adds (scale - 1) to the rotation's diagonal; it does not multiply."""
    scaled: Array = _versor(parameters, fixed) + np.diag(parameters[6:9] - 1)
    return scaled


def _scale_skew_versor(parameters: Array, fixed: Array) -> Array:
    """Return rotation, scales and skews: skews are added too, to the off-diagonal elements, row by row."""
    matrix = _scale_versor(parameters, fixed)
    matrix[~np.eye(3, dtype=bool)] += parameters[9:15]
    return matrix


@dataclass(frozen=True)
class LinearPart:
    """The affine map defined by the parameters of an ITK class.

    Attributes:
        count: number of parameters.
        linear: (parameters, fixed parameters) -> the matrix A.
        shift: index of the translation's first parameter; None: there is none.
    """

    count: int
    linear: Callable[[Array, Array], Array]
    shift: int | None = None


LINEAR_PARTS = {
    "AffineTransform": LinearPart(12, _rows, 9),
    "MatrixOffsetTransformBase": LinearPart(12, _rows, 9),
    "Euler3DTransform": LinearPart(6, _euler, 3),
    "VersorTransform": LinearPart(3, _versor),
    "VersorRigid3DTransform": LinearPart(6, _versor, 3),
    "Similarity3DTransform": LinearPart(7, _similarity, 3),
    "ScaleTransform": LinearPart(3, lambda parameters, fixed: np.diag(parameters)),
    "ScaleVersor3DTransform": LinearPart(9, _scale_versor, 3),
    "ScaleSkewVersor3DTransform": LinearPart(15, _scale_skew_versor, 3),
    "TranslationTransform": LinearPart(3, lambda parameters, fixed: np.eye(3), 0),
    "IdentityTransform": LinearPart(0, lambda parameters, fixed: np.eye(3)),
}
