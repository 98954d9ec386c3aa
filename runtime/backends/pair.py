"""The operations of the coarse-to-fine loop on a pair of images, for any combination of networks and field operations.

All arrays between the two are channels-last: images (I, J, K), feature maps (I, J, K, C), flows (I, J, K, 3). An
interpolation then reads all channels of a voxel in one piece, and warped features are written straight into the
engine's input. On the host everything is float32; on a GPU, features have the engines' precision, and images and flows
are float32.
"""

import copy
from typing import Any, Protocol, SupportsFloat

from ..geometry.smoothing import check_sigma
from ..types import Shape
from .holes import Holes

Array = Any
FINEST = 1  # the level of the image's own grid


class Networks(Protocol):
    """The networks of an engine set, ready to run. Arrays are of the type that the field operations beside them use.

    Constructed from (engine_set, threads, precision); on a GPU from (engine_set, device, precision, progress), after
    the class method ``check_gpu(gpu, precision)`` has raised no error (`runtime.backends.registry.Backend.open`).

    Attributes:
        library, version: name and version of the library that runs the engines.
        device: "cpu" or the GPU's name.
        precision: "fp32", "fp16" or "bf16", in which the engines compute.
        closed: whether `close` was called.
    """

    library: str
    version: str
    device: str
    precision: str
    closed: bool

    def features(self, image: Array) -> dict[int, Array]:
        """Return the feature maps (I, J, K, C) by level of an image (I, J, K) in [0, 1]: contiguous and new."""

    def estimator_input(self, level: int, shape: Shape) -> Array:
        """Return an empty input (I, J, K, 2C) of a level's estimator.

        Warped moving features go into the first half of the channels, fixed features into the second. The array may be
        a strided view, for engines that need planar memory.
        """

    def residual(self, level: int, features: Array) -> Array:
        """Return the residual flow (I, J, K, 3) of an `estimator_input`; valid until the next call, maybe strided."""

    def rest(self) -> None:
        """Release memory that the next call can allocate again; called when none will come for a while."""

    def close(self) -> None:
        """Release the engines and their memory; `closed` is True from then on."""


class Fields(Protocol):
    """Field operations between engine calls, documented in `runtime.backends.fields.cpu`."""

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
    def near(self, image: Array) -> Array: ...
    def total(self, image: Array) -> float: ...
    def halve(self, image: Array) -> Array: ...
    def smoother(self, fixed: Array, sigma: float) -> Any: ...
    def to_device(self, array: Array) -> Array: ...
    def to_host(self, array: Array) -> Array: ...
    def close(self) -> None: ...


class FixedSide:
    """A prepared fixed image: each level's estimator input with the fixed half filled in, and the image's scorer.

    It serves any number of moving images, one at a time (the buffers are shared).

    Attributes:
        similarity: name of the similarity that the scorer computes.
        sigma: standard deviation in voxels of the Gaussian that smooths residuals where this image has no edges
            (`runtime.geometry.smoothing`); 0: residuals are not smoothed.
    """

    def __init__(self, networks: Networks, fields: Fields, fixed: Array, similarity: str) -> None:
        self.networks, self.fields, self._fixed = networks, fields, fixed
        self.similarity, self.scorer = similarity, fields.scorer(fixed, similarity)
        self.sigma = 0.0
        self._smoothers: dict[tuple[float, int], Any] = {}  # by sigma and level; copies of this object share it
        self.inputs: dict[int, Array] = {}
        for level, features in networks.features(fixed).items():
            self.inputs[level] = networks.estimator_input(level, features.shape[:3])
            fields.fill_fixed(self.inputs[level], features)

    def pair(self, moving: Array, holes: Holes | None = None) -> "EnginePair":
        return EnginePair(self, moving, holes)

    def score(self, moving: Array, flow: Array, holes: Holes | None = None) -> SupportsFloat:
        """Return the similarity of the fixed image and a warped moving image, outside `holes` if there are any."""
        if holes is None:
            return self.scorer(moving, flow)
        return holes.score(self._fixed, moving, self.similarity, flow)

    def with_similarity(self, similarity: str) -> "FixedSide":
        """Return this fixed side with another scorer; features and buffers are shared."""
        if similarity == self.similarity:
            return self
        other = copy.copy(self)
        other.similarity, other.scorer = similarity, self.fields.scorer(self._fixed, similarity)
        return other

    def with_smoothing(self, sigma: float) -> "FixedSide":
        """Return this fixed side with another smoothing of residuals; everything else, smoothers included, is shared.

        Raises:
            InputError: sigma is below 0, too large or not finite.
        """
        check_sigma(sigma)
        if sigma == self.sigma:
            return self
        other = copy.copy(self)
        other.sigma = sigma
        return other

    def smoothed(self, level: int, residual: Array) -> Array:
        """Return a residual, smoothed if sigma is above 0; a level's smoother is created when it is first needed."""
        if self.sigma == 0:
            return residual
        if (self.sigma, level) not in self._smoothers:
            self._smoothers[self.sigma, level] = self.fields.smoother(self._averaged(level), self.sigma)
        return self._smoothers[self.sigma, level](residual)

    def _averaged(self, level: int) -> Array:
        """Return the fixed image averaged onto a level's grid."""
        image = self._fixed
        for _ in range(level - FINEST):
            image = self.fields.halve(image)
        return image


class EnginePair:
    """A moving image with a prepared fixed side. Implements `runtime.loop.iterstop.Pair`; flows are the fields' arrays.

    Args:
        fixed_side: the prepared fixed image.
        moving: the moving image (I, J, K).
        holes: voxels of the two images without valid data; None: there are none.

    Attributes:
        moving: the moving image.
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

    def with_similarity(self, similarity: str) -> "EnginePair":
        """Return this pair with another similarity, sharing its features."""
        other = copy.copy(self)
        other._fixed_side = self._fixed_side.with_similarity(similarity)
        return other

    def with_smoothing(self, sigma: float) -> "EnginePair":
        """Return this pair with another smoothing of residuals, sharing its features, as `FixedSide.with_smoothing`."""
        other = copy.copy(self)
        other._fixed_side = self._fixed_side.with_smoothing(sigma)
        return other
