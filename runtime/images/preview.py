"""A preview picture of a registration: three planes of the images, differences before and after, and the warped grid.

Planes are shown in radiological orientation: the patient's right at the left of the picture, superior up, anterior up
in the axial plane and to the left in the sagittal one. Drawn with Pillow, which is imported only when needed.
"""

from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType
from typing import TYPE_CHECKING

import numpy as np

from ..geometry.flow import jacobian_determinant
from ..geometry.grid import bounding_box
from ..host.files.whole_files import atomic_path
from ..types import Array, Shape
from .intensity import foreground_mask
from .similarity import ncc

if TYPE_CHECKING:
    import PIL.Image
    import PIL.ImageDraw
    import PIL.ImageFont

WIDTH, MARGIN, GAP, GUTTER, HEADER, FOOTER = 1520, 20, 8, 24, 70, 62
GRID_STEP = 8
LINE_WIDTH, FLATTEST = 1.3, 0.02  # pixels; smallest slope in voxels per pixel, which limits the width of a line
BORDER_VOXELS = 5
TALLEST = 1.5  # largest height of a panel, in widths
QUANTILES = np.linspace(1, 99, 64)
PNG_LEVEL = 3  # files as small as at Pillow's default level, in half the time

PAPER, PANEL = (19, 21, 26), (5, 6, 8)
INK, FAINT = (236, 238, 241), (150, 157, 168)
LINE, FOLD = (94, 214, 198), (255, 59, 59)
BELOW, ABOVE = (70, 160, 255), (255, 158, 44)
STRIP = 34
VERDICT_COLOURS = {"ok": (94, 214, 198), "look": (255, 206, 84), "failed": (255, 110, 110)}
NOTES = (
    "Planes through the middle of the foreground; R and L are the patient's right and left.",
    "Warped grid: regular lines on the moving image, resampled through the flow together with it.",
)


@dataclass(frozen=True)
class Plane:
    """A plane through a volume in RAS+ order, oriented for display.

    Attributes:
        name: shown beside its row.
        axis: the axis perpendicular to it, 0 to 2.
        index: position along that axis, in voxels.
        sides: the anatomical letters at the left and the right of the picture.
    """

    name: str
    axis: int
    index: int
    sides: tuple[str, str]

    @property
    def in_plane(self) -> tuple[int, int]:
        """The axes shown from top to bottom and from left to right, both running backwards."""
        across, down = (axis for axis in range(3) if axis != self.axis)
        return down, across

    def cut(self, volume: Array) -> Array:
        """Cut the plane from a volume (..., I, J, K), as a picture (..., rows, columns)."""
        plane = volume[(..., *(self.index if axis == self.axis else slice(None) for axis in range(3)))]
        return np.swapaxes(plane, -1, -2)[..., ::-1, ::-1]

    def folded(self, flow: Array) -> Array:
        """Return the folds of a flow (3, I, J, K) in this plane, Jacobian determinant <= 0, (rows, columns) bool."""
        first = max(self.index - 1, 0)
        slab = flow[(..., *(slice(first, self.index + 2) if axis == self.axis else slice(None) for axis in range(3)))]
        if min(slab.shape[1:]) < 2:
            return np.zeros(self.cut(flow[0]).shape, bool)
        inside = Plane(self.name, self.axis, self.index - first, self.sides)
        return inside.cut(jacobian_determinant(slab) <= 0)


def write_preview(
    path: str | Path,
    fixed: Array,
    moving: Array,
    warped: Array,
    flow: Array,
    correlations: tuple[float, float] | None = None,
    verdict: tuple[str, str] | None = None,
) -> None:
    """Write the picture of a registration (PNG), atomically.

    The grid is a regular one drawn onto the moving image and resampled through the flow like that image, so its lines
    lie exactly on the warped image. Before differences are taken, the intensities of the moving image are matched to
    those of the fixed one (one monotone curve for before and after), so that contrast does not hide the alignment.

    Args:
        path: the file to write.
        fixed, moving, warped: (I, J, K) in [0, 1] on one isotropic grid in the order closest to RAS+; moving after
            the affine initialisation, warped after the flow.
        flow: (3, I, J, K), voxels.
        correlations: NCC of fixed with moving and of fixed with warped, if already known.
        verdict: the verdict, "ok", "look" or "failed", and the line that explains it, drawn above; None: no line.
    """
    picture = draw_preview(fixed, moving, warped, flow, correlations)
    if verdict is not None:
        picture = _under_verdict(picture, *verdict)
    with atomic_path(path) as partial:
        picture.save(partial, format="PNG", compress_level=PNG_LEVEL)


def draw_preview(
    fixed: Array, moving: Array, warped: Array, flow: Array, correlations: tuple[float, float] | None = None
) -> "PIL.Image.Image":
    """Draw the picture of `write_preview` and return it as a Pillow image."""
    target, result = foreground_mask(fixed), foreground_mask(warped)
    correlations = correlations or (ncc(fixed, moving), ncc(fixed, warped))
    box: tuple[EllipsisType | slice, ...] = (..., *_box(target | result))
    fixed, moving, warped, flow, target, result = (a[box] for a in (fixed, moving, warped, flow, target, result))
    before, after = _differences(fixed, moving, warped, target & result)
    limit = _limit(before)
    columns = [
        ("fixed", "the target"),
        ("moving", "after affine initialisation"),
        ("warped", "moving, after the flow"),
        ("moving - fixed", _numbers(correlations[0], before, target | result)),
        ("warped - fixed", _numbers(correlations[1], after, target | result)),
        ("warped grid", f"one line every {GRID_STEP} voxels"),
    ]
    planes = _planes(fixed.shape)
    size = (WIDTH - 2 * MARGIN - GUTTER - (len(columns) - 1) * GAP) // len(columns)
    scale = size / max(max(across, down / TALLEST) for down, across in (plane.cut(fixed).shape for plane in planes))
    folded = [plane.folded(flow) for plane in planes]
    rows = []
    for plane, folds in zip(planes, folded, strict=True):
        grey = [_grey(_enlarge(plane.cut(image), scale)) for image in (fixed, moving, warped)]
        signed = [_signed(_enlarge(plane.cut(image), scale) / limit) for image in (before, after)]
        rows.append([*grey, *signed, _warped_grid(plane, warped, flow, folds, scale)])
    return _sheet(columns, planes, rows, size, limit, any(folds.any() for folds in folded))


def _under_verdict(picture: "PIL.Image.Image", verdict: str, line: str) -> "PIL.Image.Image":
    """Return the picture below a strip in the verdict's colour with the line that explains it."""
    from PIL import Image, ImageDraw

    canvas = Image.new("RGB", (picture.width, picture.height + STRIP), PAPER)
    canvas.paste(picture, (0, STRIP))
    draw = ImageDraw.Draw(canvas)
    draw.rectangle((0, 0, canvas.width, STRIP - 1), VERDICT_COLOURS[verdict])
    font, room = _font(16), canvas.width - 2 * MARGIN
    while draw.textlength(line, font) > room:
        line = line.removesuffix(" ...").rpartition(" ")[0] + " ..."
    draw.text((MARGIN, STRIP / 2), line, PAPER, font, anchor="lm")
    return canvas


def _box(foreground: Array) -> tuple[slice, ...]:
    """Return the region to show: the foreground's bounding box and a border; everything if there is no foreground."""
    if not foreground.any():
        return (slice(None),) * 3
    first, last = bounding_box(foreground)
    first, stop = first - BORDER_VOXELS, last + BORDER_VOXELS + 1
    # The left-right extent is widened to the front-back one, so that the panels of all three planes fill their column.
    spare = max(stop[1] - first[1] - (stop[0] - first[0]), 0)
    first[0], stop[0] = first[0] - spare // 2, stop[0] + spare - spare // 2
    return tuple(slice(max(a, 0), min(b, size)) for a, b, size in zip(first, stop, foreground.shape, strict=True))


def _planes(shape: Shape) -> tuple[Plane, ...]:
    i, j, k = (size // 2 for size in shape)
    return Plane("sagittal", 0, i, ("A", "P")), Plane("coronal", 1, j, ("R", "L")), Plane("axial", 2, k, ("R", "L"))


def _differences(fixed: Array, moving: Array, warped: Array, common: Array) -> tuple[Array, Array]:
    """Return moving - fixed and warped - fixed, with intensities mapped onto those of the fixed image.

    The map takes 0 to 0 and the quantiles of the warped image to those of the fixed one, both from the mask `common`.
    """
    seen, wanted = (np.append(0, np.percentile(_subsampled(image[common]), QUANTILES)) for image in (warped, fixed))
    before, after = ((_mapped(image, seen, wanted) - fixed).astype(np.float32) for image in (moving, warped))
    return before, after


def _mapped(image: Array, seen: Array, wanted: Array) -> Array:
    """Map intensities through the curve seen -> wanted; 0, most of a picture, stays 0 and is skipped."""
    lit = image > 0
    mapped = np.zeros(image.shape)
    mapped[lit] = np.interp(image[lit], seen, wanted)
    return mapped


def _subsampled(values: Array) -> Array:
    """Return enough of the values (N,) for a percentile; one zero if there are none."""
    return values[:: max(values.size // 200_000, 1)] if values.size else np.zeros(1)


def _limit(difference: Array) -> float:
    """Return the end of the colour scale: nearly the largest difference, rounded up."""
    largest = np.percentile(np.abs(_subsampled(difference[difference != 0])), 97)
    return max(float(np.ceil(largest / 0.05) * 0.05), 0.05)


def _numbers(correlations: float, difference: Array, foreground: Array) -> str:
    mean = np.abs(difference[foreground]).mean() if foreground.any() else 0
    return f"NCC {correlations:.3f}   mean |difference| {mean:.3f}"


def _enlarge(picture: Array, scale: float) -> Array:
    from PIL import Image

    rows, columns = (max(round(size * scale), 1) for size in picture.shape)
    image = Image.fromarray(np.ascontiguousarray(picture, np.float32))
    return np.asarray(image.resize((columns, rows), Image.Resampling.BICUBIC))


def _blend(below: Array | tuple[int, int, int], above: Array | tuple[int, int, int], share: Array) -> Array:
    """Blend two colours or colour pictures; `share` (rows, columns) in [0, 1] is the weight of the one above."""
    share = np.clip(share, 0, 1)[..., None]
    blended: Array = np.asarray(below) * (1 - share) + np.asarray(above) * share
    return blended


def _grey(picture: Array) -> Array:
    return _blend(PANEL, (255, 255, 255), picture)


def _signed(picture: Array) -> Array:
    """Return values in [-1, 1] as colours: one hue below zero, one above, dark at zero."""
    return _blend(_blend(PANEL, BELOW, -picture), ABOVE, picture)


def _warped_grid(plane: Plane, warped: Array, flow: Array, folded: Array, scale: float) -> Array:
    """Draw the dimmed warped image under the lines of a regular grid warped by the same flow; folds in red."""
    picture = 0.6 * _grey(_enlarge(plane.cut(warped), scale))
    flows = plane.cut(flow)
    for shown, axis in enumerate(plane.in_plane):
        displacement = _enlarge(flows[axis], scale)
        size = warped.shape[axis]
        position = size - 1 - ((np.arange(displacement.shape[shown]) + 0.5) * size / displacement.shape[shown] - 0.5)
        position = np.expand_dims(position, 1 - shown) + displacement
        picture = _blend(picture, LINE, 0.85 * _lines(position))
    return _blend(picture, FOLD, _enlarge(folded.astype(np.float32), scale))


def _lines(position: Array) -> Array:
    """Return the share of each pixel covered by lines, at multiples of the step in `position` (voxels)."""
    distance = np.abs((position / GRID_STEP + 0.5) % 1 - 0.5) * GRID_STEP
    slope = np.hypot(*np.gradient(position))
    share: Array = np.clip(LINE_WIDTH / 2 + 0.5 - distance / np.maximum(slope, FLATTEST), 0, 1)
    return share


def _sheet(
    columns: list[tuple[str, str]],
    planes: tuple[Plane, ...],
    rows: list[list[Array]],
    size: int,
    limit: float,
    folds: bool,
) -> "PIL.Image.Image":
    """Arrange panels, titles, letters and legends on one canvas."""
    from PIL import Image, ImageDraw

    heights = [max(panel.shape[0] for panel in panels) for panels in rows]
    canvas = Image.new("RGB", (WIDTH, HEADER + sum(heights) + (len(rows) - 1) * GAP + FOOTER), PAPER)
    draw = ImageDraw.Draw(canvas)
    left = [MARGIN + GUTTER + n * (size + GAP) for n in range(len(columns))]
    for x, (title, note) in zip(left, columns, strict=True):
        draw.text((x + size / 2, 26), title, INK, _font(18), anchor="mm")
        draw.text((x + size / 2, 50), note, FAINT, _font(12.5), anchor="mm")
    top = HEADER
    for plane, panels, height in zip(planes, rows, heights, strict=True):
        _name_row(canvas, plane.name, top, height)
        for n, (x, panel) in enumerate(zip(left, panels, strict=True)):
            draw.rectangle((x, top, x + size - 1, top + height - 1), PANEL)
            image = Image.fromarray(np.clip(np.rint(panel), 0, 255).astype(np.uint8))
            canvas.paste(image, (x + (size - image.width) // 2, top + (height - image.height) // 2))
            if n < 3:
                draw.text((x + 8, top + 7), plane.sides[0], FAINT, _font(14), anchor="lt")
                draw.text((x + size - 8, top + 7), plane.sides[1], FAINT, _font(14), anchor="rt")
        top += height + GAP
    _legends(canvas, draw, left, size, limit, folds)
    return canvas


def _name_row(canvas: "PIL.Image.Image", name: str, top: int, height: int) -> None:
    """Write a row's name vertically in the gutter."""
    from PIL import Image, ImageDraw

    label = Image.new("RGB", (height, GUTTER), PAPER)
    ImageDraw.Draw(label).text((height / 2, GUTTER / 2 - 3), name, FAINT, _font(14), anchor="mm")
    canvas.paste(label.rotate(90, expand=True), (MARGIN, top))


def _legends(
    canvas: "PIL.Image.Image", draw: "PIL.ImageDraw.ImageDraw", left: list[int], size: int, limit: float, folds: bool
) -> None:
    from PIL import Image

    y = canvas.height - FOOTER + 20
    first, width = left[3] + size // 2, size + GAP
    bar = np.broadcast_to(np.linspace(-1, 1, width), (10, width))
    canvas.paste(Image.fromarray(np.rint(_signed(bar)).astype(np.uint8)), (first, y - 5))
    draw.text((first - 8, y), f"-{limit:.2f}", INK, _font(13), anchor="rm")
    draw.text((first + width + 8, y), f"+{limit:.2f}", INK, _font(13), anchor="lm")
    scale_note = "difference of intensities in [0, 1], contrast matched"
    draw.text((first + width / 2, y + 20), scale_note, FAINT, _font(12.5), anchor="mm")
    for line, note in enumerate(NOTES):
        draw.text((left[0], y + 20 * line), note, FAINT, _font(12.5), anchor="lm")
    note = "folded voxels" if folds else "no folded voxels in these planes"
    x = left[5] + size / 2 + (9 if folds else 0)
    draw.text((x, y), note, FAINT, _font(12.5), anchor="mm")
    if folds:
        start = x - draw.textlength(note, _font(12.5)) / 2 - 18
        draw.rectangle((start, y - 5, start + 10, y + 5), FOLD)


def _font(size: float) -> "PIL.ImageFont.FreeTypeFont | PIL.ImageFont.ImageFont":
    from PIL import ImageFont

    return ImageFont.load_default(size)
