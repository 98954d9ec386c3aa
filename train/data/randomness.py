"""Random numbers and random smooth fields on a device, from one NumPy generator: same seed, same pair."""

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from runtime.types import Shape
from train.model import definition

# Standard deviation of unit noise after cubic B-spline interpolation along three axes: per axis the variance is the
# integral of the squared spline, 151/315.
_SPLINE_DEVIATION = 0.479**1.5

identity = lru_cache(maxsize=64)(definition.identity)


def shape_of(volume: Tensor) -> Shape:
    """Return the sizes of a volume (I, J, K)."""
    i, j, k = volume.shape
    return i, j, k


def _spline_matrix(size: int, spacing: float, phase: float, device: torch.device) -> Tensor:
    """Return the cubic B-spline weights (size, controls) of control points `spacing` voxels apart."""
    position = torch.arange(size, dtype=torch.float32, device=device) / spacing + phase + 1
    controls = int(size / spacing) + 5
    t = (position[:, None] - torch.arange(controls, dtype=torch.float32, device=device)).abs()
    return torch.where(t < 1, 2 / 3 - t**2 + t**3 / 2, (2 - t).clamp(min=0) ** 3 / 6)


class Randomness:
    """The source of randomness of one pair.

    On every device all numbers come from `numbers`, with one exception: voxel noise on a CUDA device comes from a
    generator of that device, which is seeded from `numbers`.
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
        """Return a random integer from `low` to `high`, both inclusive."""
        return int(self.numbers.integers(low, high + 1))

    def vector(self, low: float, high: float) -> Tensor:
        """Return a tensor (3, 1, 1, 1) of random numbers between `low` and `high`."""
        return self.tensor(self.numbers.uniform(low, high, 3)).view(3, 1, 1, 1)

    def tensor(self, array: ArrayLike) -> Tensor:
        return torch.from_numpy(np.asarray(array, np.float32)).to(self.device)

    def smooth(self, shape: Shape, spacing: float) -> Tensor:
        """Return a smooth field (I, J, K) of about unit standard deviation with features of about `spacing` voxels."""
        matrices = [_spline_matrix(size, spacing, self.between(0, 1), self.device) for size in shape]
        grid = self.tensor(self.numbers.standard_normal([m.shape[1] for m in matrices], dtype=np.float32))
        grid = torch.einsum("ia,abc->ibc", matrices[0], grid)
        return torch.matmul(torch.matmul(matrices[1], grid), matrices[2].T) / _SPLINE_DEVIATION

    def grain(self, shape: Shape) -> Tensor:
        """Return independent noise of unit standard deviation in every voxel."""
        if self.device.type == "cpu":
            return self.tensor(self.numbers.standard_normal(shape, dtype=np.float32))
        generator = torch.Generator(self.device).manual_seed(int(self.numbers.integers(2**63)))
        return torch.randn(shape, generator=generator, device=self.device)
