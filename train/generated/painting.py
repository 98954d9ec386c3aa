"""One image of a scene before any scanner has seen it."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Painting:
    """One image of a scene on the scene's grid, (I, J, K) each.

    image: values in about [0, 1]. shown: level function, positive where they are not black. labels: from 1, also of
    what is not shown; 0 for what is no part of the anatomy. motion: (3, I, J, K), voxels, how far from its place in the
    scene each point is painted, or None: the anatomy of the other image, moved on its own.
    """

    image: Tensor
    shown: Tensor
    labels: Tensor
    motion: Tensor | None = None
