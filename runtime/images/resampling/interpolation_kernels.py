"""Compiled loops of `runtime.images.resampling.interpolation`. Positions are in voxels of the image."""

import numpy as np
from numba import njit

from ...host.kernels import in_slices

BLOCK = 256  # positions in one slice of a kernel
COLUMNS = 256  # columns that are filtered side by side
POLE = np.float32(np.sqrt(3) - 2)  # of the recursive filter from samples to coefficients of a cubic B-spline
GAIN = np.float32(6)
TINY = np.float32(1e-25)  # added throughout, as the filter's decay into a black background would be slow denormals
REACH = 16  # samples after which the power of POLE is negligible
U = np.uintp  # unsigned indices avoid the test for negative ones

_inlined = njit(forceinline=True, error_model="numpy")


def _groups(lines):
    """Return the number of groups of columns of (A, N, B)."""
    return lines.shape[0] * -(-lines.shape[2] // COLUMNS)


@in_slices(over=_groups)
def spline_coefficients(begin, end, lines):
    """Turn samples along the middle axis of (A, N, B) into coefficients of a cubic B-spline, in place; N above 1.

    The signal is extended by mirroring about its first and last sample. 1. initial value of the causal recursion;
    2. causal recursion; 3. anticausal recursion (Unser, Aldroubi and Eden 1993).
    """
    _, size, width = lines.shape
    across = -(-width // COLUMNS)
    for group in range(begin, end):
        left = group % across * COLUMNS
        block = lines[group // across, :, left : min(left + COLUMNS, width)]
        first = np.zeros(block.shape[1], np.float32)
        for n in range(min(size, REACH)):
            weight = POLE**n
            if 0 < n < size - 1:
                weight += POLE ** (2 * size - 2 - n)
            for b in range(len(first)):
                first[b] += weight * block[n, b]
        share = GAIN / (np.float32(1) - POLE ** (2 * size - 2))
        for b in range(len(first)):
            block[0, b] = share * first[b]
        for n in range(1, size):
            for b in range(len(first)):
                block[n, b] = GAIN * block[n, b] + POLE * block[n - 1, b] + TINY
        scale = POLE / (POLE * POLE - np.float32(1))
        for b in range(len(first)):
            block[size - 1, b] = scale * (block[size - 1, b] + POLE * block[size - 2, b])
        for n in range(size - 2, -1, -1):
            for b in range(len(first)):
                block[n, b] = POLE * (block[n + 1, b] - block[n, b])


def _blocks(*arguments):
    """Return the number of blocks of a kernel's positions, one for each entry of its last argument."""
    return -(-len(arguments[-1]) // BLOCK)


@in_slices(over=_blocks)
def move_positions(begin, end, linear, vectors, first, positions):
    """Add ``linear vectors[:, first + n]`` to positions (N, 3) float64; vectors (3, M) float32."""
    for n in range(begin * BLOCK, min(end * BLOCK, len(positions))):
        x, y, z = vectors[0, first + n], vectors[1, first + n], vectors[2, first + n]
        for axis in range(3):
            positions[n, axis] += linear[axis, 0] * x + linear[axis, 1] * y + linear[axis, 2] * z


@_inlined
def _spline_weights(x, size, weights):
    """Write the weights of the four coefficients around x; return the first one's index and x's distance outside."""
    place = min(max(x, 0.0), size - 1.0)
    low = max(min(int(place), size - 2), 0)
    t = np.float32(place - low)
    s = np.float32(1) - t
    sixth = np.float32(1 / 6)
    weights[0], weights[3] = sixth * s * s * s, sixth * t * t * t
    weights[1] = np.float32(2 / 3) - t * t * (np.float32(1) - np.float32(0.5) * t)
    weights[2] = np.float32(2 / 3) - s * s * (np.float32(1) - np.float32(0.5) * s)
    return low, abs(x - place)


@in_slices(over=_blocks)
def sample_spline(begin, end, coefficients, positions, outside, result):
    """Sample a cubic B-spline at positions (N, 3); beyond the image it fades to `outside` over one voxel.

    `coefficients` are padded along each axis with one mirrored layer before the first and two after the last.
    """
    size_i, size_j, size_k = coefficients.shape[0] - 3, coefficients.shape[1] - 3, coefficients.shape[2] - 3
    along_i, along_j, along_k = np.empty(4, np.float32), np.empty(4, np.float32), np.empty(4, np.float32)
    for n in range(begin * BLOCK, min(end * BLOCK, len(positions))):
        x, y, z = positions[n, 0], positions[n, 1], positions[n, 2]
        if not (x > -1 and y > -1 and z > -1 and x < size_i and y < size_j and z < size_k):
            result[n] = outside
            continue
        a, beyond_i = _spline_weights(x, size_i, along_i)
        b, beyond_j = _spline_weights(y, size_j, along_j)
        c, beyond_k = _spline_weights(z, size_k, along_k)
        total = np.float32(0)
        for i in range(4):
            sheet = np.float32(0)
            for j in range(4):
                line = coefficients[U(a + i), U(b + j)]
                row = np.float32(0)
                for k in range(4):
                    row += along_k[k] * line[U(c + k)]
                sheet += along_j[j] * row
            total += along_i[i] * sheet
        inside = np.float32((1 - beyond_i) * (1 - beyond_j) * (1 - beyond_k))
        result[n] = total if inside == 1 else inside * total + (np.float32(1) - inside) * outside  # NaN if `outside` is


@_inlined
def _vote_weights(x, middle, sigma, weights):
    """Write the Gaussian weights of the voxels around `middle`."""
    radius = len(weights) // 2
    for n in range(len(weights)):
        distance = (middle + n - radius - x) / sigma
        weights[n] = np.exp(-0.5 * distance * distance)


@_inlined
def _agree(labels, i, j, k, ri, rj, rk):
    """Return whether all labels are equal in a box around a voxel; the box must lie within the image."""
    label = labels[i, j, k]
    for a in range(i - ri, i + ri + 1):
        for b in range(j - rj, j + rj + 1):
            line = labels[U(a), U(b)]
            for c in range(k - rk, k + rk + 1):
                if line[U(c)] != label:
                    return False
    return True


@njit(error_model="numpy")
def _elected(labels, i, j, k, weights_i, weights_j, weights_k, names, votes):
    """Return the label with most votes in the box around voxel (i, j, k), whose own label wins ties."""
    ri, rj, rk = len(weights_i) // 2, len(weights_j) // 2, len(weights_k) // 2
    names[0], votes[0], count, last = labels[i, j, k], 0.0, 1, 0
    for a in range(-ri, ri + 1):
        for b in range(-rj, rj + 1):
            weight = weights_i[a + ri] * weights_j[b + rj]
            for c in range(-rk, rk + 1):
                p, q, r = i + a, j + b, k + c
                if not (0 <= p < labels.shape[0] and 0 <= q < labels.shape[1] and 0 <= r < labels.shape[2]):
                    continue
                label = labels[p, q, r]
                if names[last] != label:
                    last = 0
                    while last < count and names[last] != label:
                        last += 1
                    if last == count:
                        names[last], votes[last] = label, 0.0
                        count += 1
                votes[last] += weight * weights_k[c + rk]
    best = 0
    for n in range(1, count):
        if votes[n] > votes[best]:
            best = n
    return names[best]


@in_slices(over=_blocks)
def vote(begin, end, labels, positions, sigma, radius, outside, result):
    """Find the label with the largest sum of Gaussian weights among the voxels around each place (N, 3).

    Positions that no voxel contains get `outside`.

    Args:
        sigma, radius: (3,) float64 and int64, voxels.
    """
    size_i, size_j, size_k = labels.shape
    ri, rj, rk = radius
    along_i, along_j, along_k = np.empty(2 * ri + 1), np.empty(2 * rj + 1), np.empty(2 * rk + 1)
    most = len(along_i) * len(along_j) * len(along_k)
    names, votes = np.empty(most, labels.dtype), np.empty(most)
    for n in range(begin * BLOCK, min(end * BLOCK, len(positions))):
        x, y, z = positions[n, 0], positions[n, 1], positions[n, 2]
        if not (x >= -0.5 and y >= -0.5 and z >= -0.5 and x < size_i - 0.5 and y < size_j - 0.5 and z < size_k - 0.5):
            result[n] = outside
            continue
        i, j, k = int(x + 0.5), int(y + 0.5), int(z + 0.5)
        deep = i >= ri and j >= rj and k >= rk and i < size_i - ri and j < size_j - rj and k < size_k - rk
        if deep and _agree(labels, i, j, k, ri, rj, rk):
            result[n] = labels[i, j, k]
            continue
        _vote_weights(x, i, sigma[0], along_i)
        _vote_weights(y, j, sigma[1], along_j)
        _vote_weights(z, k, sigma[2], along_k)
        result[n] = _elected(labels, i, j, k, along_i, along_j, along_k, names, votes)
