"""Meaning of the numbers in a displacement file: one formula, with two constants for each convention.

A file holds three numbers s(v) for each voxel v of a grid in the start's space. With x = W v (RAS mm) they define

    T(x) = affine( x + units s(v) )

trilinear between voxels. ITK, FreeSurfer, FSL and Learn2Reg differ in the 3x3 matrix `units`, mm of RAS per stored
number, in `affine`, which is the identity except for FSL and ITK's composites, and in shape and intent of the NIfTI
file.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ...geometry.grid import Grid
from ...geometry.transform import SpatialTransform
from ...images.formats.rounding import rounded_to_steps
from ...types import Array

ComponentPlanes = Callable[[int, slice], Array]  # (component, span of K) -> (I, J, k)
LPS = np.array([-1.0, -1.0, 1.0])  # factor from RAS mm to the LPS mm of DICOM and ITK, and back
TO_LPS = np.diag([*LPS, 1.0])  # the same for (4, 4)
COMPACT_STEP_MM = 2.0**-5  # to which the components of displacements are rounded in compact files


@dataclass(frozen=True, eq=False)
class Frame:
    """The formula's constants for one file.

    Attributes:
        grid: grid of the voxels, in the start's space.
        units: (3, 3) RAS mm per stored number.
        affine: (4, 4) RAS mm -> RAS mm.
    """

    grid: Grid
    units: Array
    affine: Array

    def transform(self, numbers: Array) -> SpatialTransform:
        """Return the map that stored numbers (I, J, K, 3) define; fastest with I, then J, contiguous in memory."""
        to_voxels = (np.linalg.inv(self.grid.affine[:3, :3]) @ self.units).astype(np.float32)
        flow = to_voxels @ numbers.T.reshape(3, -1)
        return SpatialTransform(self.affine, flow.reshape(numbers.T.shape).transpose(0, 3, 2, 1), self.grid)

    def places(self, voxels: Array, numbers: Array) -> Array:
        """Return the positions in the end, (N, 3) RAS mm, of voxels (N, 3) with the stored numbers (N, 3)."""
        moved = self.grid.to_physical(voxels) + numbers.astype(np.float64) @ self.units.T
        return moved @ self.affine[:3, :3].T + self.affine[:3, 3]

    @property
    def compact_step(self) -> float:
        """Step of the numbers in a compact file: the largest power of two worth `COMPACT_STEP_MM` at most.

        Every number is off by half a step at most, so every end by ``sqrt(3) / 2 * COMPACT_STEP_MM``, 0.0271 mm.
        """
        mm = float(np.linalg.norm(self.affine[:3, :3] @ self.units, 2))  # largest effect of a number, mm
        return 2.0 ** math.floor(math.log2(COMPACT_STEP_MM / mm) + 1e-6)  # a norm of 1 may come out as 1 + 1e-16

    def numbers(self, displacement: Array, compact: bool = False) -> ComponentPlanes:
        """Return a function that computes the numbers to store for a displacement, plane by plane.

        Solved for s(v), the formula is ``linear u + ramp [v, 1]``; `ramp` is 0 where `affine` is the identity.

        Args:
            displacement: u = ``T(x) - x``, (I, J, K, 3) RAS mm.
            compact: True to round the numbers to multiples of `compact_step`.

        Returns:
            (component, span of K) -> (I, J, k) float32.
        """
        to_numbers, back = np.linalg.inv(self.units), np.linalg.inv(self.affine)
        linear = to_numbers @ back[:3, :3]
        ramp = to_numbers @ ((back - np.eye(4)) @ self.grid.affine)[:3]
        step = self.compact_step if compact else 0.0

        def planes(component: int, span: slice) -> Array:
            moved = _mix(linear[component], displacement[:, :, span])
            if ramp[component].any():
                moved += _ramp(ramp[component], self.grid.shape, span)
            return rounded_to_steps(moved, step) if step else moved

        return planes


def _mix(weights: Array, vectors: Array) -> Array:
    """Return ``weights . vector``, (I, J, K) float32; zero weights are skipped: one product without shear."""
    used = np.flatnonzero(weights)
    result = vectors[..., used[0]] * np.float32(weights[used[0]])
    for component in used[1:]:
        result += vectors[..., component] * np.float32(weights[component])
    return result


def _ramp(slopes: Array, shape: tuple[int, int, int], span: slice) -> Array:
    """Return ``slopes . [i, j, k, 1]`` on planes `span` of K."""
    i, j, k = np.ogrid[: shape[0], : shape[1], span.start : min(span.stop, shape[2])]
    ramp: Array = ((slopes[0] * i + slopes[1] * j) + (slopes[2] * k + slopes[3])).astype(np.float32)
    return ramp
