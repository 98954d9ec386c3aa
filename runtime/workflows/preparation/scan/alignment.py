"""Alignment of scans with the reference, by the affine initialisation of `register`, with a choice of freedom."""

from dataclasses import dataclass

import numpy as np

from ....errors import InputError
from ....geometry.grid import Grid
from ....registration.affine.align import AffineInitialisation, FixedPyramid, nearest_rigid
from ....registration.affine.pyramid import cropped_to_foreground
from ....types import Array


@dataclass(frozen=True, eq=False)
class Alignment:
    """An alignment.

    Attributes:
        matrix: (4, 4) RAS mm, reference -> scan.
        used: kind of alignment used.
        note: a warning about it, if any.
    """

    matrix: Array
    used: str
    note: str | None = None


class Aligner:
    """Alignment of any number of scans with one reference, of which only what the affine initialisation needs is kept.

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
            self._centre_of_mass = cropped_to_foreground(image, grid, "reference").centre

    def align(self, image: Array, grid: Grid) -> Alignment:
        """Return the map from the reference to a scan.

        Raises:
            InputError: the scan is empty or constant, or correlates nowhere with the reference.
        """
        return self._find(image, grid)

    def _none(self, image: Array, grid: Grid) -> Alignment:
        return Alignment(np.eye(4), "headers")

    def _centre(self, image: Array, grid: Grid) -> Alignment:
        matrix = np.eye(4)
        matrix[:3, 3] = cropped_to_foreground(image, grid, "image").centre - self._centre_of_mass
        return Alignment(matrix, "centres of mass")

    def _auto(self, image: Array, grid: Grid) -> Alignment:
        found = self._start(image, grid)
        return Alignment(found.matrix, found.used, found.note)

    def _rigid(self, image: Array, grid: Grid) -> Alignment:
        """Return the rigid map nearest to the affine one, refined by rigid steps on every level."""
        nearest = nearest_rigid(self._start(image, grid).matrix, self._centre_of_mass)
        matrix, _ = self._pyramid.pair_with(image, grid).refined(nearest, "rigid")
        return Alignment(matrix, "rigid")

    def _start(self, image: Array, grid: Grid) -> AffineInitialisation:
        try:
            return self._pyramid.align(image, grid)
        except InputError:
            cropped_to_foreground(image, grid, "image")  # raises if the image is empty or constant
            raise InputError(
                "image: does not correlate with the reference; remove it from the list if it shows something else, or "
                "give --affine centre or none"
            ) from None
