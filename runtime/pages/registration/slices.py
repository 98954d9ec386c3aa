"""Slices through the images of a registration: three planes, several positions each, and the fixed image's contours."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ...geometry.smoothing import gaussian
from ...images.intensity import FOREGROUND
from ...images.pictures.planes import Plane, planes_at
from ...types import Array
from ..pictures import TENTHS, contour_path, picture
from .images import PageImages

POSITIONS = np.linspace(0.15, 0.85, 7)  # along each axis of the shown box
SMOOTHING = 1.0  # of the image whose contours are drawn, standard deviation in voxels


@dataclass(frozen=True)
class Slice:
    """One slice of all three images.

    Attributes:
        number: position among the plane's slices, from 1.
        size: (columns, rows) in pixels.
        view_box: of the contours.
        fixed, moving, warped: pictures as URIs.
        contours: paths of the fixed image's contours: its outline, and the boundary between dark and bright tissue.
    """

    number: int
    size: tuple[int, int]
    view_box: str
    fixed: str
    moving: str
    warped: str
    contours: tuple[str, ...]


@dataclass(frozen=True)
class PlaneSlices:
    """All slices of one plane; `sides` are the anatomical letters at the left and the right."""

    name: str
    sides: tuple[str, str]
    slices: tuple[Slice, ...]


def shown_planes(images: PageImages) -> Iterator[tuple[str, tuple[str, str], list[Plane]]]:
    """Yield name, sides and positions of each of the three planes."""
    positions = [planes_at(*(int(place * (size - 1)) for size in images.fixed.shape)) for place in POSITIONS]
    for planes in zip(*positions, strict=True):
        yield planes[0].name, planes[0].sides, list(planes)


def draw_slices(images: PageImages) -> list[PlaneSlices]:
    """Draw the slices of a registration."""
    levels = FOREGROUND, _middle(images.fixed)
    return [
        PlaneSlices(name, sides, tuple(_drawn(n, plane, images, levels) for n, plane in enumerate(planes, 1)))
        for name, sides, planes in shown_planes(images)
    ]


def _drawn(number: int, plane: Plane, images: PageImages, levels: tuple[float, ...]) -> Slice:
    fixed = plane.cut(images.fixed)
    rows, columns = fixed.shape
    outline = _smoothed(fixed)
    return Slice(
        number=number,
        size=(columns, rows),
        view_box=f"0 0 {TENTHS * columns} {TENTHS * rows}",
        fixed=picture(255 * fixed),
        moving=picture(255 * plane.cut(images.moving)),
        warped=picture(255 * plane.cut(images.warped)),
        contours=tuple(contour_path(outline, level) for level in levels),
    )


def _smoothed(image: Array) -> Array:
    """Return a slice smoothed, so that its contours are not those of noise."""
    smooth: Array = gaussian(image[None], SMOOTHING)[0]
    return smooth


def _middle(image: Array) -> float:
    """Return the intensity that separates dark from bright tissue best (Otsu's threshold inside the foreground)."""
    values = image[image > FOREGROUND]
    if not values.size:
        return 1.0
    counts, edges = np.histogram(values, 128)
    centres = (edges[1:] + edges[:-1]) / 2
    below, total = np.cumsum(counts), counts.sum()
    sums = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (sums[-1] * below / total - sums) ** 2 / (below * (total - below))
    return float(centres[np.nanargmax(between[:-1])])
