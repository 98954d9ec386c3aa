"""The warp of training and its gradients: our own kernels on a CPU against NumPy, torch and finite differences.

torch's `grid_sample` is an independent implementation of the same formula with the same derivatives, except where a
coordinate is whole: there it goes by rounding which cell counts, so random flows keep clear of whole numbers.
"""

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset

from runtime.backends.fields import cpu_gradients
from runtime.geometry import flow as numpy_definition
from runtime.host.compiled import KERNELS, code_folder
from train.model import definition, fields, fields_cpu

SHAPES = [(1, 1, 1), (1, 5, 1), (2, 3, 4), (9, 7, 11), (24, 32, 28)]
CHANNELS = [1, 3, 8, 19]  # those with kernels of their own, and a mixture of them


def _grid_sample(image, flow):
    """Warp by torch itself: on an align-corners-false grid the centre of voxel n of N is at (2n + 1) / N - 1."""
    size = torch.tensor(flow.shape[2:], dtype=torch.float64).view(1, 3, 1, 1, 1)
    coordinates = (2 * (definition.identity(flow.shape[2:]).double() + flow.double()) + 1) / size - 1
    grid = coordinates.permute(0, 2, 3, 4, 1).flip(-1)
    return F.grid_sample(image.double(), grid, padding_mode="zeros", align_corners=False)


def _random(shape, channels, batch=2, spread=2.5, seed=0):
    """Return an image and a flow that leaves it in places, with no coordinate within 0.02 of a whole number."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn((batch, channels, *shape), generator=generator)
    flow = spread * torch.randn((batch, 3, *shape), generator=generator)
    return image, flow.floor() + flow.frac().abs().clamp(0.02, 0.98)


def _with_gradients(function, image, flow, weight):
    image, flow = image.detach().requires_grad_(), flow.detach().requires_grad_()
    out = function(image, flow)
    return out, *torch.autograd.grad(out, (image, flow), weight.to(out.dtype))


def _close(got, expected):
    for mine, truth in zip(got, expected, strict=True):
        torch.testing.assert_close(mine.double(), truth.double(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_both_gradients_are_those_of_torch(shape, channels):
    image, flow = _random(shape, channels)
    weight = torch.randn(image.shape, generator=torch.Generator().manual_seed(1))
    _close(_with_gradients(fields.warp, image, flow, weight), _with_gradients(_grid_sample, image, flow, weight))


@pytest.mark.parametrize("channels", CHANNELS)
def test_values_are_those_of_the_definition(channels):
    image, flow = _random((9, 7, 11), channels, batch=1)
    expected = numpy_definition.warp(image[0].numpy(), flow[0].numpy())
    np.testing.assert_allclose(fields.warp(image, flow)[0].numpy(), expected, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Input #. requires gradient and is not a double")
@pytest.mark.parametrize("channels", CHANNELS)
def test_gradients_are_the_slopes_of_the_values(channels):
    """Within a cell the warp is linear in the image and in each component of the flow: differences are exact."""
    image, flow = _random((3, 4, 3), channels, batch=1, spread=1.0)
    inputs = (image.requires_grad_(), flow.requires_grad_())
    assert torch.autograd.gradcheck(fields.warp, inputs, eps=1e-2, atol=2e-3, rtol=1e-3)


def test_gradient_to_a_linear_image_is_its_slope():
    """Of f(x) = 2 i - 3 j + 5 k, away from the border, whatever the flow."""
    shape = (12, 11, 10)
    i, j, k = torch.meshgrid(*(torch.arange(float(size)) for size in shape), indexing="ij")
    flow = torch.full((1, 3, *shape), 0.3, requires_grad=True)
    fields.warp((2 * i - 3 * j + 5 * k)[None, None], flow).sum().backward()
    inside = flow.grad[0, :, :-2, :-2, :-2]
    torch.testing.assert_close(inside, torch.tensor([2.0, -3, 5]).view(3, 1, 1, 1).expand_as(inside), atol=1e-3, rtol=0)


def test_gradient_to_the_image_counts_how_often_each_voxel_is_looked_at():
    """All of a (5, 5, 5) grid looks at voxel (1, 2, 3): its gradient is 125, that of all others 0."""
    grid = definition.identity((5, 5, 5))[None]
    flow = torch.tensor([1.0, 2, 3]).view(1, 3, 1, 1, 1) - grid
    image = torch.zeros(1, 1, 5, 5, 5, requires_grad=True)
    fields.warp(image, flow).sum().backward()
    expected = torch.zeros(5, 5, 5)
    expected[1, 2, 3] = 125
    torch.testing.assert_close(image.grad[0, 0], expected)


@pytest.mark.parametrize("channels", [3, 8])
def test_number_of_threads_changes_no_bit(channels, threads):
    """Also where displacements are so large that every slice adds to every other."""
    image, flow = _random((40, 24, 20), channels, batch=1, spread=15.0)
    weight = torch.randn(image.shape, generator=torch.Generator().manual_seed(1))
    results = []
    for count in (1, 2, 5):
        threads(count)
        results.append(_with_gradients(fields.warp, image, flow, weight))
    for result in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(result, results[0], strict=True))


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_memory_layout_of_image_flow_and_gradient_changes_no_bit():
    image, flow = _random((10, 9, 8), 8)
    weight = torch.randn(image.shape)
    planar = _with_gradients(fields.warp, image, flow, weight)
    last = [tensor.to(memory_format=torch.channels_last_3d) for tensor in (image, flow, weight)]
    for one, other in zip(planar, _with_gradients(fields.warp, *last), strict=True):
        assert torch.equal(one, other)
    assert planar[0].is_contiguous(memory_format=torch.channels_last_3d)


def test_features_in_half_precision_are_sampled_in_float32_and_get_a_gradient_of_their_own_type():
    image, flow = _random((8, 8, 8), 8)
    half = image.bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        warped = fields.warp(half, flow)
    warped.sum().backward()
    assert warped.dtype == torch.float32 and half.grad.dtype == torch.bfloat16
    assert torch.equal(warped, fields.warp(half.detach().float(), flow))


def test_a_flow_that_is_not_finite_gives_nan_there_and_harms_nothing_else():
    image, flow = _random((6, 6, 6), 3, batch=1)
    flow[0, 1, 2, 3, 4], flow[0, 0, 5, 5, 5] = float("nan"), float("inf")
    warped, _, to_flow = _with_gradients(fields.warp, image, flow, torch.ones_like(image))
    for result in (warped, to_flow):
        finite = result.isfinite().all(dim=1)[0]
        assert not finite[2, 3, 4] and not finite[5, 5, 5] and finite.sum() == 6**3 - 2


def test_only_the_gradients_that_are_asked_for_are_computed():
    image, flow = _random((6, 6, 6), 1)
    assert not fields.warp(image, flow).requires_grad
    (gradient,) = torch.autograd.grad(fields.warp(image, flow.requires_grad_()).sum(), flow)
    assert gradient.shape == flow.shape and image.grad is None


def test_a_compiler_is_told_the_truth_about_shapes_and_memory():
    """torch.compile sees the kernels as operators: no graph break, results with the declared layout."""
    image, flow = _random((4, 5, 6), 3)
    inputs = (image.requires_grad_(), flow.requires_grad_())
    torch.library.opcheck(fields_cpu.warp, inputs, test_utils=("test_schema", "test_faketensor"))


def test_gradients_are_kept_with_the_kernels_of_registration():
    """Under a key of all sources' contents: an edit of one kernel leaves no old code of another that contains it."""
    for kernel in (cpu_gradients.slopes, cpu_gradients.bounds, cpu_gradients.scatter):
        assert kernel.kernel in KERNELS
        assert Path(kernel.kernel.stats.cache_path) == code_folder()


def test_kernels_are_compiled_when_they_are_used_and_leave_torch_its_threads():
    """numba's start sets the number of threads of an OpenMP that it may share with torch, and sums depend on that."""
    code = """
        import torch
        from train.model import fields
        from runtime.backends.fields import cpu_gradients
        assert not cpu_gradients.scatter.kernel.signatures and not cpu_gradients.slopes.kernel.signatures
        torch.set_num_threads(1)
        fields.warp(torch.zeros(1, 1, 2, 2, 2), torch.zeros(1, 3, 2, 2, 2))
        assert torch.get_num_threads() == 1
    """
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class _Warped(Dataset):
    def __getitem__(self, seed):
        return fields.warp(*_random((40, 24, 20), 3, seed=seed))


def test_workers_of_a_data_loader_warp_as_well(threads):
    """They are forked from a process whose threads have warped already, and which they do not have."""
    threads(2)
    expected = [_Warped()[seed] for seed in range(2)]
    loader = DataLoader(_Warped(), batch_size=None, sampler=range(2), num_workers=1, timeout=60)
    for one, other in zip(loader, expected, strict=True):
        assert torch.equal(one, other)


def test_nearest_takes_whole_labels():
    labels = torch.tensor([0.0, 3, 7, 9]).view(1, 1, 4, 1, 1)
    flow = torch.zeros(1, 3, 4, 1, 1)
    flow[:, 0] = 0.7
    assert fields.warp(labels, flow, mode="nearest").flatten().tolist() == [3, 7, 9, 0]
