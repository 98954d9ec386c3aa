"""Where a scan lies in the reference's space: as much freedom as was asked for, by the affine start of `register`."""

from dataclasses import dataclass

import numpy as np

from ....errors import InputError
from ....geometry.grid import Grid
from ....registration.affine.align import AffineStart, FixedPyramid, nearest_rigid
from ....registration.affine.pyramid import prepared
from ....types import Array


@dataclass(frozen=True, eq=False)
class Alignment:
    """matrix: (4, 4) RAS mm, reference -> scan. used: what it is. note: what to doubt about it, if anything."""

    matrix: Array
    used: str
    note: str | None = None


class Aligner:
    """Aligns any number of scans with one reference, of which it keeps no more than the affine start looks at.

    Args:
        kind: "auto", "rigid", "centre" or "none", as in `PrepareOptions.affine`.
        image: (I, J, K) float32 in [0, 1], the reference.
        grid: its grid, RAS mm.

    Raises:
        InputError: the image is constant, unless `kind` is "none".
    """

    def __init__(self, kind: str, image: Array, grid: Grid) -> None:
        self._find = {"auto": self._auto, "rigid": self._rigid, "centre": self._centre, "none": self._none}[kind]
        if kind in ("auto", "rigid"):
            self._pyramid = FixedPyramid(image, grid)
        if kind in ("rigid", "centre"):
            self._centre_of_mass = prepared(image, grid, "reference").centre

    def align(self, image: Array, grid: Grid) -> Alignment:
        """Where the reference's points lie in a scan.

        Raises:
            InputError: the scan is empty or constant, or correlates nowhere with the reference.
        """
        return self._find(image, grid)

    def _none(self, image: Array, grid: Grid) -> Alignment:
        return Alignment(np.eye(4), "headers")

    def _centre(self, image: Array, grid: Grid) -> Alignment:
        matrix = np.eye(4)
        matrix[:3, 3] = prepared(image, grid, "image").centre - self._centre_of_mass
        return Alignment(matrix, "centres of mass")

    def _auto(self, image: Array, grid: Grid) -> Alignment:
        found = self._start(image, grid)
        return Alignment(found.matrix, found.used, found.note)

    def _rigid(self, image: Array, grid: Grid) -> Alignment:
        """The rigid map nearest to the affine one, then rigid steps on every level."""
        nearest = nearest_rigid(self._start(image, grid).matrix, self._centre_of_mass)
        matrix, _ = self._pyramid.facing(image, grid).refined(nearest, "rigid")
        return Alignment(matrix, "rigid")

    def _start(self, image: Array, grid: Grid) -> AffineStart:
        try:
            return self._pyramid.align(image, grid)
        except InputError:
            prepared(image, grid, "image")  # raises if the image is empty or constant
            raise InputError(
                "image: correlates nowhere with the reference; leave it out of the list if it shows something else, or "
                "give --affine centre or none"
            ) from None
