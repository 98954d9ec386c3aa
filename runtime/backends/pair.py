"""The verbs of the coarse-to-fine loop, made of a networks half and a fields half: one class for every engine."""

from typing import Any, Protocol

Array = Any


class Networks(Protocol):
    """Runs the engines. Arrays are of the kind its field operations work on."""

    def features(self, image: Array) -> dict[int, Array]:
        """Feature maps (C, I, J, K) by level of an image (I, J, K) in [0, 1]."""

    def residual(self, level: int, features: Array) -> Array:
        """Residual flow (3, I, J, K) of one level from its two feature maps (2C, I, J, K), warped moving first."""

    def close(self) -> None:
        """Lets go of the engines; `closed` is True from then on."""


class Fields(Protocol):
    """Field operations between engine calls; `runtime.backends.fields_numba` documents them."""

    name: str

    def threads(self) -> Any: ...
    def zero(self, shape: tuple[int, int, int]) -> Array: ...
    def estimator_input(self, fixed_features: Array) -> Array: ...
    def warp_into(self, buffer: Array, moving_features: Array, flow: Array) -> Array: ...
    def warp(self, image: Array, flow: Array) -> Array: ...
    def compose(self, flow: Array, residual: Array) -> Array: ...
    def upsample(self, flow: Array, scale: int = 2) -> Array: ...
    def folded_share(self, flow: Array) -> float: ...
    def scorer(self, fixed: Array, similarity: str) -> Any: ...
    def to_device(self, array: Array) -> Array: ...
    def to_host(self, flow: Array) -> Array: ...


class FixedSide:
    """A fixed image made ready: each level's estimator input with the fixed half filled in, and its scorer.

    It serves any number of moving images, one at a time (the buffers are shared).
    """

    def __init__(self, networks: Networks, fields: Fields, fixed: Array, similarity: str) -> None:
        self.networks, self.fields = networks, fields
        self.scorer = fields.scorer(fixed, similarity)
        self.inputs = {level: fields.estimator_input(f) for level, f in networks.features(fixed).items()}

    def pair(self, moving: Array) -> "EnginePair":
        return EnginePair(self, moving)


class EnginePair:
    """A moving image on a prepared fixed side. Implements `runtime.iterstop.Pair`; flows are the fields' arrays."""

    def __init__(self, fixed_side: FixedSide, moving: Array) -> None:
        self._fixed_side, self._networks, self._fields = fixed_side, fixed_side.networks, fixed_side.fields
        self._moving = moving
        self._features = self._networks.features(moving)

    def zero(self, level: int) -> Array:
        return self._fields.zero(tuple(self._features[level].shape[1:]))

    def step(self, level: int, flow: Array) -> Array:
        features = self._fields.warp_into(self._fixed_side.inputs[level], self._features[level], flow)
        return self._fields.compose(flow, self._networks.residual(level, features))

    def score(self, level: int, flow: Array) -> float:
        return self._fixed_side.scorer(self._moving, flow)

    def upsample(self, flow: Array) -> Array:
        return self._fields.upsample(flow)

    def compose(self, flow: Array, residual: Array) -> Array:
        return self._fields.compose(flow, residual)

    def warped(self, flow: Array) -> "EnginePair":
        return EnginePair(self._fixed_side, self._fields.warp(self._moving, flow))
