"""The verbs of the coarse-to-fine loop, made of a networks half and a fields half: one class for every engine.

Between the halves everything is channels-last: image (I, J, K), feature maps (I, J, K, C), flow (I, J, K, 3). An
interpolated place then reads its channels in one piece, and the warped ones go straight where the engine reads them.
On the host all is float32; on a GPU, features are of the engines' precision, images and flows float32.
"""

import copy
from typing import Any, Protocol, SupportsFloat

from ..geometry.smoothing import check_sigma
from ..types import Shape
from .holes import Holes

Array = Any
FINEST = 1  # the level of the image's own grid


class Networks(Protocol):
    """Runs the engines. Arrays are of the kind its field operations work on.

    Made from (engine_set, threads, precision); those of a GPU from (engine_set, device, precision, tell), after their
    class method ``check_gpu(GPU, precision)`` has raised nothing (`runtime.backends.registry.Backend.open`).

    Attributes:
        library, version: what runs the engines.
        device: "cpu" or a GPU's name.
        precision: "fp32", "fp16" or "bf16", in which the engines compute.
        closed: whether `close` was called.
    """

    library: str
    version: str
    device: str
    precision: str
    closed: bool

    def features(self, image: Array) -> dict[int, Array]:
        """Feature maps (I, J, K, C) by level of an image (I, J, K) in [0, 1]; contiguous, the caller's to keep."""

    def estimator_input(self, level: int, shape: Shape) -> Array:
        """An empty input (I, J, K, 2C) of a level's estimator: warped moving features first, then fixed features.

        It may be a strided view: an engine that wants planar memory gets it so.
        """

    def residual(self, level: int, features: Array) -> Array:
        """Residual flow (I, J, K, 3) from an `estimator_input`; holds until the next call, may be a strided view."""

    def rest(self) -> None:
        """No call will come for a while: lets go of memory that the next one can do without."""

    def close(self) -> None:
        """Lets go of the engines and their memory; `closed` is True from then on."""


class Fields(Protocol):
    """Field operations between engine calls; `runtime.backends.fields.cpu` documents them."""

    name: str

    def threads(self) -> Any: ...
    def zero(self, shape: Shape) -> Array: ...
    def fill_fixed(self, buffer: Array, fixed_features: Array) -> None: ...
    def warp_into(self, buffer: Array, moving_features: Array, flow: Array) -> Array: ...
    def warp(self, image: Array, flow: Array) -> Array: ...
    def compose(self, flow: Array, residual: Array) -> Array: ...
    def upsample(self, flow: Array, scale: int = 2) -> Array: ...
    def folded_share(self, flow: Array) -> float: ...
    def extremes(self, image: Array) -> tuple[float, float]: ...
    def scorer(self, fixed: Array, similarity: str, count: float | None = None) -> Any: ...
    def without(self, image: Array, hole: Array) -> Array: ...
    def total(self, image: Array) -> float: ...
    def halve(self, image: Array) -> Array: ...
    def smoother(self, fixed: Array, sigma: float) -> Any: ...
    def to_device(self, array: Array) -> Array: ...
    def to_host(self, array: Array) -> Array: ...
    def close(self) -> None: ...


class FixedSide:
    """A fixed image made ready: each level's estimator input with the fixed half filled in, and its scorer.

    It serves any number of moving images, one at a time (the buffers are shared).

    Attributes:
        similarity: what its scorer watches.
        sigma: voxels, with which residuals are smoothed where this image has no edges (`runtime.geometry.smoothing`);
            0: they are taken as they are.
    """

    def __init__(self, networks: Networks, fields: Fields, fixed: Array, similarity: str) -> None:
        self.networks, self.fields, self._fixed = networks, fields, fixed
        self.similarity, self.scorer = similarity, fields.scorer(fixed, similarity)
        self.sigma = 0.0
        self._smoothers: dict[tuple[float, int], Any] = {}  # by sigma and level
        self.inputs: dict[int, Array] = {}
        for level, features in networks.features(fixed).items():
            self.inputs[level] = networks.estimator_input(level, features.shape[:3])
            fields.fill_fixed(self.inputs[level], features)

    def pair(self, moving: Array, holes: Holes | None = None) -> "EnginePair":
        return EnginePair(self, moving, holes)

    def score(self, moving: Array, flow: Array, holes: Holes | None = None) -> SupportsFloat:
        """Similarity of this side's image and a warped moving one, where `holes` leave something of both."""
        if holes is None:
            return self.scorer(moving, flow)
        return holes.score(self._fixed, moving, self.similarity, flow)

    def watching(self, similarity: str) -> "FixedSide":
        """This side with another scorer; features and buffers are shared."""
        if similarity == self.similarity:
            return self
        other = copy.copy(self)
        other.similarity, other.scorer = similarity, self.fields.scorer(self._fixed, similarity)
        return other

    def smoothing(self, sigma: float) -> "FixedSide":
        """This side with another smoothing of residuals; everything else is shared, also what was made for smoothing.

        Raises:
            InputError: a sigma that is below 0, too large or not finite.
        """
        check_sigma(sigma)
        if sigma == self.sigma:
            return self
        other = copy.copy(self)
        other.sigma = sigma
        return other

    def smoothed(self, level: int, residual: Array) -> Array:
        """A residual as this side wants it; what that needs of the image is made when a level first asks for it."""
        if self.sigma == 0:
            return residual
        if (self.sigma, level) not in self._smoothers:
            self._smoothers[self.sigma, level] = self.fields.smoother(self._averaged(level), self.sigma)
        return self._smoothers[self.sigma, level](residual)

    def _averaged(self, level: int) -> Array:
        """The fixed image on a level's grid."""
        image = self._fixed
        for _ in range(level - FINEST):
            image = self.fields.halve(image)
        return image


class EnginePair:
    """A moving image on a prepared fixed side. Implements `runtime.loop.iterstop.Pair`; flows are the fields' arrays.

    Args:
        fixed_side: what it is put on.
        moving: the image.
        holes: where nothing is known of the two images; None: nowhere.

    Attributes:
        moving: the image.
    """

    def __init__(self, fixed_side: FixedSide, moving: Array, holes: Holes | None = None) -> None:
        self._fixed_side, self._networks, self._fields = fixed_side, fixed_side.networks, fixed_side.fields
        self.moving, self._holes = moving, holes
        self._features = self._networks.features(moving)

    def zero(self, level: int) -> Array:
        return self._fields.zero(tuple(self._features[level].shape[:3]))

    def step(self, level: int, flow: Array) -> Array:
        features = self._fields.warp_into(self._fixed_side.inputs[level], self._features[level], flow)
        residual = self._fixed_side.smoothed(level, self._networks.residual(level, features))
        return self._fields.compose(flow, residual)

    def score(self, level: int, flow: Array) -> SupportsFloat:
        return self._fixed_side.score(self.moving, flow, self._holes)

    def upsample(self, flow: Array) -> Array:
        return self._fields.upsample(flow)

    def compose(self, flow: Array, residual: Array) -> Array:
        return self._fields.compose(flow, residual)

    def warped(self, flow: Array) -> "EnginePair":
        holes = self._holes and self._holes.warped(flow)
        return EnginePair(self._fixed_side, self._fields.warp(self.moving, flow), holes)

    def watching(self, similarity: str) -> "EnginePair":
        """This pair, encoded as it is, scored by another similarity."""
        other = copy.copy(self)
        other._fixed_side = self._fixed_side.watching(similarity)
        return other

    def smoothing(self, sigma: float) -> "EnginePair":
        """This pair, encoded as it is, with another smoothing of residuals: see `FixedSide.smoothing`."""
        other = copy.copy(self)
        other._fixed_side = self._fixed_side.smoothing(sigma)
        return other
