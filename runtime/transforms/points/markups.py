"""Points in 3D Slicer's markups (.mrk.json): control points are moved, everything else in the document is kept."""

import copy
import json
import math
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError, first_line
from ...geometry.grid import Grid
from ...host.files.regular_files import read_bytes
from ...host.files.whole_files import write_text
from ...types import Array
from ..conventions.frames import LPS

SYSTEMS = {"LPS": "lps", "RAS": "ras"}
LARGEST = 1 << 28  # bytes of a document


@dataclass(frozen=True, eq=False)
class MarkupsFile:
    """A markups document, with the interface of `runtime.transforms.points.tables.PointsFile`.

    Attributes:
        document: the whole JSON.
        frame: frame of its coordinates, "lps" or "ras".
        coordinates: (N, 3) float64 of all control points, list by list, mm.
    """

    document: dict[str, Any]
    frame: str
    coordinates: Array

    def physical(self, grid: Grid | None) -> Array:
        """Return the points, (N, 3) RAS mm; `grid` is not used."""
        return self.coordinates * (LPS if self.frame == "lps" else 1.0)

    def moved(self, points: Array, grid: Grid | None) -> "MarkupsFile":
        """Return the document with other points, (N, 3) RAS mm; points that are not finite become undefined."""
        document = copy.deepcopy(self.document)
        coordinates = points * (LPS if self.frame == "lps" else 1.0)
        for point, position in zip(_control_points(document), coordinates.tolist(), strict=True):
            if all(map(math.isfinite, position)):
                point["position"] = position
            else:
                point.pop("position")
                point["positionStatus"] = "undefined"
        return replace(self, document=document, coordinates=coordinates)

    def write(self, path: str | PathLike[str]) -> None:
        """Write the document, whole or not at all."""
        write_text(path, json.dumps(self.document, indent=4) + "\n")


def read_markups(path: Path, frame: str | None, argument: str) -> MarkupsFile:
    """Read the control points of a .mrk.json, all lists in it one after the other.

    Args:
        path: the file.
        frame: expected frame of the coordinates; None: as the document says.
        argument: the file's name in messages.

    Raises:
        InputError: not such a document, no points, lists in different frames, another frame than expected, or an
            invalid position.
    """
    content = read_bytes(path, argument, LARGEST)
    try:
        document = json.loads(content)
        lists, points = document["markups"], _control_points(document)
        systems = {str(markup.get("coordinateSystem", "LPS")).upper() for markup in lists}
        coordinates = np.array([point["position"] for point in points], dtype=np.float64).reshape(len(points), 3)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(f"{argument}: {path} is not a Slicer markups document with positions ({reason})") from None
    if not len(coordinates) or not np.isfinite(coordinates).all():
        raise InputError(f"{argument}: {path} holds no points, or one that is not finite; correct or remove it")
    if len(systems) > 1 or not systems <= SYSTEMS.keys():
        raise InputError(f"{argument}: {path} has coordinates in {' and '.join(sorted(systems))}, expected LPS or RAS")
    stated = SYSTEMS[systems.pop()]
    if frame not in (None, stated):
        raise InputError(f"{argument}: {path} states that its points are {stated}, but --points-in says {frame}")
    return MarkupsFile(document, stated, coordinates)


def _control_points(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [point for markup in document["markups"] for point in markup["controlPoints"]]
