"""Contact sheet of all prepared scans: three planes each, the reference's outline on them, failures first.

Planes are shown as in the preview of a registration: superior up, the patient's right at the left. Drawn with Pillow,
which is imported only when a picture is drawn.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ....host.files.whole_files import atomic_path
from ....images.pictures.panels import FAINT, FOLD, INK, LINE, PANEL, PAPER
from ....images.pictures.planes import Plane
from ....images.pictures.preview import PNG_LEVEL
from ....types import Array

if TYPE_CHECKING:
    from PIL.Image import Image as Picture
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont
    from PIL.ImageFont import ImageFont as BitmapFont

COLUMNS, MARGIN, GAP, HEADER, CAPTION = 4, 20, 18, 64, 40
EDGE = 128  # pixels of a panel's longest side
SPACE = 4  # pixels between the panels of a scan
MOST = 240  # scans shown at most
LINE_SHARE = 0.8  # opacity of the outline
ERROR, WARNING_COLOUR = FOLD, (255, 158, 44)
LETTERS = 58  # characters per line in the tile of a failed scan


@dataclass(frozen=True, eq=False)
class Tile:
    """Tile of one scan in the contact sheet.

    Attributes:
        name: name of the scan.
        similarity: similarity with the reference; None if there is none.
        note: second line of the caption.
        has_warnings: whether the record holds warnings.
        panels: three planes, each (rows, columns, 3) uint8; empty for a failed scan.
        error: error message of a failed scan, else None.
    """

    name: str
    similarity: float | None = None
    note: str = ""
    has_warnings: bool = False
    panels: tuple[Array, ...] = field(default=(), repr=False)
    error: str | None = None

    @property
    def rank(self) -> tuple[bool, float]:
        """Sort key: failures first, then by similarity, the lowest first."""
        return self.error is None, -1.0 if self.similarity is None else self.similarity


def draw_tile(record: dict[str, Any], image: Array, outline: Array) -> Tile:
    """Return the tile of a scan.

    Args:
        record: record of a prepared scan; see `ScanPreparer`.
        image: (I, J, K) in [0, 1], axes closest to RAS+.
        outline: (I, J, K) bool, the reference's foreground on the same grid.
    """
    before, after = (record["similarity"][name] for name in ("before", "after"))
    note = f"similarity {_number(before)} to {_number(after)}, cropped {record['cropped_share']:.1%}"
    panels = tuple(_panel(plane, image, outline) for plane in _planes(image.shape))
    return Tile(record["name"], after, note, bool(record["warnings"]), panels)


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"


def _planes(shape: tuple[int, ...]) -> tuple[Plane, ...]:
    """Return planes through the grid's centre, which is the reference's; the sagittal one avoids the midline."""
    i, j, k = shape
    beside = Plane("sagittal", 0, i * 5 // 12, ("A", "P"))
    return beside, Plane("coronal", 1, j // 2, ("R", "L")), Plane("axial", 2, k // 2, ("R", "L"))


def _panel(plane: Plane, image: Array, outline: Array) -> Array:
    """Return a plane in grey with the outline in colour, (rows, columns, 3) uint8."""
    scale = EDGE / max(image.shape)
    grey, inside = (_resized(plane.cut(volume), scale) for volume in (image, outline))
    picture = np.array(PANEL) + grey[..., None] * (255 - np.array(PANEL))
    edge = LINE_SHARE * _edges(inside > 0.5)[..., None]
    return np.rint(picture * (1 - edge) + np.array(LINE) * edge).astype(np.uint8)


def _resized(plane: Array, scale: float) -> Array:
    """Resize a picture (rows, columns) in [0, 1]; where it shrinks, each pixel averages the area it covers."""
    from PIL import Image

    rows, columns = (max(round(size * scale), 1) for size in plane.shape)
    image = Image.fromarray(np.ascontiguousarray(plane, np.float32))
    return np.clip(np.asarray(image.resize((columns, rows), Image.Resampling.BILINEAR)), 0, 1)


def _edges(mask: Array) -> Array:
    """Return the pixels of a mask (rows, columns) that touch the outside."""
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner


def write_contact_sheet(path: Path, tiles: Sequence[Tile], title: str, scans: int) -> None:
    """Write the contact sheet (PNG), complete or not at all.

    Args:
        path: the file.
        tiles: tiles to show, in order; see `worst_first`.
        title: first line of the sheet.
        scans: number of all scans, shown or not.
    """
    picture = draw_contact_sheet(tiles, title, scans)
    with atomic_path(path) as partial:
        picture.save(partial, format="PNG", compress_level=PNG_LEVEL)


def draw_contact_sheet(tiles: Sequence[Tile], title: str, scans: int) -> "Picture":
    """Draw the contact sheet of `write_contact_sheet` as a Pillow image."""
    from PIL import Image, ImageDraw

    width, height = _tile_size(tiles)
    columns, rows = min(COLUMNS, len(tiles)), -(-len(tiles) // COLUMNS)
    size = (2 * MARGIN + columns * (width + GAP) - GAP, HEADER + rows * (height + CAPTION + GAP) + MARGIN - GAP)
    canvas = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(canvas)
    left_out = f" {scans - len(tiles)} more are not shown." if scans > len(tiles) else ""
    order = "Failures first, then the least similar; orange: with warnings, see records/."
    note = f"{order} The line is the reference's outline; the patient's right is at the left.{left_out}"
    draw.text((MARGIN, 14), title, INK, _font(16))
    draw.text((MARGIN, 38), note, FAINT, _font(12.5))
    for n, tile in enumerate(tiles):
        row, column = divmod(n, COLUMNS)
        place = (MARGIN + column * (width + GAP), HEADER + row * (height + CAPTION + GAP))
        _place(canvas, draw, tile, place, (width, height))
    return canvas


def worst_first(tiles: Sequence[Tile]) -> list[Tile]:
    """Sort tiles: failures, then the least similar, `MOST` at most."""
    return sorted(tiles, key=lambda tile: (tile.rank, tile.name))[:MOST]


def _tile_size(tiles: Sequence[Tile]) -> tuple[int, int]:
    """Return width and height of the panels of one scan in pixels; if all scans failed, of three empty squares."""
    panels = next((tile.panels for tile in tiles if tile.panels), (np.zeros((EDGE, EDGE)),) * 3)
    return sum(panel.shape[1] for panel in panels) + 2 * SPACE, max(panel.shape[0] for panel in panels)


def _place(canvas: "Picture", draw: "ImageDraw", tile: Tile, place: tuple[int, int], size: tuple[int, int]) -> None:
    """Draw a tile and its caption, the tile's upper left corner at `place`."""
    from PIL import Image

    (x, y), (width, height) = place, size
    draw.rectangle((x, y, x + width - 1, y + height - 1), PANEL)
    left = x
    for panel in tile.panels:
        canvas.paste(Image.fromarray(panel), (left, y + (height - panel.shape[0]) // 2))
        left += panel.shape[1] + SPACE
    colour = WARNING_COLOUR if tile.has_warnings else INK
    if tile.error:
        colour = ERROR
        draw.rectangle((x, y, x + width - 1, y + height - 1), outline=ERROR)
        lines = textwrap.wrap(tile.error, LETTERS)[: height // 16 - 1]
        draw.multiline_text((x + 8, y + 8), "\n".join(lines), INK, _font(12), spacing=3)
    draw.text((x, y + height + 4), tile.name, colour, _font(13))
    draw.text((x, y + height + 21), "failed" if tile.error else tile.note, FAINT, _font(12))


def _font(size: float) -> "FreeTypeFont | BitmapFont":
    from PIL import ImageFont

    return ImageFont.load_default(size)
