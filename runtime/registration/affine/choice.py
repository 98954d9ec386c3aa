"""`--affine`: the kind of affine initialisation to search for, or the file that it is taken from."""

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
FIT_SAMPLES = 20_000  # positions to which an affine is fitted


@dataclass(frozen=True)
class AffineChoice:
    """The parsed value of `--affine`.

    Attributes:
        kind: one of `FOUND`, to be searched for; `NONE`, the headers alone; or "file".
        link: for "file", the file, inverted or not.
        convention: convention of a file that does not state its own.
        limits: limits of a plausible affine that is searched for.
    """

    kind: str
    link: Link | None = None
    convention: str = AUTO
    limits: Limits = LIMITS

    @property
    def found(self) -> bool:
        """True if the affine is searched for."""
        return self.kind in FOUND

    def given(self, fixed: Source, moving: Source, positions: Array) -> tuple[Array, dict[str, Any]]:
        """Return the given affine, (4, 4) RAS mm, fixed -> moving, from a file or the headers, and facts on it.

        Args:
            fixed, moving: the scans, for files that do not name theirs, and for the direction check.
            positions: (N, 3) RAS mm in the fixed scan, to which an affine is fitted if the file is a field.

        Raises:
            InputError: a file that cannot be used, maps in the wrong direction, or stretches implausibly.
        """
        facts: dict[str, Any] = {"found": False}
        if self.link is None:
            matrix = np.eye(4)
        else:
            link = self._read(self.link, fixed, moving)
            known, notes = link.transform.matrix, [*link.file.warnings]
            if known is None:
                known, left = best_fit(link.transform, positions)
                notes.append(f"the affine that fits {self.link} best, from which it deviates by up to {left:.1f} mm")
            if notes:
                facts["note"] = "; ".join(notes)
            matrix = known
            check_plausible(matrix, f"--affine: {self.link}")
        return np.array(matrix), facts | {"matrix": np.array(matrix).tolist()}

    def _read(self, link: Link, fixed: Source, moving: Source) -> ReadLink:
        sides = Space.of(fixed), Space.of(moving)
        start, end = sides[::-1] if link.inverse else sides
        file = read_transform(link.path, "--affine", self.convention, start.grid, end.grid)
        if file.convention == "fsl":
            check_zooms(*sides)
        read = ReadLink(file, link.inverse)
        try:
            check_direction([read], sides[1], sides[0])
        except DirectionError as error:
            raise InputError(str(error).replace("-t ", "--affine ")) from None
        return read


@explained("--affine")
def read_choice(text: str, convention: str = AUTO, limits: Limits = LIMITS) -> AffineChoice:
    """Parse ``auto``, ``affine``, ``rigid``, ``none`` or ``FILE[,inverse]``; a file is checked as far as possible.

    Args:
        text: as given.
        convention: convention of a file that does not state its own, as for `apply`.
        limits: limits of a plausible affine that is searched for.

    Raises:
        InputError: none of these, or a file that is not a transform.
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


def best_fit(transform: Transform, positions: Array) -> tuple[Array, float]:
    """Return the affine that fits a transform best, by least squares over some positions, and its largest deviation.

    Args:
        transform: RAS mm.
        positions: (N, 3) RAS mm, not all in one plane.

    Returns:
        (4, 4) RAS mm, and mm.
    """
    positions = positions[:: max(1, math.ceil(len(positions) / FIT_SAMPLES))]
    mapped, ones = transform.points(positions), np.ones((len(positions), 1))
    matrix = np.eye(4)
    matrix[:3] = np.linalg.lstsq(np.hstack([positions, ones]), mapped, rcond=None)[0].T
    return matrix, float(np.linalg.norm(AffineTransform(matrix).points(positions) - mapped, axis=1).max())
