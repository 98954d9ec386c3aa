"""Panels of pictures: grey images, signed differences, and a grid warped by a flow, as colours (rows, columns, 3)."""

import numpy as np

from ...types import Array
from .planes import Plane

GRID_STEP = 8
LINE_WIDTH, FLATTEST = 1.3, 0.02  # pixels; smallest slope in voxels per pixel, which limits the width of a line
QUANTILES = np.linspace(1, 99, 64)

PAPER, PANEL = (19, 21, 26), (5, 6, 8)
INK, FAINT = (236, 238, 241), (150, 157, 168)
LINE, FOLD = (94, 214, 198), (255, 59, 59)
BELOW, ABOVE = (70, 160, 255), (255, 158, 44)


def matched_differences(fixed: Array, moving: Array, warped: Array, common: Array) -> tuple[Array, Array]:
    """Return moving - fixed and warped - fixed, with intensities mapped onto those of the fixed image.

    The map takes 0 to 0 and the quantiles of the warped image to those of the fixed one, both from the mask `common`.
    """
    curve = intensity_curve(fixed, warped, common)
    before, after = ((mapped(image, curve) - fixed).astype(np.float32) for image in (moving, warped))
    return before, after


def intensity_curve(fixed: Array, warped: Array, common: Array) -> tuple[Array, Array]:
    """Return the monotone curve from intensities of the warped image to those of the fixed one, inside a mask."""
    seen, wanted = (np.append(0, np.percentile(subsampled(image[common]), QUANTILES)) for image in (warped, fixed))
    return seen, wanted


def mapped(image: Array, curve: tuple[Array, Array]) -> Array:
    """Map intensities through a curve; 0, most of a picture, stays 0 and is skipped."""
    lit = image > 0
    result = np.zeros(image.shape)
    result[lit] = np.interp(image[lit], *curve)
    return result


def difference_limit(difference: Array) -> float:
    """Return the end of a colour scale for differences: nearly the largest one, rounded up."""
    largest = np.percentile(np.abs(subsampled(difference[difference != 0])), 97)
    return max(float(np.ceil(largest / 0.05) * 0.05), 0.05)


def subsampled(values: Array) -> Array:
    """Return enough of the values (N,) for a percentile; one zero if there are none."""
    return values[:: max(values.size // 200_000, 1)] if values.size else np.zeros(1)


def enlarged(picture: Array, scale: float) -> Array:
    """Return a picture (rows, columns) resized by a factor, bicubic."""
    from PIL import Image

    rows, columns = (max(round(size * scale), 1) for size in picture.shape)
    image = Image.fromarray(np.ascontiguousarray(picture, np.float32))
    return np.asarray(image.resize((columns, rows), Image.Resampling.BICUBIC))


def blended(below: Array | tuple[int, int, int], above: Array | tuple[int, int, int], share: Array) -> Array:
    """Blend two colours or colour pictures; `share` (rows, columns) in [0, 1] is the weight of the one above."""
    share = np.clip(share, 0, 1)[..., None].astype(np.float32)
    mixed: Array = np.asarray(below, np.float32) * (1 - share) + np.asarray(above, np.float32) * share
    return mixed


def grey(picture: Array) -> Array:
    """Return intensities in [0, 1] as grey colours."""
    return blended(PANEL, (255, 255, 255), picture)


def signed(picture: Array) -> Array:
    """Return values in [-1, 1] as colours: one hue below zero, one above, dark at zero."""
    return blended(blended(PANEL, BELOW, -picture), ABOVE, picture)


def warped_grid(plane: Plane, warped: Array, flow: Array, folded: Array, scale: float) -> Array:
    """Draw the dimmed warped image under the lines of a regular grid warped by the same flow; folds in red."""
    picture = 0.6 * grey(enlarged(plane.cut(warped), scale))
    flows = plane.cut(flow)
    for shown, axis in enumerate(plane.in_plane):
        displacement = enlarged(flows[axis], scale)
        size = warped.shape[axis]
        position = size - 1 - ((np.arange(displacement.shape[shown]) + 0.5) * size / displacement.shape[shown] - 0.5)
        position = np.expand_dims(position, 1 - shown) + displacement
        picture = blended(picture, LINE, 0.85 * line_coverage(position))
    return blended(picture, FOLD, enlarged(folded.astype(np.float32), scale))


def line_coverage(position: Array) -> Array:
    """Return the share of each pixel covered by lines, at multiples of the step in `position` (voxels)."""
    distance = np.abs((position / GRID_STEP + 0.5) % 1 - 0.5) * GRID_STEP
    slope = np.hypot(*np.gradient(position))
    share: Array = np.clip(LINE_WIDTH / 2 + 0.5 - distance / np.maximum(slope, FLATTEST), 0, 1)
    return share
