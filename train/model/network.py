"""RP-Net: one feature extractor for both images and one flow estimator per level.

Source: "IIRP-Net: Iterative Inference Residual Pyramid Network for Enhanced Image Registration" (CVPR 2024),
section 3.1, with activations and channels as in the network that its authors released.
"""

import itertools
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.errors import InputError
from runtime.geometry.grid import SIZE_MULTIPLE
from train.model.fields import compose, upsample, warp

LEVELS = (4, 3, 2, 1)
NEGATIVE_SLOPE = 0.1
MAX_RES_BLOCKS = 4
MAX_FIRST_CHANNELS = 256


def _activate(x: Tensor) -> Tensor:
    return F.leaky_relu(x, NEGATIVE_SLOPE)


def _conv(channels_in: int, channels_out: int) -> nn.Conv3d:
    return nn.Conv3d(channels_in, channels_out, kernel_size=3, padding=1)


@dataclass(frozen=True)
class NetworkConfig:
    """The numbers that determine the shapes of the network's tensors.

    Attributes:
        first_channels: channels of the features of level 1, an even number.
        res_blocks: residual blocks of each estimator, 0 to 4.
    """

    first_channels: int = 8
    res_blocks: int = 2

    def __post_init__(self) -> None:
        channels = self.first_channels
        if not isinstance(channels, int) or not 2 <= channels <= MAX_FIRST_CHANNELS or channels % 2:
            raise InputError(f"first_channels: got {channels}, expected an even number, 2 to {MAX_FIRST_CHANNELS}")
        if not isinstance(self.res_blocks, int) or not 0 <= self.res_blocks <= MAX_RES_BLOCKS:
            raise InputError(f"res_blocks: got {self.res_blocks}, expected 0 to {MAX_RES_BLOCKS}")

    @property
    def feature_channels(self) -> dict[int, int]:
        """The channels of each level's feature map: by default 8, 16, 32, 32 at levels 1 to 4."""
        c = self.first_channels
        return {1: c, 2: 2 * c, 3: 4 * c, 4: 4 * c}

    @property
    def estimator_channels(self) -> dict[int, int]:
        """The width q of each level's estimator: by default 16 at level 1, 32 above."""
        c = self.first_channels
        return {1: 2 * c, 2: 4 * c, 3: 4 * c, 4: 4 * c}

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


class FeatureExtractor(nn.Module):
    """The extractor: image (N, 1, I, J, K) -> feature maps of levels 1 to 4, each half the size of the one before."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        widths = [1, *(config.feature_channels[level] for level in (1, 2, 3, 4))]
        self.convolutions = nn.ModuleList(_conv(a, b) for a, b in itertools.pairwise(widths))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        features = []
        x = image
        for n, convolution in enumerate(self.convolutions):
            x = _activate(convolution(F.avg_pool3d(x, 2) if n else x))
            features.append(x)
        return tuple(features)


class FlowEstimator(nn.Module):
    """One level's estimator: features (N, 2C, I, J, K), warped moving then fixed -> residual flow (N, 3, I, J, K)."""

    def __init__(self, feature_channels: int, channels: int, res_blocks: int) -> None:
        super().__init__()
        self.entry = _conv(2 * feature_channels, channels)
        self.blocks = nn.ModuleList(_conv(channels, channels) for _ in range(res_blocks))
        self.narrow = _conv(channels, channels // 2)
        self.flow = _conv(channels // 2, 3)

    def forward(self, features: Tensor) -> Tensor:
        x = _activate(self.entry(features))
        for block in self.blocks:
            x = _activate(x + block(x))
        return self.flow(self.narrow(x))


class RPNet(nn.Module):
    """The whole network; `forward` is RP-Net, with one iteration per level."""

    def __init__(self, config: NetworkConfig | None = None) -> None:
        super().__init__()
        self.config = config or NetworkConfig()
        self.extractor = FeatureExtractor(self.config)
        self.estimators = nn.ModuleDict(
            {
                str(level): FlowEstimator(
                    self.config.feature_channels[level], self.config.estimator_channels[level], self.config.res_blocks
                )
                for level in LEVELS
            }
        )

    def encode(self, image: Tensor) -> dict[int, Tensor]:
        """Return the feature maps by level of an image (N, 1, I, J, K) in [0, 1] with sizes that are multiples of 8."""
        if image.ndim != 5 or any(size % SIZE_MULTIPLE for size in image.shape[2:]):
            raise InputError(f"image: got shape {tuple(image.shape)}, expected (N, 1, I, J, K) with sizes % 8 == 0")
        return dict(enumerate(self.extractor(image), start=1))

    def estimate(self, level: int, warped_moving: Tensor, fixed: Tensor) -> Tensor:
        """Estimate the residual flow (N, 3, I, J, K) of one level, float32, from its feature maps (N, C, I, J, K)."""
        features = torch.cat((warped_moving.to(fixed.dtype), fixed), dim=1)
        return self.estimators[str(level)](features).float()

    def forward(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """Return the flow that aligns `moving` to `fixed`, both (N, 1, I, J, K).

        The flow is (N, 3, I, J, K), in voxels on the fixed grid.
        """
        return self.flows(moving, fixed)[1]

    def flows(
        self, moving: Tensor, fixed: Tensor, counts: tuple[int, int, int, int] = (1, 1, 1, 1)
    ) -> dict[int, Tensor]:
        """Return the flow after each level, by level, in voxels of that level's grid; level 1's is the result.

        Args:
            moving, fixed: (N, 1, I, J, K), in [0, 1], sizes multiples of 8.
            counts: iterations at levels 4, 3, 2, 1, each 1 or more; (1, 1, 1, 1) is RP-Net.
        """
        return self._flows(self.encode(moving), self.encode(fixed), counts)

    def flows_both_ways(
        self, first: Tensor, second: Tensor, counts: tuple[int, int, int, int] = (1, 1, 1, 1)
    ) -> dict[int, Tensor]:
        """Return `flows` of first onto second and of second onto first, as one batch (2N, 3, I, J, K) in this order.

        Each image passes through the extractor once.
        """
        features = self.encode(torch.cat((first, second)))
        others = {level: torch.cat(maps.chunk(2)[::-1]) for level, maps in features.items()}
        return self._flows(features, others, counts)

    def _flows(
        self, moving_features: dict[int, Tensor], fixed_features: dict[int, Tensor], counts: tuple[int, int, int, int]
    ) -> dict[int, Tensor]:
        flows: dict[int, Tensor] = {}
        for level, count in zip(LEVELS, counts, strict=True):
            flow = upsample(flows[level + 1], 2) if flows else None
            for _ in range(count):
                flow = self._refine(level, flow, moving_features[level], fixed_features[level])
            assert flow is not None  # counts are 1 or more
            flows[level] = flow
        return flows

    def _refine(self, level: int, flow: Tensor | None, moving: Tensor, fixed: Tensor) -> Tensor:
        """Run one iteration of a level on its feature maps; None stands for the zero flow."""
        if flow is None:
            return self.estimate(level, moving, fixed)
        return compose(flow, self.estimate(level, warp(moving, flow), fixed))
