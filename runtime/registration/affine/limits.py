"""Which affines are plausible between two bodies of one kind."""

from dataclasses import dataclass

import numpy as np

from ...errors import InputError
from ...types import Array

STRETCH = (0.5, 2.0)  # singular values that go with the usual limits of the volume


@dataclass(frozen=True)
class Limits:
    """Of an affine from the fixed to the moving scan.

    Single directions may stretch by 0.5 to 2 where the volume's limits are 0.3 and 3, and as the cube root of these
    where they are others.

    Attributes:
        smallest, largest: of its volume factor, the determinant: below 1 where the moving scan shows the smaller body.

    Raises:
        InputError: no numbers with 0 < smallest < 1 < largest.
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
        """Whether (4, 4) keeps within them."""
        stretch = np.linalg.svd(matrix[:3, :3], compute_uv=False)
        low, high = self.stretch
        volume = np.linalg.det(matrix[:3, :3])
        return bool(self.smallest <= volume <= self.largest and low <= stretch[-1] and stretch[0] <= high)


LIMITS = Limits()
