"""Locations of the deep structures of a template brain, from its tissue maps and the positions in anatomy textbooks.

No atlas is needed: each structure is a chain of balls whose border is moved to a nearby tissue border, if there is one.
"""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import distance_transform_edt, gaussian_filter

from runtime.types import Array

# The box of a brain with its cerebellum in MNI152 space, mm from the anterior commissure: right, front, up.
BOX = ((-72.0, -106.0, -72.0), (72.0, 74.0, 84.0))
REACH = 10.0  # voxels: level functions are clipped at this distance
_PULL = 6.0  # mm: range over which the tissue may move a border, between inside and outside tissue
_MARGIN = 12  # voxels around the balls


@dataclass(frozen=True)
class DeepStructure:
    """The location of one structure in the right hemisphere; the left one has its mirror image.

    Attributes:
        name: name of the structure.
        balls: x, y, z and radius of each ball, mm in MNI152 space.
        share: least and largest share of `tissue` in its voxels; below 0 and above 1 mean no limit.
        mix: least and largest value of its intensity between grey matter (0) and white matter (1).
        enclosed: whether white matter encloses it.
        tissue: "grey" matter, or "matter": grey and white together.
    """

    name: str
    balls: tuple[tuple[float, float, float, float], ...]
    share: tuple[float, float]
    mix: tuple[float, float]
    enclosed: bool = True
    tissue: str = "grey"


# The first is fluid and is painted last; where the others overlap, the later one is visible.
DEEP_STRUCTURES = (
    DeepStructure(
        "ventricle",
        (
            *((6, 24, 3, 3), (7, 17, 10, 5), (8, 5, 17, 5), (11, -12, 22, 5)),
            *((16, -28, 20, 6), (24, -39, 12, 6), (28, -44, 5, 4)),
        ),
        share=(-1, 0.4),
        tissue="matter",
        mix=(0, 0),
        enclosed=False,
    ),
    DeepStructure(
        "thalamus", ((7, -8, 6, 6), (10, -15, 7, 8), (14, -22, 7, 9), (17, -27, 6, 6)), share=(0.2, 2), mix=(0.25, 0.85)
    ),
    DeepStructure(
        "putamen", ((21, 13, -3, 6), (24, 7, 1, 7), (27, -1, 2, 6), (29, -11, 2, 4)), share=(0.42, 2), mix=(0, 0.5)
    ),
    DeepStructure("pallidum", ((15, 1, -2, 4), (19, -4, -1, 5), (23, -10, 1, 4)), share=(0.1, 0.42), mix=(0.5, 0.97)),
    DeepStructure(
        "caudate",
        ((9, 14, 0, 7), (13, 14, 8, 6), (15, 4, 15, 6), (17, -8, 19, 4), (20, -18, 21, 4)),
        share=(0.5, 2),
        mix=(0, 0.4),
    ),
    DeepStructure(
        "hippocampus",
        ((25, -13, -20, 5), (28, -20, -15, 5), (31, -27, -9, 5), (27, -36, -3, 5)),
        share=(0.5, 2),
        mix=(0, 0.35),
        enclosed=False,
    ),
    DeepStructure("amygdala", ((23, -3, -20, 7),), share=(0.55, 2), mix=(0, 0.35), enclosed=False),
)


def deep_levels(grey: Array, white: Array, box: tuple[Array, Array]) -> Array:
    """Return level functions (structures, I, J, K), float32: depth inside each border, voxels, -REACH to REACH.

    Args:
        grey, white: shares of tissue (I, J, K), in closest RAS order.
        box: first and last voxel of the brain, which are taken to be the corners of `BOX`.
    """
    return np.stack([_level(structure, grey, white, box) for structure in DEEP_STRUCTURES])


def _level(structure: DeepStructure, grey: Array, white: Array, box: tuple) -> Array:
    tissue = grey if structure.tissue == "grey" else grey + white
    level = np.full(grey.shape, -REACH, np.float32)
    low, high = np.array(BOX)
    scale = (box[1] - box[0]) / (high - low)  # voxels per mm
    for side in (-1, 1):
        balls = np.array(structure.balls, float) * (side, 1, 1, 1)
        part = _around((balls[:, :3] - low) * scale + box[0], grey.shape)
        voxels = np.stack([*np.mgrid[part]], -1)
        depth = _chain((voxels - box[0]) / scale + low, balls)
        inside = (depth + _PULL * (_belongs(tissue[part], structure.share) - 0.5) > 0) & (depth > -_PULL / 2)
        level[part] = np.maximum(level[part], _signed(inside))
    return level


def _around(centres: Array, shape: tuple[int, ...]) -> tuple[slice, ...]:
    """Return the slices of a grid that contain voxels (N, 3) and a margin."""
    first = np.clip(np.floor(centres.min(0)) - _MARGIN, 0, np.array(shape) - 1).astype(int)
    last = np.clip(np.ceil(centres.max(0)) + _MARGIN + 1, first + 1, shape).astype(int)
    return tuple(slice(a, b) for a, b in zip(first, last, strict=True))


def _chain(positions: Array, balls: Array) -> Array:
    """Return the depth in mm inside a chain of balls joined by cones.

    Args:
        positions: (..., 3), mm.
        balls: centres and radii (N, 4), mm.
    """
    depth = np.full(positions.shape[:-1], -np.inf)
    for a, b in zip(balls, balls[1:] if len(balls) > 1 else balls, strict=False):
        along = b - a
        share = np.clip((positions - a[:3]) @ along[:3] / max(along[:3] @ along[:3], 1e-6), 0, 1)[..., None]
        ball = a + share * along
        depth = np.maximum(depth, ball[..., 3] - np.linalg.norm(positions - ball[..., :3], axis=-1))
    return depth


def _belongs(share: Array, limits: tuple[float, float]) -> Array:
    """Return 1 where a share of tissue lies well between two limits, 0.5 at the limits, 0 well beyond."""
    low, high = limits
    return np.clip(np.minimum(share - low, high - share) / 0.3 + 0.5, 0, 1)


def _signed(inside: Array) -> Array:
    """Return the smoothed signed distance to the border, positive inside, in voxels."""
    if not inside.any():
        return np.full(inside.shape, -REACH, np.float32)
    distance = distance_transform_edt(inside) - distance_transform_edt(~inside)
    return np.clip(gaussian_filter(distance, 0.8), -REACH, REACH).astype(np.float32)
