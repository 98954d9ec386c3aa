"""Field operations on the CPU, compiled by numba. Reference: `runtime.geometry.flow`, `runtime.images.similarity`.

Arrays are float32, channels-last and contiguous: images (I, J, K, 1), features (I, J, K, C), flows (I, J, K, 3). Arrays
that an engine reads or writes may have another layout; they are passed as flat memory and four strides in elements.
Work is split over the first axis; every slice writes its own partial sums, which are added in a fixed order, so that
results do not depend on the number of threads.
"""

import numpy as np
from numba import njit

from ...host.kernels import in_slices
from .cpu_cells import between_3, blend_1, blend_3, blend_8, locate, sample_1, sample_3, target

F = np.float32
U = np.uintp  # unsigned indices avoid the check for negative ones

_inlined = njit(forceinline=True, error_model="numpy")
_apart = njit(error_model="numpy")  # rarely needed: kept out of the hot loops
# Sums may be reordered for vector instructions, in the same order in every run.
_summing = njit(error_model="numpy", fastmath={"reassoc", "contract"})


@_apart
def _at_border(image, x, y, z, c):
    """Return a trilinear sample of one channel at any position: zeros outside, NaN if a coordinate is not finite."""
    size_i, size_j, size_k, _ = image.shape
    if not (x > -1 and y > -1 and z > -1 and x < size_i and y < size_j and z < size_k):
        return F(0) * (x + y + z)
    i, j, k = int(np.floor(x)), int(np.floor(y)), int(np.floor(z))
    u, v, w = x - F(i), y - F(j), z - F(k)
    value = F(0)
    for a in range(max(i, 0), min(i + 2, size_i)):
        for b in range(max(j, 0), min(j + 2, size_j)):
            for d in range(max(k, 0), min(k + 2, size_k)):
                weight = (u if a > i else F(1) - u) * (v if b > j else F(1) - v) * (w if d > k else F(1) - w)
                value += weight * image[a, b, d, c]
    return value


@_inlined
def _outside(image, row, i, j, k, c):
    """Sample one channel at the target of voxel (i, j, k), whose cell lies partly or wholly outside the image."""
    x, y, z = target(row, i, j, k)
    return _at_border(image, x, y, z, c)


@_inlined
def _blend(image, start, step_i, step_j, u, v, w, out, at):
    """Interpolate all channels of one voxel, eight at a time or a flow's three, to contiguous elements of `out`."""
    channels = U(image.shape[3])
    if channels == U(3):
        blend_3(image, start, step_i, step_j, channels, u, v, w, out, at)
        return
    c = U(0)
    while c + U(8) <= channels:
        blend_8(image, start + c, step_i, step_j, channels, u, v, w, out, at + c)
        c += U(8)
    while c < channels:
        blend_1(image, start + c, step_i, step_j, channels, u, v, w, out, at + c)
        c += U(1)


@in_slices(over="image")
def warp_features(begin, end, image, flow, out, out_i, out_j, out_k, out_c):
    """Compute ``out(x) = image(x + flow(x))``; image (I, J, K, C), flow (I, J, K, 3), out like image, any strides.

    If `out` is not channels-last, each row is computed in a channels-last buffer and then copied.
    """
    _, size_j, size_k, channels = image.shape
    step_i, step_j = U(size_j * size_k * channels), U(size_k * channels)
    for i in range(begin, end):
        first_voxels, fractions = np.empty(size_k, np.int64), np.empty((3, size_k), np.float32)
        beside = np.empty(0 if out_c == 1 else size_k * channels, np.float32)
        line, step = (out, U(out_k)) if out_c == 1 else (beside, U(channels))
        for j in range(size_j):
            row = flow[i, j].reshape(3 * size_k)
            locate(row, i, j, image.shape[:3], first_voxels, fractions)
            first = U(i) * U(out_i) + U(j) * U(out_j)
            at = first if out_c == 1 else U(0)
            for k in range(size_k):
                if first_voxels[k] >= 0:
                    start = U(first_voxels[k]) * U(channels)
                    u, v, w = fractions[0, k], fractions[1, k], fractions[2, k]
                    _blend(image, start, step_i, step_j, u, v, w, line, at)
                else:
                    for c in range(channels):
                        line[at + U(c)] = _outside(image, row, i, j, k, c)
                at += step
            if out_c != 1:
                for c in range(channels):
                    for k in range(size_k):
                        out[first + U(c) * U(out_c) + U(k) * U(out_k)] = beside[U(k) * U(channels) + U(c)]


@in_slices(over="features")
def carry(begin, end, features, out, offset, out_i, out_j, out_k, out_c):
    """Copy features (I, J, K, C) to the array of any strides that begins at out[offset]."""
    _, size_j, size_k, channels = features.shape
    for i in range(begin, end):
        for j in range(size_j):
            first = U(offset) + U(i) * U(out_i) + U(j) * U(out_j)
            if out_c == 1:
                for k in range(size_k):
                    for c in range(channels):
                        out[first + U(k) * U(out_k) + U(c)] = features[i, j, k, c]
            else:
                for c in range(channels):
                    for k in range(size_k):
                        out[first + U(k) * U(out_k) + U(c) * U(out_c)] = features[i, j, k, c]


@in_slices(over="flow")
def compose(begin, end, flow, residual, res_i, res_j, res_k, res_c, out):
    """Compute ``out(x) = flow(x + residual(x)) + residual(x)``; flow and out (I, J, K, 3), residual of any strides."""
    _, size_j, size_k, _ = flow.shape
    step_i, step_j = U(3 * size_j * size_k), U(3 * size_k)
    for i in range(begin, end):
        first_voxels, fractions = np.empty(size_k, np.int64), np.empty((3, size_k), np.float32)
        row = np.empty(3 * size_k, np.float32)
        for j in range(size_j):
            first = U(i) * U(res_i) + U(j) * U(res_j)
            for c in range(3):
                for k in range(size_k):
                    row[3 * k + c] = residual[first + U(c) * U(res_c) + U(k) * U(res_k)]
            locate(row, i, j, flow.shape[:3], first_voxels, fractions)
            for k in range(size_k):
                if first_voxels[k] >= 0:
                    start = U(3) * U(first_voxels[k])
                    u, v, w = fractions[0, k], fractions[1, k], fractions[2, k]
                    di, dj, dk = sample_3(flow, start, step_i, step_j, u, v, w)
                else:
                    di, dj = _outside(flow, row, i, j, k, 0), _outside(flow, row, i, j, k, 1)
                    dk = _outside(flow, row, i, j, k, 2)
                n = U(3) * U(k)
                out[i, j, k, 0], out[i, j, k, 1], out[i, j, k, 2] = di + row[n], dj + row[n + U(1)], dk + row[n + U(2)]


@_inlined
def _fraction(index, old, new):
    """Map voxel `index` of an axis of `new` voxels to one of `old` voxels (align corners): lower voxel and fraction."""
    position = F(index) * (F(old - 1) / F(max(new - 1, 1)))
    lower = min(int(position), old - 1)
    return lower, position - F(lower)


@_inlined
def _coarse_row(flow, i, j, size_i, size_j, scale, row):
    """Interpolate a row of a coarse flow along the first two axes at (i, j) of the fine grid, and multiply by `scale`.

    The last voxel is repeated and one more element is set, because `between_3` reads that far.
    """
    i0, u = _fraction(i, flow.shape[0], size_i)
    j0, v = _fraction(j, flow.shape[1], size_j)
    i1, j1 = min(i0 + 1, flow.shape[0] - 1), min(j0 + 1, flow.shape[1] - 1)
    size = 3 * flow.shape[2]
    a, b = flow[i0, j0].reshape(size), flow[i0, j1].reshape(size)
    c, d = flow[i1, j0].reshape(size), flow[i1, j1].reshape(size)
    for n in range(size):
        near, far = a[n] + v * (b[n] - a[n]), c[n] + v * (d[n] - c[n])
        row[n] = scale * (near + u * (far - near))
    for n in range(size, size + 4):
        row[n] = row[n - 3]


@_inlined
def _fine_row(flow, i, j, size_i, size_j, size_k, coarse, row):
    """Interpolate row (i, j) of a flow on a grid a whole factor finer, times that factor; row has 3 K + 1 elements."""
    _coarse_row(flow, i, j, size_i, size_j, F(size_k // flow.shape[2]), coarse)
    for k in range(size_k):
        lower, w = _fraction(k, flow.shape[2], size_k)
        between_3(coarse, U(3 * lower), w, row, U(3 * k))


@in_slices(over="out")
def upsample(begin, end, flow, out):
    """Interpolate a flow (i, j, k, 3) on the finer grid of `out` (s i, s j, s k, 3), with values multiplied by s."""
    size_i, size_j, size_k, _ = out.shape
    for i in range(begin, end):
        coarse, row = np.empty(3 * flow.shape[2] + 4, np.float32), np.empty(3 * size_k + 1, np.float32)
        for j in range(size_j):
            _fine_row(flow, i, j, size_i, size_j, size_k, coarse, row)
            line = out[i, j].reshape(3 * size_k)
            for n in range(3 * size_k):
                line[n] = row[n]


@_inlined
def _flow_row(flow, i, j, size_i, size_j, size_k, coarse, fine):
    """Return row (i, j) of a flow at image size, flat: a view, or interpolated into `fine` from a coarser flow."""
    if flow.shape[2] == size_k:
        return flow[i, j].reshape(3 * size_k)
    _fine_row(flow, i, j, size_i, size_j, size_k, coarse, fine)
    return fine


@_inlined
def _row_memory(flow, size_k):
    """Allocate the buffers in which a slice computes rows of the flow at image size and locates their targets."""
    coarse, fine = np.empty(3 * flow.shape[2] + 4, np.float32), np.empty(3 * size_k + 1, np.float32)
    return coarse, fine, np.empty(size_k, np.int64), np.empty((3, size_k), np.float32)


@_apart
def _warp_row(image, row, i, j, first_voxels, fractions, values):
    """Warp one row of a one-channel image into values (K,)."""
    _, size_j, size_k, _ = image.shape
    step_i, step_j = U(size_j * size_k), U(size_k)
    locate(row, i, j, image.shape[:3], first_voxels, fractions)
    for k in range(size_k):
        if first_voxels[k] >= 0:
            u, v, w = fractions[0, k], fractions[1, k], fractions[2, k]
            values[k] = sample_1(image, U(first_voxels[k]), step_i, step_j, u, v, w)
        else:
            values[k] = _outside(image, row, i, j, k, 0)


@_summing
def _sums(values, fixed):
    """Return the sums of m, m^2 and m f over a row, m the warped and f the fixed image."""
    sum_m, sum_mm, sum_mf = 0.0, 0.0, 0.0
    for k in range(len(values)):
        m = np.float64(values[k])
        sum_m += m
        sum_mm += m * m
        sum_mf += m * np.float64(fixed[k])
    return sum_m, sum_mm, sum_mf


@in_slices(over="out")
def warp_image(begin, end, image, flow, out):
    """Compute ``out(x) = image(x + s flow(x / s))``; image, out (I, J, K, 1), flow (I / s, J / s, K / s, 3)."""
    size_i, size_j, size_k, _ = image.shape
    for i in range(begin, end):
        coarse, fine, first_voxels, fractions = _row_memory(flow, size_k)
        for j in range(size_j):
            row = _flow_row(flow, i, j, size_i, size_j, size_k, coarse, fine)
            _warp_row(image, row, i, j, first_voxels, fractions, out[i, j].reshape(size_k))


@in_slices(over="partial")
def similarity_sums(begin, end, fixed, moving, flow, partial):
    """Sum m, m^2 and m f over the image, upsampling and warping on the fly without any array at image size.

    m is the warped moving image and f the fixed one. fixed, moving (I, J, K, 1); flow (I / s, J / s, K / s, 3); partial
    (I, 3) float64, written, one row per slice.
    """
    size_i, size_j, size_k, _ = fixed.shape
    for i in range(begin, end):
        coarse, fine, first_voxels, fractions = _row_memory(flow, size_k)
        values = np.empty(size_k, np.float32)
        sum_m, sum_mm, sum_mf = 0.0, 0.0, 0.0
        for j in range(size_j):
            row = _flow_row(flow, i, j, size_i, size_j, size_k, coarse, fine)
            _warp_row(moving, row, i, j, first_voxels, fractions, values)
            m, mm, mf = _sums(values, fixed[i, j].reshape(size_k))
            sum_m, sum_mm, sum_mf = sum_m + m, sum_mm + mm, sum_mf + mf
        partial[i, 0], partial[i, 1], partial[i, 2] = sum_m, sum_mm, sum_mf


@_inlined
def _neighbours(index, size):
    """Return the previous and the next voxel along an axis, or the voxel itself at the border, and their distance."""
    low, high = max(index - 1, 0), min(index + 1, size - 1)
    return low, high, np.float64(max(high - low, 1))


@_inlined
def _difference(low, high, n, m, distance):
    """Return the difference quotients of three components between low[n:n + 3] and high[m:m + 3] of flat rows."""
    return (
        (high[m] - low[n]) / distance,
        (high[m + U(1)] - low[n + U(1)]) / distance,
        (high[m + U(2)] - low[n + U(2)]) / distance,
    )


@in_slices(over="counts")
def folded_counts(begin, end, flow, counts):
    """Count voxels with a Jacobian determinant of x + flow(x) <= 0 per slice; flow (I, J, K, 3), counts (I,)."""
    size_i, size_j, size_k, _ = flow.shape
    for i in range(begin, end):
        i0, i1, di = _neighbours(i, size_i)
        folded = 0
        for j in range(size_j):
            j0, j1, dj = _neighbours(j, size_j)
            row = flow[i, j].reshape(3 * size_k)
            below_i, above_i = flow[i0, j].reshape(3 * size_k), flow[i1, j].reshape(3 * size_k)
            below_j, above_j = flow[i, j0].reshape(3 * size_k), flow[i, j1].reshape(3 * size_k)
            for k in range(size_k):
                k0, k1, dk = _neighbours(k, size_k)
                n = U(3 * k)
                # Columns of the Jacobian, one per axis, with differences as in `numpy.gradient`.
                a, d, g = _difference(below_i, above_i, n, n, di)
                b, e, h = _difference(below_j, above_j, n, n, dj)
                c, f, m = _difference(row, row, U(3 * k0), U(3 * k1), dk)
                a, e, m = a + 1, e + 1, m + 1
                if a * (e * m - f * h) - b * (d * m - f * g) + c * (d * h - e * g) <= 0:
                    folded += 1
        counts[i] = folded
