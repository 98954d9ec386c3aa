"""Maps of a registration, some slices of each: differences, warped grid, Jacobian, local correlation, displacement."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ...geometry.jacobian import jacobian_of_flow
from ...images.intensity import FOREGROUND
from ...images.pictures.panels import (
    ABOVE,
    BELOW,
    PANEL,
    blended,
    difference_limit,
    grey,
    intensity_curve,
    mapped,
    signed,
    warped_grid,
)
from ...images.pictures.planes import Plane
from ...images.similarity import box_sum
from ...types import Array
from ..pictures import picture
from .images import PageImages
from .slices import shown_planes

EVERY = 2  # of the positions of the slices
SCALE = 1.0  # of the warped grid
DIM = 0.45  # of a grey image below a map
DOUBLED = 1.0  # log2 of the Jacobian determinant at the ends of its scale
FOLD_WHITE = (255, 255, 255)
CORRELATION_RADIUS = 4  # voxels
UNLIKE, ALIKE = 0.3, 0.8  # local correlation drawn in full colour, and from which on nothing is drawn
# Viridis, from dark to bright: distinguishable by everybody, and in grey.
VIRIDIS = np.array(
    [(68, 1, 84), (71, 44, 122), (59, 81, 139), (44, 113, 142), (33, 144, 141), (39, 173, 129), (92, 200, 99)]
    + [(170, 220, 50), (253, 231, 37)],
    np.float64,
)


@dataclass(frozen=True)
class Legend:
    """Legend of a map: labels along its colour scale and the colours, and a remark."""

    colours: tuple[str, ...]
    labels: tuple[str, ...]
    remark: str


@dataclass(frozen=True)
class Map:
    """One map.

    Attributes:
        key: for the page's elements.
        title: what is shown.
        legend: of its colours; None for the warped grid.
        planes: name of the plane -> pictures as URIs, with their size (columns, rows).
    """

    key: str
    title: str
    legend: Legend
    planes: dict[str, list[tuple[str, tuple[int, int]]]]


def draw_maps(images: PageImages) -> list[Map]:
    """Draw all maps of a registration."""
    drawing = _Drawing(images)
    limit, longest = drawing.limit, drawing.longest
    difference = Legend(
        (_css(BELOW), _css(PANEL), _css(ABOVE)),
        (f"−{limit:.2f}", "0", f"+{limit:.2f}"),
        "difference of intensities in [0, 1], contrast matched to the fixed image",
    )
    return [
        drawing.map("before", "Difference before: moving (affine only) − fixed", difference, drawing.before),
        drawing.map("after", "Difference after: warped − fixed", difference, drawing.after),
        drawing.map(
            "grid", "Warped grid", Legend((), (), "one line every 8 voxels, on the warped image"), drawing.grid
        ),
        drawing.map(
            "jacobian",
            "Volume change and folds",
            Legend(
                (_css(BELOW), _css(PANEL), _css(ABOVE), "#fff", "#fff"),
                ("halved", "unchanged", "doubled", "folded"),
                "Jacobian determinant of the flow, the affine not included; white: folded",
            ),
            drawing.jacobian,
        ),
        drawing.map(
            "correlation",
            "Where the images do not correlate",
            Legend(
                ("#777", _css(ABOVE)),
                (f"{ALIKE:g} or more", f"{UNLIKE:g} or less"),
                f"correlation of fixed and warped in cubes of {2 * CORRELATION_RADIUS + 1} voxels, on the warped image",
            ),
            drawing.correlation,
        ),
        drawing.map(
            "displacement",
            "Displacement",
            Legend(
                tuple(_css(colour) for colour in VIRIDIS),
                ("0", f"{longest / 2:.1f}", f"{longest:.1f} mm"),
                "length of the flow, the affine not included",
            ),
            drawing.displacement,
        ),
    ]


class _Drawing:
    """The maps' painters: each takes a plane and returns colours (rows, columns, 3)."""

    def __init__(self, images: PageImages) -> None:
        self._images = images
        self._planes = [(name, planes[::EVERY]) for name, _, planes in shown_planes(images)]
        self._spacing = float(np.mean(images.grid.spacing))

    def map(self, key: str, title: str, legend: Legend, painter: Callable[[Plane], Array]) -> Map:
        planes = {}
        for name, positions in self._planes:
            panels = [painter(plane) for plane in positions]
            planes[name] = [(picture(panel), (panel.shape[1], panel.shape[0])) for panel in panels]
        return Map(key, title, legend, planes)

    @cached_property
    def _curve(self) -> tuple[Array, Array]:
        fixed, warped = self._images.fixed[::2, ::2, ::2], self._images.warped[::2, ::2, ::2]
        return intensity_curve(fixed, warped, (fixed > FOREGROUND) & (warped > FOREGROUND))

    def _difference(self, plane: Plane, image: Array) -> Array:
        return mapped(plane.cut(image), self._curve) - plane.cut(self._images.fixed)

    @cached_property
    def limit(self) -> float:
        """End of the scale of differences."""
        shown = [self._difference(plane, self._images.moving).ravel() for _, planes in self._planes for plane in planes]
        return difference_limit(np.concatenate(shown))

    def before(self, plane: Plane) -> Array:
        return signed(self._difference(plane, self._images.moving) / self.limit)

    def after(self, plane: Plane) -> Array:
        return signed(self._difference(plane, self._images.warped) / self.limit)

    def grid(self, plane: Plane) -> Array:
        folded = plane.cut(self._determinant) <= 0
        return warped_grid(plane, self._images.warped, self._images.flow, folded, SCALE)

    @cached_property
    def _determinant(self) -> Array:
        return jacobian_of_flow(self._images.flow)

    def jacobian(self, plane: Plane) -> Array:
        determinant = plane.cut(self._determinant)
        changed = np.log2(np.clip(determinant, 2**-DOUBLED, 2**DOUBLED)) / DOUBLED
        colours = signed(np.where(plane.cut(self._images.fixed) > FOREGROUND, changed, 0))
        return blended(colours, FOLD_WHITE, (determinant <= 0).astype(float))

    @cached_property
    def _correlation(self) -> Array:
        """Correlation of fixed and warped in cubes around every second voxel; 1 where the fixed image is smooth."""
        fixed, warped = (image[::2, ::2, ::2].astype(np.float32) for image in (self._images.fixed, self._images.warped))

        window = CORRELATION_RADIUS + 1

        def mean(image: Array) -> Array:
            found: Array = box_sum(image, window) / window**3
            return found

        f, w = mean(fixed), mean(warped)
        variances = (mean(fixed * fixed) - f * f) * (mean(warped * warped) - w * w)
        correlation: Array = (mean(fixed * warped) - f * w) / np.sqrt(np.maximum(variances, 1e-10))
        return np.where((fixed > FOREGROUND) | (warped > FOREGROUND), np.clip(correlation, -1, 1), 1)

    def correlation(self, plane: Plane) -> Array:
        below = 0.7 * grey(plane.cut(self._images.warped))
        rows, columns = below.shape[:2]
        coarse = Plane(plane.name, plane.axis, plane.index // 2, plane.sides).cut(self._correlation)
        # Both axes run backwards in a picture, so the samples count from its far corner.
        row, column = ((size - 1 - np.arange(size)) // 2 for size in (rows, columns))
        values = coarse[::-1, ::-1][row][:, column]
        return blended(below, ABOVE, 0.9 * np.clip((ALIKE - values) / (ALIKE - UNLIKE), 0, 1))

    @cached_property
    def longest(self) -> float:
        """End of the scale of displacements, mm."""
        inside = self._images.fixed[::2, ::2, ::2] > FOREGROUND
        flow = self._images.flow[:, ::2, ::2, ::2][:, inside]
        lengths = np.sqrt((flow**2).sum(axis=0)) * self._spacing
        return max(float(np.percentile(lengths, 99)), 0.1) if lengths.size else 1.0

    def displacement(self, plane: Plane) -> Array:
        length = np.sqrt((plane.cut(self._images.flow) ** 2).sum(axis=0)) * self._spacing
        place = np.clip(length / self.longest, 0, 1) * (len(VIRIDIS) - 1)
        levels = np.arange(len(VIRIDIS))
        colours = np.stack([np.interp(place, levels, channel) for channel in VIRIDIS.T], axis=-1)
        return np.where((plane.cut(self._images.fixed) > FOREGROUND)[..., None], colours, DIM * colours)


def _css(colour: Array | tuple[int, ...]) -> str:
    return "#" + "".join(f"{round(value):02x}" for value in colour)
