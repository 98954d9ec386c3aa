"""Limits of a plausible affine between two bodies of one kind."""

from dataclasses import dataclass

import numpy as np

from ...errors import InputError
from ...types import Array

STRETCH = (0.5, 2.0)  # limits of the singular values for the default limits of the volume


@dataclass(frozen=True)
class Limits:
    """The limits of a plausible affine from the fixed to the moving scan.

    Single directions may stretch by 0.5 to 2 with the default volume limits of 0.3 and 3; other volume limits scale
    these by their cube root.

    Attributes:
        smallest, largest: limits of the volume factor, the determinant: below 1 if the moving body is the smaller one.

    Raises:
        InputError: not 0 < smallest < 1 < largest.
    """

    smallest: float = 0.3
    largest: float = 3.0

    def __post_init__(self) -> None:
        if not (0 < self.smallest < 1 < self.largest < np.inf):
            raise InputError(
                f"--volume-factor: got {self.smallest:g},{self.largest:g}, expected a number above 0 and below 1, and "
                "one above 1, such as 0.1,10"
            )

    @property
    def stretch(self) -> tuple[float, float]:
        """Smallest and largest singular value."""
        usual = Limits()
        low, high = np.cbrt((self.smallest / usual.smallest, self.largest / usual.largest))
        return STRETCH[0] * float(low), STRETCH[1] * float(high)

    def allow(self, matrix: Array) -> bool:
        """Return True if a matrix (4, 4) is within the limits."""
        stretch = np.linalg.svd(matrix[:3, :3], compute_uv=False)
        low, high = self.stretch
        volume = np.linalg.det(matrix[:3, :3])
        return bool(self.smallest <= volume <= self.largest and low <= stretch[-1] and stretch[0] <= high)


LIMITS = Limits()
