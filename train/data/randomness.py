"""Random numbers and random smooth fields, on a device, from one NumPy generator: the same seed, the same pair."""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from runtime.types import Array, Shape
from train.model import definition

_SPLINE_DEVIATION = 0.479**1.5  # of unit noise under cubic B-splines: about the integral of their square, 151/315

identity = lru_cache(maxsize=64)(definition.identity)


def _spline_matrix(size: int, spacing: float, phase: float, device: torch.device) -> Tensor:
    """Cubic B-spline weights (size, controls) of control points `spacing` voxels apart."""
    position = torch.arange(size, dtype=torch.float32, device=device) / spacing + phase + 1
    controls = int(size / spacing) + 5
    t = (position[:, None] - torch.arange(controls, dtype=torch.float32, device=device)).abs()
    return torch.where(t < 1, 2 / 3 - t**2 + t**3 / 2, (2 - t).clamp(min=0) ** 3 / 6)


class Randomness:
    """What a pair is drawn from.

    Every number comes from `numbers`, on any device, but for the noise of single voxels, which CUDA devices draw from a
    generator of their own with a seed from `numbers`.
    """

    def __init__(self, numbers: np.random.Generator, device: torch.device) -> None:
        self.numbers, self.device = numbers, device

    def chance(self, share: float) -> bool:
        return bool(self.numbers.random() < share)

    def between(self, low: float, high: float) -> float:
        return float(self.numbers.uniform(low, high))

    def normal(self, deviation: float) -> float:
        return float(self.numbers.normal(0, deviation))

    def count(self, low: int, high: int) -> int:
        """A whole number from `low` to `high`, both possible."""
        return int(self.numbers.integers(low, high + 1))

    def vector(self, low: float, high: float) -> Tensor:
        """(3, 1, 1, 1), each between `low` and `high`."""
        return self.tensor(self.numbers.uniform(low, high, 3)).view(3, 1, 1, 1)

    def tensor(self, array: Array) -> Tensor:
        return torch.from_numpy(np.asarray(array, np.float32)).to(self.device)

    def smooth(self, shape: Shape, spacing: float) -> Tensor:
        """A smooth field (I, J, K) of about unit deviation whose features are about `spacing` voxels wide."""
        matrices = [_spline_matrix(size, spacing, self.between(0, 1), self.device) for size in shape]
        grid = self.tensor(self.numbers.standard_normal([m.shape[1] for m in matrices], dtype=np.float32))
        grid = torch.einsum("ia,abc->ibc", matrices[0], grid)
        return torch.matmul(torch.matmul(matrices[1], grid), matrices[2].T) / _SPLINE_DEVIATION

    def grain(self, shape: Shape) -> Tensor:
        """Independent noise of unit deviation in every voxel."""
        if self.device.type == "cpu":
            return self.tensor(self.numbers.standard_normal(shape, dtype=np.float32))
        generator = torch.Generator(self.device).manual_seed(int(self.numbers.integers(2**63)))
        return torch.randn(shape, generator=generator, device=self.device)
