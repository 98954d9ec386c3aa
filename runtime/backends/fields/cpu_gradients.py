"""The two gradients of the trilinear warp on the CPU, for training; `cpu_kernels.warp_features` is the warp itself.

Arrays are float32, channels-last and contiguous: images (I, J, K, C), flows (I, J, K, 3). Every value is computed in an
order that does not depend on where slices begin and end. Registration needs none of this, so the warm-up skips it: it
is compiled when it is first used.
"""

import numpy as np
from numba import njit

from ...host.kernels import in_slices
from . import cpu_cells as cells
from .cpu_cells import locate, target

F = np.float32
U = np.uintp  # unsigned indices avoid the check for negative ones

_inlined = njit(forceinline=True, error_model="numpy")
_apart = njit(error_model="numpy")  # kept out of the hot loops


@_inlined
def _touches(x, y, z, begin, end, sizes):
    """Return whether any corner of the cell lies inside the image and in slices `begin` to `end`; False for NaN."""
    return (x > begin - 1) & (y > -1) & (z > -1) & (x < end) & (y < sizes[1]) & (z < sizes[2])


@_inlined
def _weight(fraction, far):
    return fraction if far else F(1) - fraction


@_apart
def _slopes_at_border(image, x, y, z, gradient):
    """Return the derivatives of ``sum_c gradient[c] image(x, y, z, c)`` along the axes: zeros outside, NaN at NaN."""
    sizes = image.shape[:3]
    if not _touches(x, y, z, 0, sizes[0], sizes):
        nothing = F(0) * (x + y + z)
        return nothing, nothing, nothing
    i, j, k = int(np.floor(x)), int(np.floor(y)), int(np.floor(z))
    du, dv, dw = F(0), F(0), F(0)
    for a in range(max(i, 0), min(i + 2, sizes[0])):
        for b in range(max(j, 0), min(j + 2, sizes[1])):
            for d in range(max(k, 0), min(k + 2, sizes[2])):
                value = F(0)
                for c in range(len(gradient)):
                    value += gradient[c] * image[a, b, d, c]
                u, v, w = _weight(x - F(i), a > i), _weight(y - F(j), b > j), _weight(z - F(k), d > k)
                du += v * w * (value if a > i else -value)
                dv += u * w * (value if b > j else -value)
                dw += u * v * (value if d > k else -value)
    return du, dv, dw


@_apart
def _scatter_at_border(out, x, y, z, begin, end, gradient):
    """Add a voxel's gradient to the corners of its cell that lie inside the image and in slices `begin` to `end`."""
    sizes = out.shape[:3]
    if not _touches(x, y, z, begin, end, sizes):
        return
    i, j, k = int(np.floor(x)), int(np.floor(y)), int(np.floor(z))
    for a in range(max(i, begin), min(i + 2, end)):
        for b in range(max(j, 0), min(j + 2, sizes[1])):
            for d in range(max(k, 0), min(k + 2, sizes[2])):
                weight = _weight(x - F(i), a > i) * _weight(y - F(j), b > j) * _weight(z - F(k), d > k)
                for c in range(len(gradient)):
                    out[a, b, d, c] += weight * gradient[c]


@in_slices(over="out")
def slopes(begin, end, image, flow, gradient, out):
    """Compute the gradient with respect to the flow: ``out(x) = sum_c gradient(x, c) (grad image)(x + flow(x), c)``."""
    _, size_j, size_k, channels = image.shape
    step_i, step_j, step_k = U(size_j * size_k * channels), U(size_k * channels), U(channels)
    first_voxels, fractions = np.empty(size_k, np.int64), np.empty((3, size_k), np.float32)
    for i in range(begin, end):
        for j in range(size_j):
            row = flow[i, j].reshape(3 * size_k)
            locate(row, i, j, image.shape[:3], first_voxels, fractions)
            for k in range(size_k):
                du, dv, dw = F(0), F(0), F(0)
                if first_voxels[k] < 0:
                    x, y, z = target(row, i, j, k)
                    du, dv, dw = _slopes_at_border(image, x, y, z, gradient[i, j, k])
                else:
                    start, at = U(first_voxels[k]) * step_k, U((i * size_j + j) * size_k + k) * step_k
                    u, v, w = fractions[0, k], fractions[1, k], fractions[2, k]
                    last = at + step_k
                    if channels == 3:
                        du, dv, dw = cells.slopes_3(image, start, step_i, step_j, step_k, u, v, w, gradient, at)
                        at = last
                    while at + U(8) <= last:
                        a, b, c = cells.slopes_8(image, start, step_i, step_j, step_k, u, v, w, gradient, at)
                        du, dv, dw = du + a, dv + b, dw + c
                        start, at = start + U(8), at + U(8)
                    while at < last:
                        a, b, c = cells.slopes_1(image, start, step_i, step_j, step_k, u, v, w, gradient, at)
                        du, dv, dw = du + a, dv + b, dw + c
                        start, at = start + U(1), at + U(1)
                out[i, j, k, 0], out[i, j, k, 1], out[i, j, k, 2] = du, dv, dw


@in_slices(over="out")
def bounds(begin, end, flow, out):
    """Compute the smallest and largest target coordinate along the first axis per slice, ignoring NaN; out (I, 2)."""
    _, size_j, size_k, _ = flow.shape
    for i in range(begin, end):
        low, high = F(np.inf), F(-np.inf)
        for j in range(size_j):
            for k in range(size_k):
                x = F(i) + flow[i, j, k, 0]
                low, high = x if x < low else low, x if x > high else high
        out[i, 0], out[i, 1] = low, high


@in_slices(over="out")
def scatter(begin, end, flow, gradient, reach, out):
    """Add slices `begin` to `end` of the gradient with respect to the image to `out` (I, J, K, C).

    Every voxel's gradient is added, weighted, to the corners of its target cell. Each call visits, in order, all voxels
    whose cells may reach its slices (`reach` from `bounds`), and adds to these slices only; no atomics are needed.
    """
    _, size_j, size_k, channels = out.shape
    step_i, step_j, step_k = U(size_j * size_k * channels), U(size_k * channels), U(channels)
    slice_size = size_j * size_k
    first_voxels, fractions = np.empty(size_k, np.int64), np.empty((3, size_k), np.float32)
    for i in range(len(flow)):
        if not (reach[i, 0] < end and reach[i, 1] > begin - 1):
            continue
        for j in range(size_j):
            row = flow[i, j].reshape(3 * size_k)
            locate(row, i, j, out.shape[:3], first_voxels, fractions)
            for k in range(size_k):
                place = first_voxels[k]
                if place < 0:
                    x, y, z = target(row, i, j, k)
                    _scatter_at_border(out, x, y, z, begin, end, gradient[i, j, k])
                    continue
                # A cell's near and far corners are in slices of neighbouring i; either may belong to another call.
                near = begin * slice_size <= place < end * slice_size
                far = (begin - 1) * slice_size <= place < (end - 1) * slice_size
                start, at = U(place) * step_k, U((i * size_j + j) * size_k + k) * step_k
                u, v, w = fractions[0, k], fractions[1, k], fractions[2, k]
                if channels == 3:
                    if near:
                        cells.near_3(out, start, step_i, step_j, step_k, u, v, w, gradient, at)
                    if far:
                        cells.far_3(out, start, step_i, step_j, step_k, u, v, w, gradient, at)
                    continue
                last = at + step_k
                while at + U(8) <= last:
                    if near:
                        cells.near_8(out, start, step_i, step_j, step_k, u, v, w, gradient, at)
                    if far:
                        cells.far_8(out, start, step_i, step_j, step_k, u, v, w, gradient, at)
                    start, at = start + U(8), at + U(8)
                while at < last:
                    if near:
                        cells.near_1(out, start, step_i, step_j, step_k, u, v, w, gradient, at)
                    if far:
                        cells.far_1(out, start, step_i, step_j, step_k, u, v, w, gradient, at)
                    start, at = start + U(1), at + U(1)
