"""RP-Net and its field operations in torch against the NumPy definitions and against arithmetic."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from runtime.errors import InputError
from runtime.geometry import flow as definition
from train.model import fields
from train.model.network import LEVELS, NetworkConfig, RPNet

GRIDS = [(9, 8, 7), (5, 1, 6), (1, 1, 1), (2, 3, 4)]


def _conv_parameters(channels_in: int, channels_out: int) -> int:
    return 27 * channels_in * channels_out + channels_out


def _expected_parameters(res_blocks: int) -> int:
    """The sum over the list of layers."""
    widths = {1: 8, 2: 16, 3: 32, 4: 32}
    total = sum(_conv_parameters(*pair) for pair in ((1, 8), (8, 16), (16, 32), (32, 32)))
    for level, q in ((1, 16), (2, 32), (3, 32), (4, 32)):
        total += _conv_parameters(2 * widths[level], q) + res_blocks * _conv_parameters(q, q)
        total += _conv_parameters(q, q // 2) + _conv_parameters(q // 2, 3)
    return total


@pytest.mark.parametrize("res_blocks", range(5))
def test_parameter_count_follows_from_the_layer_list(res_blocks):
    network = RPNet(NetworkConfig(res_blocks=res_blocks))
    assert sum(p.numel() for p in network.parameters()) == _expected_parameters(res_blocks)


def test_two_residual_blocks_have_the_published_parameter_count():
    assert sum(p.numel() for p in RPNet().parameters()) == 419_964


@pytest.mark.parametrize(("name", "value"), [("res_blocks", 5), ("res_blocks", -1), ("first_channels", 3)])
def test_configurations_outside_the_family_are_refused(name, value):
    with pytest.raises(InputError, match=f"{name}: got {value}, expected"):
        NetworkConfig(**{name: value})


@pytest.mark.parametrize("shape", [(8, 8, 8), (16, 8, 24), (8, 40, 16)])
def test_any_multiple_of_eight_gives_a_flow_of_the_images_size(shape):
    torch.manual_seed(0)
    with torch.no_grad():
        flow = RPNet()(torch.rand(1, 1, *shape), torch.rand(1, 1, *shape))
    assert flow.shape == (1, 3, *shape) and flow.isfinite().all()


@pytest.mark.parametrize("shape", [(1, 1, 12, 8, 8), (1, 8, 8, 8)])
def test_other_sizes_are_refused(shape):
    with pytest.raises(InputError, match="sizes % 8"):
        RPNet().encode(torch.rand(shape))


def _random_flow(shape, spread=3.0, seed=0):
    return np.random.default_rng(seed).normal(0, spread, (3, *shape)).astype(np.float32)


def _torch(array):
    return torch.from_numpy(array)[None]


@pytest.mark.parametrize("shape", GRIDS)
def test_warp_is_the_definition_also_beyond_the_border_and_on_one_voxel_axes(shape):
    flow = _random_flow(shape)
    image = np.random.default_rng(1).random((2, *shape), dtype=np.float32)
    result = fields.warp(_torch(image), _torch(flow))[0].numpy()
    np.testing.assert_allclose(result, definition.warp(image, flow), atol=2e-5)


@pytest.mark.parametrize("shape", GRIDS)
def test_compose_is_the_definition(shape):
    flow, residual = _random_flow(shape), _random_flow(shape, 1.0, seed=2)
    result = fields.compose(_torch(flow), _torch(residual))[0].numpy()
    np.testing.assert_allclose(result, definition.compose(flow, residual), atol=5e-5)


@pytest.mark.parametrize("shape", GRIDS)
@pytest.mark.parametrize("scale", [2, 4])
def test_upsample_is_the_definition(shape, scale):
    flow = _random_flow(shape)
    result = fields.upsample(_torch(flow), scale)[0].numpy()
    np.testing.assert_allclose(result, definition.upsample(flow, scale), atol=2e-5)


@pytest.mark.parametrize("spread", [0.1, 0.6])
def test_determinant_and_folded_share_are_the_definition(spread):
    flow = _random_flow((9, 8, 7), spread)
    np.testing.assert_allclose(fields.determinant(_torch(flow)), definition.jacobian_determinant(flow), atol=1e-4)
    assert fields.folded_share(_torch(flow)) == pytest.approx(definition.folded_share(flow), abs=1e-6)


def test_warp_by_whole_voxels_is_a_shift_with_zeros_coming_in():
    image = torch.arange(1.0, 6.0).view(1, 1, 5, 1, 1)
    flow = torch.zeros(1, 3, 5, 1, 1)
    flow[:, 0] = 2
    assert fields.warp(image, flow).flatten().tolist() == pytest.approx([3, 4, 5, 0, 0], abs=1e-5)


def test_warp_samples_in_float32_whatever_the_features_are():
    flow = torch.full((1, 3, 64, 8, 8), 0.25)
    ramp = torch.arange(64.0).view(1, 1, 64, 1, 1).expand(1, 1, 64, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        warped = fields.warp(ramp.bfloat16(), flow)
    assert warped.dtype == torch.float32
    # Coordinates rounded to bf16 would be off by up to a quarter of a voxel here.
    torch.testing.assert_close(warped[0, 0, 1:60, 4, 4], torch.arange(1.25, 60.0), atol=1e-3, rtol=0)


def _numpy_forward(network, moving, fixed):
    """RP-Net written out: torch for the convolutions only, the NumPy reference for every field operation."""
    state = network.state_dict()

    def conv(x, name):
        return F.conv3d(torch.from_numpy(x)[None], state[f"{name}.weight"], state[f"{name}.bias"], padding=1)[0].numpy()

    def leaky(x):
        return np.where(x > 0, x, np.float32(0.1) * x)

    def pool(x):
        i, j, k = (size // 2 for size in x.shape[1:])
        return x.reshape(-1, i, 2, j, 2, k, 2).mean((2, 4, 6))

    def encode(image):
        maps, x = {}, image[None]
        for level in (1, 2, 3, 4):
            x = maps[level] = leaky(conv(pool(x) if level > 1 else x, f"extractor.convolutions.{level - 1}"))
        return maps

    def estimate(level, warped, target):
        x = leaky(conv(np.concatenate((warped, target)), f"estimators.{level}.entry"))
        for block in range(network.config.res_blocks):
            x = leaky(x + conv(x, f"estimators.{level}.blocks.{block}"))
        return conv(conv(x, f"estimators.{level}.narrow"), f"estimators.{level}.flow")

    moving_maps, fixed_maps = encode(moving), encode(fixed)
    flow = estimate(4, moving_maps[4], fixed_maps[4])
    for level in LEVELS[1:]:
        flow = definition.upsample(flow, 2)
        residual = estimate(level, definition.warp(moving_maps[level], flow), fixed_maps[level])
        flow = definition.compose(flow, residual)
    return flow


@pytest.mark.parametrize("res_blocks", [0, 2])
def test_forward_is_the_levels_composed_from_coarse_to_fine(res_blocks):
    torch.manual_seed(3)
    network = RPNet(NetworkConfig(res_blocks=res_blocks))
    with torch.no_grad():
        for estimator in network.estimators.values():
            estimator.flow.bias.normal_(0, 0.7)  # flows of more than a voxel, so that warping matters
    rng = np.random.default_rng(4)
    moving, fixed = (rng.random((16, 24, 16), dtype=np.float32) for _ in range(2))
    with torch.no_grad():
        flow = network(torch.from_numpy(moving)[None, None], torch.from_numpy(fixed)[None, None])[0].numpy()
    assert np.abs(flow).max() > 1
    np.testing.assert_allclose(flow, _numpy_forward(network, moving, fixed), atol=2e-4)


def test_gradients_reach_every_parameter():
    torch.manual_seed(5)
    network = RPNet()
    network(torch.rand(1, 1, 16, 16, 16), torch.rand(1, 1, 16, 16, 16)).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.abs().max() > 0 for p in network.parameters())
