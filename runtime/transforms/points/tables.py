"""Tables of points: the columns that hold coordinates, and their frame; everything else is passed through unchanged.

CSV with commas, semicolons or tabs, Slicer's .fcsv, and its .mrk.json (`runtime.transforms.points.markups`).
"""

import csv
import math
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import cast

import numpy as np

from ...errors import InputError, first_line
from ...geometry.grid import Grid
from ...host.files.csv_lines import LARGEST, Lines, divider_in, read_csv
from ...host.files.regular_files import read_bytes
from ...host.files.whole_files import atomic_path
from ...types import Array
from ..conventions.frames import LPS
from .markups import MarkupsFile, read_markups

FRAMES = ("ras", "lps", "voxels")
# Names of the three columns, and the frame they imply; x, y, z imply none.
COLUMNS = {("r", "a", "s"): "ras", ("l", "p", "s"): "lps", ("i", "j", "k"): "voxels", ("x", "y", "z"): None}
FCSV_SYSTEMS = {"LPS": "lps", "1": "lps", "RAS": "ras", "0": "ras"}
FCSV_COLUMNS = "id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID"
DIGITS = 9  # after the point: a millionth of a micrometre


@dataclass(frozen=True, eq=False)
class PointsFile:
    """A CSV of points.

    Attributes:
        header: column names as in the file.
        rows: all cells as text, one tuple for each point.
        columns: indices of the three coordinate columns.
        frame: frame of the coordinates: "ras" and "lps" (mm) or "voxels" (I, J, K from 0, of some grid).
        coordinates: (N, 3) float64, as in the file.
        divider: character between cells.
        preamble: lines of Slicer's .fcsv that are written instead of the header; None: the header is written.
        decimal: decimal mark, "." or ",".
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    columns: tuple[int, int, int]
    frame: str
    coordinates: Array
    divider: str = ","
    preamble: tuple[str, ...] | None = None
    decimal: str = "."

    def physical(self, grid: Grid | None) -> Array:
        """Return the points, (N, 3) RAS mm; `grid` is needed for voxel coordinates only."""
        if self.frame == "voxels":
            assert grid is not None
            return grid.to_physical(self.coordinates)
        return self.coordinates * (LPS if self.frame == "lps" else 1.0)

    def moved(self, points: Array, grid: Grid | None) -> "PointsFile":
        """Return the file with other points; coordinates that are not finite become empty cells.

        Args:
            points: (N, 3) RAS mm, in the file's order.
            grid: grid of voxel coordinates; needed for them only.
        """
        if self.frame == "voxels":
            assert grid is not None
            points = grid.to_voxels(points)
        coordinates = points * (LPS if self.frame == "lps" else 1.0)
        rows = []
        for cells, position in zip(map(list, self.rows), coordinates.tolist(), strict=True):
            for column, value in zip(self.columns, position, strict=True):
                number = repr(round(value, DIGITS) + 0.0).replace(".", self.decimal)  # + 0.0: no -0.0
                cells[column] = number if math.isfinite(value) else ""
            rows.append(tuple(cells))
        return replace(self, rows=tuple(rows), coordinates=coordinates)

    def write(self, path: str | PathLike[str]) -> None:
        """Write the CSV, whole or not at all."""
        with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in self.preamble or ())
            header = [self.header] if self.preamble is None else []
            csv.writer(file, delimiter=self.divider, lineterminator="\n").writerows([*header, *self.rows])


def point_suffixes(path: str | PathLike[str]) -> tuple[str, ...]:
    """Return the suffixes allowed for a file of moved points, given its input: those of the same format."""
    name = Path(path).name.lower()
    kinds = (".mrk.json", ".json"), (".fcsv",)
    return next((suffixes for suffixes in kinds if name.endswith(suffixes)), (".csv", ".tsv", ".txt"))


def read_points(
    path: str | PathLike[str], frame: str | None = None, argument: str = "--points", default: str | None = None
) -> PointsFile | MarkupsFile:
    """Read points of a CSV, or of Slicer's .fcsv or .mrk.json, which state their frame.

    A CSV has a header and one point per line, cells separated by commas, semicolons or tabs; columns x,y,z or r,a,s or
    l,p,s or i,j,k, in upper or lower case and any order. Other columns are kept unchanged, so that ANTs' x,y,z,t,label
    passes.

    Args:
        path: the file.
        frame: frame of the coordinates, one of `FRAMES`; None: as implied by the columns r,a,s, l,p,s or i,j,k. x,y,z
            imply none.
        argument: the file's name in messages.
        default: frame of columns x,y,z where `frame` is None; a file that states its own is in that one.

    Raises:
        InputError: no such file, no such columns, a frame that is missing or contradicts the columns, no points, or a
            cell that is not a finite number.
    """
    path = Path(path)
    suffixes = point_suffixes(path)
    if ".json" in suffixes:
        return read_markups(path, frame, argument)
    if ".fcsv" in suffixes:
        return _read_fcsv(path, frame, argument)
    header, numbered = read_csv(path, argument, "x,y,z")
    with path.open(encoding="utf-8-sig") as file:
        divider = divider_in(file.readline())
    columns, stated = _find_columns(header, f"{argument}: {path}")
    if frame is None and stated is None and default is None:
        raise InputError(f"{argument}: {path} has columns x,y,z; name their frame: --points-in ras, lps or voxels")
    if frame is not None and stated not in (None, frame):
        names = ",".join(header[column] for column in columns)
        raise InputError(f"{argument}: {path} has columns {names}, which are {stated}, but --points-in says {frame}")
    found = PointsFile(tuple(header), (), columns, cast(str, frame or stated or default), np.empty((0, 3)), divider)
    return _filled(found, numbered, f"{argument}: {path}")


def _filled(file: PointsFile, numbered: Lines, name: str) -> PointsFile:
    """Return the file with the rows and coordinates of its lines."""
    cells = [line[column] for _, line in numbered for column in file.columns if column < len(line)]
    decimal = "," if file.divider != "," and any("," in cell for cell in cells) else "."
    coordinates = [_numbers(line, file, decimal, f"{name} line {number}") for number, line in numbered]
    if not coordinates:
        raise InputError(f"{name} holds no points, expected one per line below the header")
    rows = tuple(tuple(line) for _, line in numbered)
    return replace(file, rows=rows, coordinates=np.array(coordinates), decimal=decimal)


def _read_fcsv(path: Path, frame: str | None, argument: str) -> PointsFile:
    """Read Slicer's format before version 4.11: lines that begin with # state the frame and the columns."""
    text = read_bytes(path, argument, LARGEST).decode(errors="replace")
    lines = [(number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    preamble = tuple(line for _, line in lines if line.startswith("#"))
    comments = dict(line.lstrip("# ").split("=", 1) for line in preamble if "=" in line)
    comments = {key.strip().casefold(): value.strip() for key, value in comments.items()}
    stated = FCSV_SYSTEMS.get(comments.get("coordinatesystem", "").upper())
    name = f"{argument}: {path}"
    if stated is None:
        raise InputError(f"{name} has no line '# CoordinateSystem = LPS' or RAS; save it again in Slicer")
    if frame not in (None, stated):
        raise InputError(f"{name} states that its points are {stated}, but --points-in says {frame}")
    header = tuple(comments.get("columns", FCSV_COLUMNS).split(","))
    try:
        numbered = [(number, next(csv.reader([line]))) for number, line in lines if not line.startswith("#")]
    except csv.Error as error:
        raise InputError(f"{name} cannot be read ({first_line(error)}); save it again in Slicer") from None
    file = PointsFile(header, (), _find_columns(list(header), name)[0], stated, np.empty((0, 3)), preamble=preamble)
    return _filled(file, numbered, name)


def _find_columns(header: list[str], name: str) -> tuple[tuple[int, int, int], str | None]:
    """Return the indices of the coordinate columns, and the frame their names imply, or None."""
    names = [cell.strip().casefold() for cell in header]
    for wanted, frame in COLUMNS.items():
        if set(wanted) <= set(names):
            if repeated := [column for column in wanted if names.count(column) > 1]:
                raise InputError(f"{name} has the column {repeated[0]} twice; rename one")
            first, second, third = map(names.index, wanted)
            return (first, second, third), frame
    raise InputError(
        f"{name} has no columns x,y,z (or r,a,s, l,p,s, i,j,k) in its first line, '{','.join(header)[:60]}'; expected "
        "a CSV with a header"
    )


def _numbers(cells: list[str], file: PointsFile, decimal: str, name: str) -> list[float]:
    numbers = []
    for column in file.columns:
        cell = cells[column].strip() if column < len(cells) else ""
        try:
            numbers.append(float(cell.replace(decimal, ".")))
        except ValueError:
            numbers.append(math.nan)
        if not math.isfinite(numbers[-1]):
            title = file.header[column].strip()
            raise InputError(f"{name}: {title} is '{cell}', expected a number; correct or remove it")
    return numbers
