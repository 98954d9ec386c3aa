"""A preview picture of a registration: three planes of the images, differences before and after, and the warped grid.

Planes are shown in radiological orientation: the patient's right at the left of the picture, superior up, anterior up
in the axial plane and to the left in the sagittal one. Drawn with Pillow, which is imported only when needed.
"""

import json
from pathlib import Path
from types import EllipsisType
from typing import TYPE_CHECKING

import numpy as np

from ...host.files.whole_files import atomic_path
from ...types import Array
from ..intensity import foreground_mask
from ..similarity import ncc
from .panels import (
    FAINT,
    FOLD,
    GRID_STEP,
    INK,
    PANEL,
    PAPER,
    difference_limit,
    enlarged,
    grey,
    matched_differences,
    signed,
    warped_grid,
)
from .planes import Plane, middle_planes, shown_box

if TYPE_CHECKING:
    import PIL.Image
    import PIL.ImageDraw
    import PIL.ImageFont

WIDTH, MARGIN, GAP, GUTTER, HEADER, FOOTER = 1520, 20, 8, 24, 70, 62
TALLEST = 1.5  # largest height of a panel, in widths
PANELS = "panels"  # of the file's text: the box of each panel, (left, top, width, height) in pixels
PNG_LEVEL = 3  # files as small as at Pillow's default level, in half the time
STRIP = 34
VERDICT_COLOURS = {"ok": (94, 214, 198), "look": (255, 206, 84), "failed": (255, 110, 110)}
NOTES = (
    "Planes through the middle of the foreground; R and L are the patient's right and left.",
    "Warped grid: regular lines on the moving image, resampled through the flow together with it.",
)


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
    from PIL.PngImagePlugin import PngInfo

    picture = draw_preview(fixed, moving, warped, flow, correlations)
    if verdict is not None:
        picture = _under_verdict(picture, *verdict)
    facts = PngInfo()
    facts.add_text(PANELS, json.dumps(picture.info[PANELS]))
    with atomic_path(path) as partial:
        picture.save(partial, format="PNG", compress_level=PNG_LEVEL, pnginfo=facts)


def read_panels(path: Path) -> dict[str, "PIL.Image.Image"]:
    """Return the panels of a preview by plane and title, such as "axial warped".

    Returns:
        Nothing if the file is missing, no picture, or was written by a version that did not state where its panels are.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            picture.load()
            boxes = json.loads(picture.info.get(PANELS, "{}"))
            return {name: picture.crop((x, y, x + width, y + height)) for name, (x, y, width, height) in boxes.items()}
    except (OSError, ValueError, TypeError, AttributeError, UnidentifiedImageError, SyntaxError):
        return {}


def draw_preview(
    fixed: Array, moving: Array, warped: Array, flow: Array, correlations: tuple[float, float] | None = None
) -> "PIL.Image.Image":
    """Draw the picture of `write_preview` and return it as a Pillow image."""
    target, result = foreground_mask(fixed), foreground_mask(warped)
    correlations = correlations or (ncc(fixed, moving), ncc(fixed, warped))
    box: tuple[EllipsisType | slice, ...] = (..., *shown_box(target | result))
    fixed, moving, warped, flow, target, result = (a[box] for a in (fixed, moving, warped, flow, target, result))
    before, after = matched_differences(fixed, moving, warped, target & result)
    limit = difference_limit(before)
    columns = [
        ("fixed", "the target"),
        ("moving", "after affine initialisation"),
        ("warped", "moving, after the flow"),
        ("moving - fixed", _numbers(correlations[0], before, target | result)),
        ("warped - fixed", _numbers(correlations[1], after, target | result)),
        ("warped grid", f"one line every {GRID_STEP} voxels"),
    ]
    planes = middle_planes(fixed.shape)
    size = (WIDTH - 2 * MARGIN - GUTTER - (len(columns) - 1) * GAP) // len(columns)
    scale = size / max(max(across, down / TALLEST) for down, across in (plane.cut(fixed).shape for plane in planes))
    folded = [plane.folded(flow) for plane in planes]
    rows = []
    for plane, folds in zip(planes, folded, strict=True):
        images = [grey(enlarged(plane.cut(image), scale)) for image in (fixed, moving, warped)]
        differences = [signed(enlarged(plane.cut(image), scale) / limit) for image in (before, after)]
        rows.append([*images, *differences, warped_grid(plane, warped, flow, folds, scale)])
    return _sheet(columns, planes, rows, size, limit, any(folds.any() for folds in folded))


def _under_verdict(picture: "PIL.Image.Image", verdict: str, line: str) -> "PIL.Image.Image":
    """Return the picture below a strip in the verdict's colour with the line that explains it."""
    from PIL import Image, ImageDraw

    canvas = Image.new("RGB", (picture.width, picture.height + STRIP), PAPER)
    canvas.paste(picture, (0, STRIP))
    canvas.info[PANELS] = {name: (x, y + STRIP, *size) for name, (x, y, *size) in picture.info[PANELS].items()}
    draw = ImageDraw.Draw(canvas)
    draw.rectangle((0, 0, canvas.width, STRIP - 1), VERDICT_COLOURS[verdict])
    font, room = _font(16), canvas.width - 2 * MARGIN
    while draw.textlength(line, font) > room:
        line = line.removesuffix(" ...").rpartition(" ")[0] + " ..."
    draw.text((MARGIN, STRIP / 2), line, PAPER, font, anchor="lm")
    return canvas


def _numbers(correlations: float, difference: Array, foreground: Array) -> str:
    mean = np.abs(difference[foreground]).mean() if foreground.any() else 0
    return f"NCC {correlations:.3f}   mean |difference| {mean:.3f}"


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
    boxes = canvas.info[PANELS] = {}
    for plane, panels, height in zip(planes, rows, heights, strict=True):
        _name_row(canvas, plane.name, top, height)
        for n, (x, panel) in enumerate(zip(left, panels, strict=True)):
            draw.rectangle((x, top, x + size - 1, top + height - 1), PANEL)
            image = Image.fromarray(np.clip(np.rint(panel), 0, 255).astype(np.uint8))
            corner = x + (size - image.width) // 2, top + (height - image.height) // 2
            canvas.paste(image, corner)
            boxes[f"{plane.name} {columns[n][0]}"] = (*corner, *image.size)
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
    canvas.paste(Image.fromarray(np.rint(signed(bar)).astype(np.uint8)), (first, y - 5))
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
