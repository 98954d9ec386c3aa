"""The two sides of a transform, and the card that keeps them inside its file.

A card is one line of JSON: both sides' shape, affine, hash and name, and the convention. It stands where readers skip
it: in an extension of the NIfTI header, a comment of a text file, an attribute of an HDF5 file. Files of other tools
have none.
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

MARK = "rpnet transform "  # what a card begins with
VERSION = 1


@dataclass(frozen=True)
class Space:
    """One side of a transform: where an image lies.

    Attributes:
        grid: the image's.
        sha256: of the image's file, as `read_volume` gives it; None: not known.
        name: of the file, for messages.
        zooms: `Source.zooms` of the image.
    """

    grid: Grid
    sha256: str | None = None
    name: str | None = None
    zooms: tuple[float, float, float] | None = None

    @classmethod
    def of(cls, image: Source) -> "Space":
        """That of an image that was read."""
        return cls(image.grid, image.sha256, image.path and image.path.name, image.zooms)


class ConventionError(InputError):
    """A file says that it is of another convention than the one that was named."""


class ImagesNeededError(InputError):
    """A file means nothing without its images' grids, of which one is not known.

    Attributes:
        reason: what is needed, without the remedy.
        images: which, "fixed" and "moving".
    """

    def __init__(self, reason: str, *images: str) -> None:
        super().__init__(f"{reason}; name {'that image' if len(images) == 1 else 'both images'}")
        self.reason, self.images = reason, images


@dataclass(frozen=True, eq=False)
class TransformFile:
    """A transform and the file it came from.

    Attributes:
        transform: from the start into the end, RAS mm.
        convention: the file's, one of `CONVENTIONS` or "ras".
        path: the file.
        start, end: the sides; None: the file does not say.
        doubts: of its header, as an image's, one line each.
    """

    transform: Transform
    convention: str
    path: Path
    start: Space | None
    end: Space | None
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Card:
    """What a file of ours says about itself."""

    convention: str
    start: Space
    end: Space | None

    def line(self) -> str:
        """The card as one line of text."""
        sides = {"start": _as_dict(self.start), "end": self.end and _as_dict(self.end)}
        return MARK + json.dumps({"version": VERSION, "convention": self.convention, **sides}, separators=(",", ":"))


def card_in(text: str, name: str) -> Card | None:
    """The card in a text; None where there is none, or one of another version.

    Args:
        text: of a comment, an extension or an attribute.
        name: argument and file, for messages.

    Raises:
        InputError: a damaged card: what it is damaged with may be the transform as well.
    """
    _, mark, line = text.partition(MARK)
    if not mark:
        return None
    try:
        fields, _ = json.JSONDecoder().raw_decode(line)
        if fields["version"] != VERSION:
            return None
        return Card(str(fields["convention"]), _space(fields["start"]), fields["end"] and _space(fields["end"]))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise InputError(
            f"{name} says of itself what cannot be ({first_line(error)[:100]}); it is damaged, write or copy it again"
        ) from None


def sides(card: Card | None, grid: Grid) -> tuple[Space, Space | None]:
    """The sides of a field on `grid`; a card that names another grid belongs to another file and says nothing."""
    if card is None or not card.start.grid.close(grid):
        return Space(grid), None
    return replace(card.start, grid=grid), card.end


def likeness(one: Space | None, other: Space | None) -> int:
    """How alike two sides are: 2 the same file, 1 the same grid, 0 different grids or not known."""
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
