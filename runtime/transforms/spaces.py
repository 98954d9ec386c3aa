"""The two sides of a transform, and the metadata that stores them in its file.

The metadata is one line of JSON: both sides' shape, affine, hash and name, and the convention. The line is stored where
other readers skip it: in an extension of the NIfTI header, a comment of a text file, an attribute of an HDF5 file.
Files of other tools have none.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, first_line
from ..geometry.grid import Grid
from ..geometry.transform import Transform
from ..images.volume import Source

MARK = "rpnet transform "  # before the JSON
VERSION = 1


@dataclass(frozen=True)
class Space:
    """One side of a transform: an image's grid, and its file's identity where known.

    Attributes:
        grid: grid of the image.
        sha256: hash of the image's file, as computed by `read_volume`; None: not known.
        name: name of the file, for messages.
        zooms: `Source.zooms` of the image.
    """

    grid: Grid
    sha256: str | None = None
    name: str | None = None
    zooms: tuple[float, float, float] | None = None

    @classmethod
    def of(cls, image: Source) -> "Space":
        """Return the space of an image that was read."""
        return cls(image.grid, image.sha256, image.path.name if image.path else None, image.zooms)


class ConventionError(InputError):
    """A file that states another convention than the one that was named."""


class ImagesNeededError(InputError):
    """A file that needs its images' grids, at least one of which is not known.

    Attributes:
        reason: the message without the remedy.
        images: the images needed, "fixed" and "moving".
    """

    def __init__(self, reason: str, *images: str) -> None:
        super().__init__(f"{reason}; name {'that image' if len(images) == 1 else 'both images'}")
        self.reason, self.images = reason, images


@dataclass(frozen=True, eq=False)
class TransformFile:
    """A transform and the file it came from.

    Attributes:
        transform: from the start into the end, RAS mm.
        convention: the file's convention, one of `CONVENTIONS` or "ras".
        path: the file.
        start, end: the sides; None: not stored in the file.
        warnings: warnings about its header, one line each.
    """

    transform: Transform
    convention: str
    path: Path
    start: Space | None
    end: Space | None
    warnings: tuple[str, ...] = ()

    @property
    def doubts(self) -> tuple[str, ...]:
        """Alias of `warnings`, its earlier name."""
        return self.warnings


@dataclass(frozen=True)
class TransformMetadata:
    """The metadata in a file of ours: its convention and sides."""

    convention: str
    start: Space
    end: Space | None

    def line(self) -> str:
        """Return the metadata as one line of text."""
        sides = {"start": _as_dict(self.start), "end": self.end and _as_dict(self.end)}
        return MARK + json.dumps({"version": VERSION, "convention": self.convention, **sides}, separators=(",", ":"))


def metadata_in(text: str, name: str) -> TransformMetadata | None:
    """Return the metadata in a text; None if there is none, or only of another version.

    Args:
        text: content of a comment, an extension or an attribute.
        name: argument and file, for messages.

    Raises:
        InputError: damaged metadata; the transform itself may be damaged as well.
    """
    _, mark, line = text.partition(MARK)
    if not mark:
        return None
    try:
        fields, _ = json.JSONDecoder().raw_decode(line)
        if fields["version"] != VERSION:
            return None
        return TransformMetadata(
            str(fields["convention"]), _space(fields["start"]), fields["end"] and _space(fields["end"])
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise InputError(
            f"{name} holds invalid metadata ({first_line(error)[:100]}); it is damaged, write or copy it again"
        ) from None


def sides(metadata: TransformMetadata | None, grid: Grid) -> tuple[Space, Space | None]:
    """Return the sides of a field on `grid`; metadata of another grid was copied from another file and is ignored."""
    if metadata is None or not metadata.start.grid.close(grid):
        return Space(grid), None
    return replace(metadata.start, grid=grid), metadata.end


def match_level(one: Space | None, other: Space | None) -> int:
    """Compare two sides: 2 the same file, 1 the same grid, 0 different grids or not known."""
    if one is None or other is None or not one.grid.close(other.grid):
        return 0
    return 2 if one.sha256 and one.sha256 == other.sha256 else 1


def _as_dict(space: Space) -> dict[str, Any]:
    grid = space.grid
    known = {"shape": grid.shape, "affine": grid.affine.tolist(), "sha256": space.sha256, "name": space.name}
    return known | ({"zooms": space.zooms} if space.zooms else {})


def _space(fields: dict[str, Any]) -> Space:
    grid = Grid(tuple(fields["shape"]), np.array(fields["affine"], dtype=np.float64))
    zooms = fields.get("zooms")
    return Space(grid, fields["sha256"], fields["name"], zooms and tuple(map(float, zooms)))
