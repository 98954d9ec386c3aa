"""Holes, the voxels of a pair of images without valid data, and the similarity outside them, for every device."""

import functools
import math
from typing import Any, SupportsFloat

import numpy as np

Array = Any
COARSEST = 8  # edge of the coarsest level's voxels, in voxels of the image


class Holes:
    """The holes of a fixed and a moving image, each (I, J, K) float32, above 0 in a hole and 0 elsewhere, or None.

    Args:
        fields: field operations whose arrays these are.
        fixed: holes of the fixed image.
        moving: holes of the moving image, which are warped with it.
    """

    def __init__(self, fields: Any, fixed: Array | None, moving: Array | None) -> None:
        self._fields, self._fixed, self._moving = fields, fixed, moving

    @functools.cached_property
    def _everywhere(self) -> Array:
        """An image that is 1 at every voxel."""
        some = self._moving if self._fixed is None else self._fixed
        assert some is not None  # without any hole there is no `Holes`
        return self._fields.to_device(np.ones(some.shape, np.float32))

    def warped(self, flow: Array) -> "Holes":
        """Return the holes of the pair after its moving image was warped by `flow`."""
        return Holes(self._fields, self._fixed, self._moved(flow))

    def score(self, fixed: Array, moving: Array, similarity: str, flow: Array) -> SupportsFloat:
        """Return the similarity of a fixed and a warped moving image outside the holes; NaN if no voxel is left.

        The windows of the local correlation see 0 in both images wherever either has a hole; those that see nothing
        else do not count.
        """
        fields, images = self._fields, (fixed, self._fields.warp(moving, flow), self._everywhere)
        for hole in (self._fixed, self._moved(flow)):
            if hole is not None:
                images = tuple(fields.without(image, hole) for image in images)
        fixed, warped, known = images
        if (count := self._count(known, similarity)) == 0:
            return math.nan
        nowhere = fields.zero(tuple(size // COARSEST for size in fixed.shape))
        return fields.scorer(fixed, similarity, count)(warped, nowhere)

    def _count(self, known: Array, similarity: str) -> float:
        """Return the number of voxels to average over: known ones; for local correlation, with one in the window."""
        if similarity != "lncc":
            return self._fields.total(known)
        unseen = self._fields.without(self._everywhere, self._fields.near(known))
        return known.size - self._fields.total(unseen)

    def _moved(self, flow: Array) -> Array | None:
        return None if self._moving is None else self._fields.warp(self._moving, flow)
