"""Field operations on the CPU, compiled by numba. Definitions: `runtime.geometry.flow` and `.similarity`.

Arrays are float32, planar (channels first) and contiguous. Work is split over the first axis; every slice writes its
own partial sums, which are added in a fixed order, so that results do not depend on the number of threads.
"""

import numpy as np
from numba import njit, prange

F = np.float32
U = np.uintp  # unsigned indices spare the test for negative ones

_compiled = njit(parallel=True, cache=True, error_model="numpy")
_inlined = njit(inline="always", error_model="numpy")

# Planes of one lncc block: independent of the number of threads, so that sums are too.
LNCC_BLOCK = 20


@_inlined
def _corner(image, i, j, k):
    """One voxel of an image (I, J, K), zero outside; signed indices."""
    if 0 <= i < image.shape[0] and 0 <= j < image.shape[1] and 0 <= k < image.shape[2]:
        return image[U(i), U(j), U(k)]
    return F(0)


@_inlined
def _sample(image, x, y, z):
    """Trilinear sample of an image (I, J, K) at voxel coordinates, zeros outside; NaN for one that is not finite."""
    size_i, size_j, size_k = image.shape
    if not (x > -1 and y > -1 and z > -1 and x < size_i and y < size_j and z < size_k):
        return F(0) * (x + y + z)
    fi, fj, fk = np.floor(x), np.floor(y), np.floor(z)
    u, v, w = x - fi, y - fj, z - fk
    i, j, k = int(fi), int(fj), int(fk)
    if i >= 0 and j >= 0 and k >= 0 and i < size_i - 1 and j < size_j - 1 and k < size_k - 1:
        a, b, c = U(i), U(j), U(k)
        p, q, r = a + U(1), b + U(1), c + U(1)
        v000, v001, v010, v011 = image[a, b, c], image[a, b, r], image[a, q, c], image[a, q, r]
        v100, v101, v110, v111 = image[p, b, c], image[p, b, r], image[p, q, c], image[p, q, r]
    else:
        v000, v001 = _corner(image, i, j, k), _corner(image, i, j, k + 1)
        v010, v011 = _corner(image, i, j + 1, k), _corner(image, i, j + 1, k + 1)
        v100, v101 = _corner(image, i + 1, j, k), _corner(image, i + 1, j, k + 1)
        v110, v111 = _corner(image, i + 1, j + 1, k), _corner(image, i + 1, j + 1, k + 1)
    v00, v01 = v000 + w * (v001 - v000), v010 + w * (v011 - v010)
    v10, v11 = v100 + w * (v101 - v100), v110 + w * (v111 - v110)
    v0, v1 = v00 + v * (v01 - v00), v10 + v * (v11 - v10)
    return v0 + u * (v1 - v0)


@_inlined
def _locate_row(flow, i, j, size_i, size_j, size_k, base, u, v, w):
    """For a row of voxels: flat index of the lower corner and fractions; -1 where a corner lies outside the image."""
    for k in range(size_k):
        x, y, z = F(i) + flow[0, i, j, k], F(j) + flow[1, i, j, k], F(k) + flow[2, i, j, k]
        if x >= 0 and y >= 0 and z >= 0 and x < size_i - 1 and y < size_j - 1 and z < size_k - 1:
            fi, fj, fk = np.floor(x), np.floor(y), np.floor(z)
            base[k] = (np.int64(fi) * size_j + np.int64(fj)) * size_k + np.int64(fk)
            u[k], v[k], w[k] = x - fi, y - fj, z - fk
        else:
            base[k] = -1


@_compiled
def warp(image, flow, out):
    """``out[c](x) = image[c](x + flow(x))``; image and out (C, I, J, K), flow (3, I, J, K).

    A row's places are worked out once for all channels; then channel by channel, so that gathers stay in one plane.
    """
    channels, size_i, size_j, size_k = image.shape
    step_i, step_j = U(size_j * size_k), U(size_k)
    for i in prange(size_i):
        base = np.empty(size_k, np.int64)
        u, v, w = np.empty(size_k, np.float32), np.empty(size_k, np.float32), np.empty(size_k, np.float32)
        for j in range(size_j):
            _locate_row(flow, i, j, size_i, size_j, size_k, base, u, v, w)
            for c in range(channels):
                plane = image[c].ravel()
                for k in range(size_k):
                    if base[k] >= 0:
                        n = U(base[k])
                        m = n + step_i
                        v00 = plane[n] + w[k] * (plane[n + U(1)] - plane[n])
                        v01 = plane[n + step_j] + w[k] * (plane[n + step_j + U(1)] - plane[n + step_j])
                        v10 = plane[m] + w[k] * (plane[m + U(1)] - plane[m])
                        v11 = plane[m + step_j] + w[k] * (plane[m + step_j + U(1)] - plane[m + step_j])
                        v0, v1 = v00 + v[k] * (v01 - v00), v10 + v[k] * (v11 - v10)
                        out[c, i, j, k] = v0 + u[k] * (v1 - v0)
                    else:
                        x, y, z = F(i) + flow[0, i, j, k], F(j) + flow[1, i, j, k], F(k) + flow[2, i, j, k]
                        out[c, i, j, k] = _sample(image[c], x, y, z)


@_compiled
def compose(flow, residual, out):
    """``out(x) = flow(x + residual(x)) + residual(x)``; all (3, I, J, K)."""
    _, size_i, size_j, size_k = residual.shape
    for i in prange(size_i):
        for j in range(size_j):
            for k in range(size_k):
                x, y, z = F(i) + residual[0, i, j, k], F(j) + residual[1, i, j, k], F(k) + residual[2, i, j, k]
                out[0, i, j, k] = _sample(flow[0], x, y, z) + residual[0, i, j, k]
                out[1, i, j, k] = _sample(flow[1], x, y, z) + residual[1, i, j, k]
                out[2, i, j, k] = _sample(flow[2], x, y, z) + residual[2, i, j, k]


@_inlined
def _cell(index, old, new):
    """Where voxel `index` of an axis of `new` voxels lies on one of `old` (align corners): two voxels, fraction."""
    position = F(index) * (F(old - 1) / F(max(new - 1, 1)))
    lower = min(int(position), old - 1)
    return U(lower), U(min(lower + 1, old - 1)), position - F(lower)


@_inlined
def _coarse_row(flow, i, j, size_i, size_j, row):
    """Rows (3, K) of a coarse flow, interpolated along the first two axes at voxel (i, j) of the fine grid."""
    i0, i1, u = _cell(i, flow.shape[1], size_i)
    j0, j1, v = _cell(j, flow.shape[2], size_j)
    for c in range(3):
        for k in range(flow.shape[3]):
            near = flow[c, i0, j0, k] + v * (flow[c, i0, j1, k] - flow[c, i0, j0, k])
            far = flow[c, i1, j0, k] + v * (flow[c, i1, j1, k] - flow[c, i1, j0, k])
            row[c, k] = near + u * (far - near)


@_inlined
def _moved(row, i, j, k, size_k, scale):
    """Where voxel (i, j, k) of the fine grid goes, from its rows (3, K) of the coarse flow."""
    k0, k1, w = _cell(k, row.shape[1], size_k)
    x = F(i) + scale * (row[0, k0] + w * (row[0, k1] - row[0, k0]))
    y = F(j) + scale * (row[1, k0] + w * (row[1, k1] - row[1, k0]))
    z = F(k) + scale * (row[2, k0] + w * (row[2, k1] - row[2, k0]))
    return x, y, z


@_compiled
def upsample(flow, out):
    """A flow (3, i, j, k) on the finer grid of `out` (3, s i, s j, s k), values multiplied by s."""
    _, size_i, size_j, size_k = out.shape
    scale = F(size_k // flow.shape[3])
    for i in prange(size_i):
        row = np.empty((3, flow.shape[3]), np.float32)
        for j in range(size_j):
            _coarse_row(flow, i, j, size_i, size_j, row)
            for k in range(size_k):
                k0, k1, w = _cell(k, flow.shape[3], size_k)
                for c in range(3):
                    out[c, i, j, k] = scale * (row[c, k0] + w * (row[c, k1] - row[c, k0]))


@_compiled
def warp_upsampled(image, flow, out):
    """``out(x) = image(x + s flow_s(x))`` with the flow upsampled on the fly; image and out (I, J, K), flow coarser."""
    size_i, size_j, size_k = image.shape
    scale = F(size_k // flow.shape[3])
    for i in prange(size_i):
        row = np.empty((3, flow.shape[3]), np.float32)
        for j in range(size_j):
            _coarse_row(flow, i, j, size_i, size_j, row)
            for k in range(size_k):
                x, y, z = _moved(row, i, j, k, size_k, scale)
                out[i, j, k] = _sample(image, x, y, z)


@_compiled
def similarity_sums(fixed, moving, flow, partial):
    """Sums of m, m^2, m f over the image in one pass: upsample, warp and sum, nothing materialised.

    fixed, moving (I, J, K); flow (3, i, j, k), coarser by a whole factor; partial (I, 3) float64, one row a slice.
    """
    size_i, size_j, size_k = fixed.shape
    scale = F(size_k // flow.shape[3])
    for i in prange(size_i):
        row = np.empty((3, flow.shape[3]), np.float32)
        sum_m, sum_mm, sum_mf = 0.0, 0.0, 0.0
        for j in range(size_j):
            _coarse_row(flow, i, j, size_i, size_j, row)
            for k in range(size_k):
                x, y, z = _moved(row, i, j, k, size_k, scale)
                m = np.float64(_sample(moving, x, y, z))
                sum_m += m
                sum_mm += m * m
                sum_mf += m * np.float64(fixed[i, j, k])
        partial[i, 0], partial[i, 1], partial[i, 2] = sum_m, sum_mm, sum_mf


@_inlined
def _box_plane(fixed, warped, i, radius, sums, column):
    """Window sums of f, w, f^2, w^2, f w within plane i, (5, J, K), by running sums; zeros outside the image."""
    size_j, size_k = fixed.shape[1:]
    for j in range(size_j):
        s0 = s1 = s2 = s3 = s4 = 0.0
        for k in range(-radius, size_k):
            if k + radius < size_k:
                f, m = np.float64(fixed[i, j, k + radius]), np.float64(warped[i, j, k + radius])
                s0, s1, s2, s3, s4 = s0 + f, s1 + m, s2 + f * f, s3 + m * m, s4 + f * m
            if k - radius - 1 >= 0:
                f, m = np.float64(fixed[i, j, k - radius - 1]), np.float64(warped[i, j, k - radius - 1])
                s0, s1, s2, s3, s4 = s0 - f, s1 - m, s2 - f * f, s3 - m * m, s4 - f * m
            if k >= 0:
                column[0, j, k], column[1, j, k], column[2, j, k] = s0, s1, s2
                column[3, j, k], column[4, j, k] = s3, s4
    for c in range(5):
        running = np.zeros(size_k)
        for j in range(-radius, size_j):
            for k in range(size_k):
                if j + radius < size_j:
                    running[k] += column[c, j + radius, k]
                if j - radius - 1 >= 0:
                    running[k] -= column[c, j - radius - 1, k]
                if j >= 0:
                    sums[c, j, k] = running[k]


@_compiled
def lncc_sums(fixed, warped, window, epsilon, partial):
    """Sum over voxels of the squared local correlation, one partial sum per block of LNCC_BLOCK planes."""
    size_i, size_j, size_k = fixed.shape
    radius, count = window // 2, float(window) ** 3
    for block in prange(partial.shape[0]):
        begin, end = block * LNCC_BLOCK, min((block + 1) * LNCC_BLOCK, size_i)
        ring = np.zeros((window, 5, size_j, size_k))
        column = np.empty((5, size_j, size_k))
        total = np.zeros((5, size_j, size_k))
        result = 0.0
        for i in range(begin - radius, end + radius):
            slot = ring[(i + window) % window]
            total -= slot
            if 0 <= i < size_i:
                _box_plane(fixed, warped, i, radius, slot, column)
            else:
                slot[:] = 0.0
            total += slot
            if begin <= i - radius < end:
                for j in range(size_j):
                    for k in range(size_k):
                        f, w = total[0, j, k], total[1, j, k]
                        var_f, var_w = total[2, j, k] - f * f / count, total[3, j, k] - w * w / count
                        cross = total[4, j, k] - f * w / count
                        result += cross * cross / (var_f * var_w + epsilon)
        partial[block] = result


@_inlined
def _neighbours(index, size):
    """Voxels before and after along an axis, themselves at the border, and their distance."""
    low, high = max(index - 1, 0), min(index + 1, size - 1)
    return low, high, np.float64(max(high - low, 1))


@_inlined
def _gradient(image, i, j, k, i0, i1, di, j0, j1, dj, k0, k1, dk):
    return (
        (image[i1, j, k] - image[i0, j, k]) / di,
        (image[i, j1, k] - image[i, j0, k]) / dj,
        (image[i, j, k1] - image[i, j, k0]) / dk,
    )


@_compiled
def folded_counts(flow, counts):
    """Voxels with a Jacobian determinant of x + flow(x) <= 0, one count a slice; flow (3, I, J, K), counts (I,)."""
    _, size_i, size_j, size_k = flow.shape
    for i in prange(size_i):
        i0, i1, di = _neighbours(i, size_i)
        folded = 0
        for j in range(size_j):
            j0, j1, dj = _neighbours(j, size_j)
            for k in range(size_k):
                k0, k1, dk = _neighbours(k, size_k)
                # Rows of the Jacobian: component, columns: axis; differences as in `numpy.gradient`.
                a, b, c = _gradient(flow[0], i, j, k, i0, i1, di, j0, j1, dj, k0, k1, dk)
                d, e, f = _gradient(flow[1], i, j, k, i0, i1, di, j0, j1, dj, k0, k1, dk)
                g, h, m = _gradient(flow[2], i, j, k, i0, i1, di, j0, j1, dj, k0, k1, dk)
                a, e, m = a + 1, e + 1, m + 1
                if a * (e * m - f * h) - b * (d * m - f * g) + c * (d * h - e * g) <= 0:
                    folded += 1
        counts[i] = folded
