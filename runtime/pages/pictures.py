"""Pictures inside pages: arrays as JPEG, and contours as the paths of an SVG."""

import io
from typing import TYPE_CHECKING

import numpy as np

from ..types import Array
from .page import data_uri

if TYPE_CHECKING:
    from PIL.Image import Image

QUALITY = 78  # of JPEG
FEWEST_POINTS = 10  # of a contour that is drawn
TENTHS = 10  # contours are stated in tenths of a pixel


def picture(panel: Array) -> str:
    """Return a picture (rows, columns) or (rows, columns, 3) with values in [0, 255] as a URI that holds it."""
    from PIL.Image import fromarray

    return jpeg_uri(fromarray(np.clip(np.rint(panel), 0, 255).astype(np.uint8)), QUALITY)


def jpeg_uri(image: "Image", quality: int) -> str:
    """Return an image as a URI that holds it as JPEG of a quality from 1 to 95."""
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=quality)
    return data_uri(file.getvalue(), "image/jpeg")


def contour_path(image: Array, level: float) -> str:
    """Return the contours of an image (rows, columns) at a level as an SVG path, in tenths of a pixel.

    Pixel (r, c) is centred at (c + 1/2, r + 1/2). Every second point is kept; the smallest contours are left out.
    """
    from contourpy import contour_generator

    path = []
    for line in contour_generator(z=image).lines(level):
        if len(line) < FEWEST_POINTS:
            continue
        points = np.rint((np.concatenate([line[:-1:2], line[-1:]]) + 0.5) * TENTHS).astype(int)
        steps = np.diff(points, axis=0).ravel()
        path.append(f"M{points[0, 0]} {points[0, 1]}l" + " ".join(map(str, steps)).replace(" -", "-"))
    return "".join(path)
