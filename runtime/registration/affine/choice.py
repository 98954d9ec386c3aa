"""`--affine`: how the affine start is found, or the transform in a file that it is taken from."""

import contextlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError, explained
from ...geometry.transform import AffineTransform, Transform, check_plausible
from ...images.volume import Source
from ...transforms import (
    DirectionError,
    ImagesNeededError,
    Link,
    ReadLink,
    Space,
    check_direction,
    check_zooms,
    read_transform,
)
from ...transforms.formats import AUTO
from ...types import Array
from .limits import LIMITS, Limits

NONE, FOUND = "none", ("auto", "affine", "rigid")
FITTED = 20_000  # places at which a field is looked at for the affine that fits it best


@dataclass(frozen=True)
class AffineChoice:
    """What a user said, understood.

    Attributes:
        kind: one of `FOUND`, to be searched for; `NONE`, the headers as they are; or "file".
        link: of "file", the file and whether its inverse is meant.
        convention: of a file that does not say its own.
        limits: of what is searched for.
    """

    kind: str
    link: Link | None = None
    convention: str = AUTO
    limits: Limits = LIMITS

    @property
    def found(self) -> bool:
        """Whether it is searched for."""
        return self.kind in FOUND

    def given(self, fixed: Source, moving: Source, places: Array) -> tuple[Array, dict[str, Any]]:
        """The matrix, (4, 4) RAS mm, fixed -> moving, of what is not searched for, and facts on it.

        Args:
            fixed, moving: the scans, for files that say nothing of theirs and to refuse the wrong way round.
            places: (N, 3) RAS mm in the fixed scan, where a field is looked at.

        Raises:
            InputError: a file that cannot be used, leads the other way or stretches beyond what a body does.
        """
        facts: dict[str, Any] = {"found": False}
        if self.link is None:
            matrix = np.eye(4)
        else:
            link = self._read(fixed, moving)
            matrix, notes = link.transform.matrix, [*link.file.doubts]
            if matrix is None:
                matrix, left = best_fit(link.transform, places)
                notes.append(f"the affine that fits {self.link} best, which bends by up to {left:.1f} mm beside it")
            if notes:
                facts["note"] = "; ".join(notes)
            check_plausible(matrix, f"--affine: {self.link}")
        return np.array(matrix), facts | {"matrix": np.array(matrix).tolist()}

    def _read(self, fixed: Source, moving: Source) -> ReadLink:
        sides = Space.of(fixed), Space.of(moving)
        start, end = sides[::-1] if self.link.inverse else sides
        file = read_transform(self.link.path, "--affine", self.convention, start.grid, end.grid)
        if file.convention == "fsl":
            check_zooms(*sides)
        link = ReadLink(file, self.link.inverse)
        try:
            check_direction([link], sides[1], sides[0])
        except DirectionError as error:
            raise InputError(str(error).replace("-t ", "--affine ")) from None
        return link


@explained("--affine")
def read_choice(text: str, convention: str = AUTO, limits: Limits = LIMITS) -> AffineChoice:
    """Understands ``auto``, ``affine``, ``rigid``, ``none`` or ``FILE[,inverse]``; a file is tried as far as can be.

    Args:
        text: as given.
        convention: of a file that does not say its own, as `apply` takes it.
        limits: of what is searched for.

    Raises:
        InputError: none of these, or a file that is no transform.
    """
    if text in (NONE, *FOUND):
        return AffineChoice(text, limits=limits)
    link = Link.parse(text)
    if not Path(link.path).is_file():
        raise InputError(f"--affine: got {text!r}, expected {', '.join((*FOUND, NONE))} or an existing transform file")
    choice = AffineChoice("file", link, convention)
    with contextlib.suppress(ImagesNeededError):
        matrix = read_transform(link.path, "--affine", convention).transform.matrix
        if matrix is not None:
            check_plausible(matrix, f"--affine: {link}")
    return choice


def best_fit(transform: Transform, places: Array) -> tuple[Array, float]:
    """The affine that misses a transform least, by squares, over some places, and by how much it does at most.

    Args:
        transform: RAS mm.
        places: (N, 3) RAS mm, not all in one plane.

    Returns:
        (4, 4) RAS mm, and mm.
    """
    places = places[:: max(1, math.ceil(len(places) / FITTED))]
    there, ones = transform.points(places), np.ones((len(places), 1))
    matrix = np.eye(4)
    matrix[:3] = np.linalg.lstsq(np.hstack([places, ones]), there, rcond=None)[0].T
    return matrix, float(np.linalg.norm(AffineTransform(matrix).points(places) - there, axis=1).max())
