"""The PyTorch definition of a registration: the network and the textbook forms of the field operations, nothing fused.

It drives the same loop as the engines do (`runtime.iterstop`); what it defines is everything below the loop.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from runtime import iterstop
from runtime.geometry.similarity import SIMILARITIES
from train.fields import compose, upsample, warp
from train.network import RPNet


class TorchPair:
    """Two images (I, J, K), float32 in [0, 1], behind an eager `RPNet`. Flows are tensors (1, 3, I, J, K)."""

    def __init__(self, network: RPNet, moving: Tensor, fixed: Tensor, similarity: str, fixed_features=None) -> None:
        self._network, self._moving, self._fixed = network, moving, fixed
        self._similarity = similarity
        self._moving_features = network.encode(moving)
        self._fixed_features = fixed_features or network.encode(fixed)

    def zero(self, level: int) -> Tensor:
        shape = self._moving_features[level].shape[2:]
        return torch.zeros(1, 3, *shape, device=self._moving.device)

    def step(self, level: int, flow: Tensor) -> Tensor:
        warped = warp(self._moving_features[level], flow)
        return compose(flow, self._network.estimate(level, warped, self._fixed_features[level]))

    def score(self, level: int, flow: Tensor) -> float:
        scale = 2 ** (level - 1)
        warped = warp(self._moving, upsample(flow, scale) if scale > 1 else flow)
        return _similarity(self._similarity, self._fixed[0, 0], warped[0, 0])

    def upsample(self, flow: Tensor) -> Tensor:
        return upsample(flow, 2)

    def compose(self, flow: Tensor, residual: Tensor) -> Tensor:
        return compose(flow, residual)

    def warped(self, flow: Tensor) -> "TorchPair":
        moving = warp(self._moving, flow)
        return TorchPair(self._network, moving, self._fixed, self._similarity, self._fixed_features)


def _similarity(name: str, fixed: Tensor, warped: Tensor) -> float:
    if name == "ncc":
        f, w = fixed.double() - fixed.double().mean(), warped.double() - warped.double().mean()
        return float((f * w).sum() / (f.square().sum() * w.square().sum()).sqrt())
    return SIMILARITIES[name](fixed.cpu().numpy(), warped.cpu().numpy())


def register_with_torch(
    network: RPNet, fixed: np.ndarray, moving: np.ndarray, schedule: iterstop.Schedule, similarity: str = "ncc"
) -> iterstop.Iterations:
    """Registers two images (I, J, K), float32 in [0, 1], sizes multiples of 8; the result's flow is (3, I, J, K)."""
    device = next(network.parameters()).device

    def tensor(image: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(image, np.float32)).to(device)[None, None]

    with torch.inference_mode():
        result: Any = iterstop.run(TorchPair(network, tensor(moving), tensor(fixed), similarity), schedule)
    return iterstop.Iterations(result.flow[0].cpu().numpy(), result.passes, result.similarity)
