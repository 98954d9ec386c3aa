"""The PyTorch reference implementation of a registration: the network and plain field operations, nothing fused.

It runs in the same loop as the engines (`runtime.loop.iterstop`) and is the reference for everything below the loop.
"""

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from runtime.images.similarity import SIMILARITIES
from runtime.loop import iterstop
from runtime.loop.schedules import Schedule
from runtime.loop.trace import Iterations
from runtime.types import Array
from train.model import definition
from train.model.network import RPNet


class Network(Protocol):
    """What `TorchPair` needs of an `RPNet`; see its methods."""

    def encode(self, image: Tensor) -> dict[int, Tensor]: ...

    def estimate(self, level: int, warped_moving: Tensor, fixed: Tensor) -> Tensor: ...


class TorchPair:
    """Two images and an eager `RPNet` that registers them. Flows are tensors (1, 3, I, J, K).

    Args:
        network: computes features and residual flows.
        moving, fixed: images (1, 1, I, J, K), float32 in [0, 1], on one device.
        similarity: name of the similarity that `score` computes.
        fixed_features: features of `fixed` if they are known.
        fields: object with warp, compose and upsample: `train.model.definition`, the faster `train.model.fields`, or a
            wrapper that times them.
    """

    def __init__(
        self,
        network: Network,
        moving: Tensor,
        fixed: Tensor,
        similarity: str,
        fixed_features: dict[int, Tensor] | None = None,
        fields: Any = definition,
    ) -> None:
        self._network, self._moving, self._fixed = network, moving, fixed
        self._similarity, self._fields = similarity, fields
        self._moving_features = network.encode(moving)
        self._fixed_features = fixed_features or network.encode(fixed)

    def zero(self, level: int) -> Tensor:
        shape = self._moving_features[level].shape[2:]
        return torch.zeros(1, 3, *shape, device=self._moving.device)

    def step(self, level: int, flow: Tensor) -> Tensor:
        warped = self._fields.warp(self._moving_features[level], flow)
        return self._fields.compose(flow, self._network.estimate(level, warped, self._fixed_features[level]))

    def score(self, level: int, flow: Tensor) -> float:
        scale = 2 ** (level - 1)
        warped = self._fields.warp(self._moving, self._fields.upsample(flow, scale) if scale > 1 else flow)
        return _similarity(self._similarity, self._fixed[0, 0], warped[0, 0])

    def upsample(self, flow: Tensor) -> Tensor:
        return self._fields.upsample(flow, 2)

    def compose(self, flow: Tensor, residual: Tensor) -> Tensor:
        return self._fields.compose(flow, residual)

    def warped(self, flow: Tensor) -> "TorchPair":
        moving = self._fields.warp(self._moving, flow)
        return TorchPair(self._network, moving, self._fixed, self._similarity, self._fixed_features, self._fields)


def image_tensor(image: Array, device: torch.device | str = "cpu") -> Tensor:
    """Return an image (I, J, K) as a float32 tensor (1, 1, I, J, K) on a device."""
    return torch.from_numpy(np.ascontiguousarray(image, np.float32)).to(device)[None, None]


def _similarity(name: str, fixed: Tensor, warped: Tensor) -> float:
    if name == "ncc":
        f, w = fixed.double() - fixed.double().mean(), warped.double() - warped.double().mean()
        return float((f * w).sum() / (f.square().sum() * w.square().sum()).sqrt())
    return SIMILARITIES[name](fixed.cpu().numpy(), warped.cpu().numpy())


def register_with_torch(
    network: RPNet, fixed: Array, moving: Array, schedule: Schedule, similarity: str = "ncc"
) -> Iterations:
    """Register two images (I, J, K), float32 in [0, 1], sizes multiples of 8; the result's flow is (3, I, J, K)."""
    device = next(network.parameters()).device
    with torch.inference_mode():
        pair = TorchPair(network, image_tensor(moving, device), image_tensor(fixed, device), similarity)
        result: Any = iterstop.run(pair, schedule)
    return Iterations(result.flow[0].cpu().numpy(), result.passes, result.similarity)
