"""Rotations searched by the affine initialisation: tilts of a head, and right-angle rotations for wrong headers.

A header with axes in a wrong order or direction rotates a scan by right angles: one of 24 proper rotations. Mirrored
orientations are not among them, since left and right cannot be told apart by the image.
"""

import itertools

import numpy as np

from ...types import Array

ENDS = (("left", "right"), ("posterior", "anterior"), ("inferior", "superior"))  # of the axes R, A, S
ANGLE = 30.0  # degrees of a tilt about an axis


def rotation(angles: tuple[float, ...]) -> Array:
    """Return the rotation (3, 3) about the I, then J, then K axis by `angles` in degrees."""
    result = np.eye(3)
    for axis, angle in enumerate(np.radians(angles)):
        a, b = (axis + 1) % 3, (axis + 2) % 3
        plane = np.eye(3)
        plane[a, a] = plane[b, b] = np.cos(angle)
        plane[b, a], plane[a, b] = np.sin(angle), -np.sin(angle)
        result = plane @ result
    return result


def orientations() -> list[Array]:
    """Return the 24 rotations (3, 3) that map axes to axes, the identity first."""
    signed = (
        np.eye(3)[list(order)] * np.array(signs)[:, None]
        for order in itertools.permutations(range(3))
        for signs in itertools.product((1, -1), repeat=3)
    )
    return [matrix for matrix in signed if np.linalg.det(matrix) > 0]


TILTS = [rotation(angles) for angles in itertools.product((-ANGLE, 0.0, ANGLE), repeat=3)]
SINGLE_TILTS = [rotation(tuple(angle * np.eye(3)[axis])) for axis in range(3) for angle in (-ANGLE, ANGLE)]
# Every orientation but that of the headers, upright and tilted about one axis.
REORIENTATIONS = [rotated @ tilt for rotated in orientations()[1:] for tilt in (np.eye(3), *SINGLE_TILTS)]


def nearest_orientation(rigid: Array) -> Array:
    """Return the orientation, of the 24, nearest to the rotation of a rigid map (4, 4)."""
    return max(orientations(), key=lambda matrix: float(np.trace(matrix.T @ rigid[:3, :3])))


def describe_orientation(orientation: Array) -> str:
    """Describe an orientation: the moving scan's direction for the fixed scan's right, anterior and superior."""
    ends = [ENDS[int(np.abs(column).argmax())][int(column.sum() > 0)] for column in orientation.T]
    return ", ".join(f"{name[1]} is {end}" for name, end in zip(ENDS, ends, strict=True) if name[1] != end)
