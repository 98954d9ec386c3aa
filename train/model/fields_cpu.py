"""The trilinear warp and its two gradients on a CPU; `runtime.geometry.flow.warp` defines the warp.

For a batch of one volume, torch samples on a single thread, one channel at a time. The kernels of registration
(`runtime.backends`) read all channels of a voxel at once and distribute slices over as many threads as torch uses;
results do not depend on the number of threads. This module passes torch's memory to these kernels.
"""

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.library import custom_op

from runtime.backends.fields import cpu_gradients
from runtime.backends.fields.cpu import NumbaFields
from runtime.types import Array


@custom_op("rpnet::warp", mutates_args=(), device_types="cpu")
def warp(image: Tensor, flow: Tensor) -> Tensor:
    """Compute ``image(x + flow(x))``, trilinear, with zeros outside and NaN where the flow is NaN.

    The result can be differentiated once with respect to both arguments.

    Args:
        image: (N, C, I, J, K) float32 on the CPU; channels-last memory avoids a copy.
        flow: (N, 3, I, J, K) float32, voxels.

    Returns:
        (N, C, I, J, K) float32 in channels-last memory.
    """
    out = _channels_last(image)
    with _host() as host:
        for image_n, flow_n, out_n in zip(*map(_arrays, (image, flow, out)), strict=True):
            host.warp_into(out_n, image_n, flow_n)
    return out


@custom_op("rpnet::warp_to_flow", mutates_args=(), device_types="cpu")
def _to_flow(image: Tensor, flow: Tensor, gradient: Tensor) -> Tensor:
    out = _channels_last(flow)
    with _host():
        for arrays in zip(*map(_arrays, (image, flow, gradient, out)), strict=True):
            cpu_gradients.slopes(*arrays)
    return out


@custom_op("rpnet::warp_to_image", mutates_args=(), device_types="cpu")
def _to_image(flow: Tensor, gradient: Tensor) -> Tensor:
    out = _channels_last(gradient).zero_()
    with _host():
        for flow_n, gradient_n, out_n in zip(*map(_arrays, (flow, gradient, out)), strict=True):
            reach = np.empty((len(flow_n), 2), np.float32)
            cpu_gradients.bounds(flow_n, reach)
            cpu_gradients.scatter(flow_n, gradient_n, reach, out_n)
    return out


def _backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
    image, flow = ctx.saved_tensors
    of_image, of_flow = ctx.needs_input_grad
    return _to_image(flow, gradient) if of_image else None, _to_flow(image, flow, gradient) if of_flow else None


warp.register_autograd(_backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs))
# torch.compile must know shape and memory layout of the results.
warp.register_fake(lambda image, flow: _channels_last(image))
_to_flow.register_fake(lambda image, flow, gradient: _channels_last(flow))
_to_image.register_fake(lambda flow, gradient: _channels_last(gradient))


def _channels_last(like: Tensor) -> Tensor:
    """Return an uninitialised tensor of the same shape in channels-last memory."""
    batch, channels, *sizes = like.shape
    return like.new_empty((batch, *sizes, channels)).permute(0, 4, 1, 2, 3)


def _arrays(tensor: Tensor) -> list[Array]:
    """Return each volume of a batch as a C-contiguous array (I, J, K, C), without a copy for channels-last memory."""
    return list(tensor.detach().permute(0, 2, 3, 4, 1).contiguous().numpy())


@contextlib.contextmanager
def _host() -> Iterator[NumbaFields]:
    """Yield registration's field operations; within, all kernels use as many threads as torch, if numba has them."""
    count = torch.get_num_threads()
    host = NumbaFields(count)
    with host.threads():
        if torch.get_num_threads() != count:  # numba's start changes it too if both share one OpenMP library
            torch.set_num_threads(count)
        yield host
