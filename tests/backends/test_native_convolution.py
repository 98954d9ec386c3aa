"""Chains of compiled convolutions against PyTorch in double precision, and the blocks that they may skip."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from runtime.backends.networks.native.kernels import KINDS
from runtime.backends.networks.native.networks import ConvolutionChain, Layer
from runtime.errors import InputError

RNG = np.random.default_rng(0)
BACKGROUND = RNG.random(16, np.float32)


def layer(channels_in: int, channels_out: int, slope: float = 0.1) -> Layer:
    weights = RNG.normal(0, (27 * channels_in) ** -0.5, (3, 3, 3, channels_in, channels_out))
    return Layer(weights.astype(np.float32), RNG.normal(0, 0.1, channels_out).astype(np.float32), slope)


def expected(source: np.ndarray, layers: list[Layer]) -> np.ndarray:
    x = torch.from_numpy(source).double().permute(3, 0, 1, 2)[None]
    for each in layers:
        weights = torch.from_numpy(np.ascontiguousarray(each.weights.transpose(4, 3, 0, 1, 2))).double()
        x = F.leaky_relu(F.conv3d(x, weights, torch.from_numpy(each.bias).double(), padding=1), each.slope)
    return x[0].permute(1, 2, 3, 0).numpy()


LAYERS = [layer(16, 16), layer(16, 16), layer(16, 8, 1.0), layer(8, 3, 1.0)]


@pytest.fixture(scope="module")
def chain():
    return ConvolutionChain(LAYERS, BACKGROUND.reshape(1, 1, 1, 16))


def around(shape) -> np.ndarray:
    """Pure background."""
    return np.broadcast_to(BACKGROUND, (*shape, 16)).copy()


def blob(shape) -> np.ndarray:
    source = around(shape)
    inside = tuple(slice(size // 3, 2 * size // 3 + 1) for size in shape)
    source[inside] = RNG.random(source[inside].shape, np.float32)
    return source


def corners(shape) -> np.ndarray:
    source = around(shape)
    source[0, -1, 0], source[-1, 0, -1] = 9, -9
    return source


SHAPES = [(1, 1, 1), (3, 2, 5), (9, 9, 9), (16, 24, 32), (30, 25, 41), (13, 12, 17)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("content", [blob, corners, around, lambda shape: RNG.random((*shape, 16), np.float32)])
def test_a_chain_is_its_convolutions(chain, shape, content):
    source = content(shape)
    wanted = expected(source, LAYERS)
    np.testing.assert_allclose(chain(source), wanted, atol=3e-6 * np.abs(wanted).max())


def test_in_any_order(chain):
    """Masks and rings are reused; no trace of an earlier volume shows in a later one."""
    sources = [blob((24, 20, 16)), corners((24, 20, 16)), around((24, 20, 16))]
    alone = [ConvolutionChain(LAYERS, BACKGROUND.reshape(1, 1, 1, 16))(source) for source in sources]
    for n in (0, 1, 2, 1, 0, 2):
        np.testing.assert_array_equal(chain(sources[n], reuse=True), alone[n])


@pytest.mark.slow
def test_background_is_left_out(chain):
    """Around a single active voxel, less than a hundredth of the blocks is computed."""
    source = around((64, 64, 64))
    source[32, 32, 32] = 5
    np.testing.assert_allclose(chain(source), expected(source, LAYERS), atol=1e-5)
    assert chain.activity < 0.01
    chain(RNG.random(source.shape, np.float32))
    assert chain.activity == 1


def test_one_bit_decides(chain):
    """A voxel that differs in its last bit is not background."""
    source = around((24, 24, 24))
    source[12, 12, 12, 3] = np.nextafter(source[12, 12, 12, 3], np.float32(2))
    chain(source)
    assert 0 < chain.activity < 1


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_kind_of_block(kind):
    layers = [layer(*kind)]
    source = RNG.random((5, 6, 17 if kind[0] > 1 else 16, kind[0]), np.float32)
    found = ConvolutionChain(layers, np.zeros((1, 1, 1, kind[0]), np.float32))(source)
    np.testing.assert_allclose(found, expected(source, layers), atol=1e-5)


def test_channels_without_a_kernel_are_refused():
    with pytest.raises(InputError, match="--backend: native has no convolution of 5 to 7 channels"):
        ConvolutionChain([layer(5, 7)], np.zeros((1, 1, 1, 5), np.float32))


@pytest.mark.parametrize("shape", [(17, 19, 21), (20, 23, 27), (16, 17, 31)], ids=str)
def test_masks_leave_out_nothing_that_counts(shape):
    """Odd rows, partial blocks and borders with a background that borders reach into, as at levels 2 to 4."""
    wide = ConvolutionChain([layer(16, 16)], BACKGROUND.reshape(1, 1, 1, 16)).background_out
    chain = ConvolutionChain(LAYERS[1:], wide)
    source = np.ascontiguousarray(wide[np.ix_(*(_places(size, len(wide)) for size in shape))])
    source[2:5, -4:-2, 9:12] = RNG.random((3, 2, 3, 16), np.float32)
    found = chain(source)
    assert 0 < chain.activity < 1
    wanted = expected(source, LAYERS[1:])
    np.testing.assert_allclose(found, wanted, atol=3e-6 * np.abs(wanted).max())


def _places(size: int, cube: int) -> np.ndarray:
    """Return for every voxel of an axis the voxel of a cube of background at the same distance from the borders."""
    index, middle = np.arange(size), cube // 2
    return np.where(index < size // 2, np.minimum(index, middle), 2 * middle - np.minimum(size - 1 - index, middle))
