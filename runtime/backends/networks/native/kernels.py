"""Chains of 3x3x3 convolutions in one sweep over the volume, with fewer products and without the background.

*Sweep.* At step s (`advance`) layer l computes plane s - 2 (l - 1): all layers work at once, each from the few planes
that the previous layer has just written. No array between the layers is as large as a volume.

*Fewer products.* Rows are computed in pairs by Winograd's F(2, 3) (Lavin and Gray, CVPR 2016) along the second axis:
from the four rows d0..d3 around a pair, d0 - d2, d1 + d2, d2 - d1 and d1 - d3 are convolved along the other two axes,
with weights combined accordingly, giving m0..m3; the pair is m0 + m1 + m2 and m1 - m2 - m3. Four products replace six.

*Activity.* Skull-stripped images are zero around the head, and features of zeros are the same everywhere. A voxel whose
input differs from that background is active; the output of layer l can differ from its output for pure background only
within l voxels of an active voxel. Everything else is copied from a small volume computed from pure background,
including its borders. Masks hold one bit per voxel, a byte for each block of eight in a row.
"""

import numpy as np
from numba import njit

from ....host.kernels import in_slices
from .llvm import BYTE, EIGHT, ROWS, VOXELS, block_kernel, winograd_rows

U = np.uintp  # unsigned indices avoid the check for negative ones
PRODUCTS = 4  # products of Winograd's F(2, 3) per pair of rows
LAG = 2  # planes by which a layer lags behind the previous one
# (channels in, channels out) of the blocks that are compiled.
KINDS = ((16, 16), (16, 8), (8, 4), (32, 32), (32, 16), (16, 4), (64, 32), (1, 8), (8, 16), (16, 32))
# Columns of a chain's table, which has one row for the source and one for each layer.
KIND, CHANNELS, WEIGHTS, BIAS, RING, QUIET = range(6)
COLUMNS = 6
_any_block = block_kernel(KINDS)

_apart = njit(error_model="numpy")
_inlined = njit(forceinline=True, error_model="numpy")


@_apart
def _block(kind, rows, offset, weights, out):
    _any_block(kind, rows, offset, weights, out)


@_inlined
def border_index(index, size, like):
    """Map an index to an axis of `like` voxels: at the same distance from the nearer border, or to the middle."""
    middle = like // 2
    if index < middle:
        return index
    return max(middle, like - (size - index))


@in_slices(over="source")
def mark(begin, end, source, background, active):
    """Mark in `active` (I, J, K/8) bytes which voxels of `source` (I, J, K, C) differ from background (n, n, n, C)."""
    size_i, size_j, size_k, channels = source.shape
    like = background.shape[0]
    for i in range(begin, end):
        for j in range(size_j):
            near = background[border_index(i, size_i, like), border_index(j, size_j, like)]
            for b in range(active.shape[2]):
                byte = 0
                for v in range(min(VOXELS, size_k - b * VOXELS)):
                    k = b * VOXELS + v
                    here = border_index(k, size_k, like)
                    differs = False
                    for c in range(channels):
                        differs |= source[i, j, k, c] != near[here, c]
                    if differs:
                        byte |= 1 << v
                active[i, j, b] = byte


@in_slices(over="before")
def spread(begin, end, before, after):
    """Dilate a mask (I, J, K/8) by one voxel in every direction."""
    size_i, size_j, size_b = before.shape
    for i in range(begin, end):
        for j in range(size_j):
            for b in range(size_b):
                here, below, above = 0, 0, 0
                for a in range(max(i - 1, 0), min(i + 2, size_i)):
                    for c in range(max(j - 1, 0), min(j + 2, size_j)):
                        here |= before[a, c, b]
                        if b > 0:
                            below |= before[a, c, b - 1]
                        if b + 1 < size_b:
                            above |= before[a, c, b + 1]
                # Within a byte the neighbours along k are the adjacent bits; across bytes, the outermost ones.
                after[i, j, b] = (here | (here << 1) | (here >> 1) | (below >> 7) | ((above & 1) << 7)) & 255


@_inlined
def _pair_active(active, i, p, b):
    """Return whether block b of either row of pair p is active; active (I, J, K/8)."""
    second = min(2 * p + 1, active.shape[1] - 1)
    return (active[i, 2 * p, b] | active[i, second, b]) != 0


@_inlined
def _needed(active, i, p, b):
    """Return whether the next layer, computed where `active` (I, J, K/8) is set, reads block b of row pair p."""
    size_i, size_j, size_b = active.shape
    found = 0
    for a in range(max(i - 1, 0), min(i + 2, size_i)):
        for c in range(max(2 * p - 2, 0), min(2 * p + 4, size_j)):
            for d in range(max(b - 1, 0), min(b + 2, size_b)):
                found |= active[a, c, d]
    return found != 0


@_inlined
def _row(before, planes, i, j, size_i, size_j, zeros):
    """Return row (i, j) of a volume or ring (P, J, K * C), zeros outside the image."""
    if 0 <= i < size_i and 0 <= j < size_j:
        return before[i % planes, j]
    return zeros


@_apart
def _transform(before, planes, size_i, size_j, i, p, begin, end, zeros, moved, length, first):
    """Combine the rows around pair p in three planes for the four products, into `moved` (3, 4, length)."""
    vectors = (end - begin) // EIGHT
    for a in range(ROWS):
        d0 = _row(before, planes, i + a - 1, 2 * p - 1, size_i, size_j, zeros)[begin:end]
        d1 = _row(before, planes, i + a - 1, 2 * p, size_i, size_j, zeros)[begin:end]
        d2 = _row(before, planes, i + a - 1, 2 * p + 1, size_i, size_j, zeros)[begin:end]
        d3 = _row(before, planes, i + a - 1, 2 * p + 2, size_i, size_j, zeros)[begin:end]
        at = PRODUCTS * a * length + first + begin
        rows = d0.ctypes.data, d1.ctypes.data, d2.ctypes.data, d3.ctypes.data
        winograd_rows(*rows, moved.ctypes.data + at * BYTE, length * BYTE, vectors)
        for n in range(vectors * EIGHT, end - begin):
            moved[at + n] = d0[n] - d2[n]
            moved[at + n + length] = d1[n] + d2[n]
            moved[at + n + 2 * length] = d2[n] - d1[n]
            moved[at + n + 3 * length] = d1[n] - d3[n]


@_apart
def _combine(products, bias, slope, pair, at, length):
    """Compute a block's pair of rows from its four products (4, VOXELS * C), with bias and LeakyReLU.

    pair: flat (2, length), written from index `at` of each row.
    """
    size = U(bias.size)
    for n in range(size):
        value = bias[n] + products[n] + products[size + n] + products[U(2) * size + n]
        pair[U(at) + n] = value if value > 0 else slope * value
    for n in range(size):
        value = bias[n] + products[size + n] - products[U(2) * size + n] - products[U(3) * size + n]
        pair[U(at) + U(length) + n] = value if value > 0 else slope * value


@_apart
def _copy_quiet(quiet, i, j, shape, b, out, at):
    """Copy block b of a row, which begins at out[at], from the matching voxels of the background (n, n, n, C)."""
    size_i, size_j, size_k = shape
    like = quiet.shape[0]
    near = quiet[border_index(i, size_i, like), border_index(j, size_j, like)]
    for k in range(b * VOXELS, min((b + 1) * VOXELS, size_k)):
        here = border_index(k, size_k, like)
        for c in range(quiet.shape[3]):
            out[at + k * quiet.shape[3] + c] = near[here, c]


@_apart
def _layer_pair(
    before, planes, i, p, shape, active, following, kind, weights, bias, slope, quiet, zeros, moved, products, pair
):
    """Compute a layer's pair of rows where it is active; copy background where the next layer or the output needs it.

    before: the layer's input (P, J, K * C); active: its own mask; following: the next layer's mask, empty for the last;
    weights: address; bias (VOXELS * C'); quiet (n, n, n, C'): output for pure background; moved, products: scratch;
    pair: both rows, flat, written.
    """
    size_i, size_j, size_k = shape
    blocks, channels_out = active.shape[2], quiet.shape[3]
    channels = before.shape[2] // size_k
    length, length_out = (blocks * VOXELS + 2) * channels, blocks * VOXELS * channels_out
    for n in range(ROWS * PRODUCTS):
        moved[n * length : n * length + channels] = 0
        moved[n * length + (size_k + 1) * channels : (n + 1) * length] = 0
    rows = np.empty(ROWS, np.int64)
    rows_at, moved_at, products_at = rows.ctypes.data, moved.ctypes.data, products.ctypes.data
    step, step_out = VOXELS * channels, VOXELS * channels_out
    done = 0  # number of blocks, from the left, whose rows are transformed
    for b in range(blocks):
        if _pair_active(active, i, p, b):
            if done < min(b + 2, blocks):  # transform up to the end of this run of active blocks, plus one neighbour
                begin, until = max(done, b - 1), b + 1
                while until < blocks and _pair_active(active, i, p, until):
                    until += 1
                until = min(until + 1, blocks)
                end = min(until * step, size_k * channels)
                _transform(
                    before, planes, size_i, size_j, i, p, begin * step, end, zeros, moved, length, channels
                )  # fmt: skip
                done = until
            for t in range(PRODUCTS):
                for a in range(ROWS):
                    rows[a] = moved_at + (PRODUCTS * a + t) * length * BYTE
                taps = weights + t * ROWS * ROWS * channels * channels_out * BYTE
                _block(kind, rows_at, b * step * BYTE, taps, products_at + t * step_out * BYTE)
            _combine(products, bias, slope, pair, b * step_out, length_out)
        elif following.size == 0 or _needed(following, i, p, b):
            _copy_quiet(quiet, i, 2 * p, shape, b, pair, 0)
            _copy_quiet(quiet, i, min(2 * p + 1, size_j - 1), shape, b, pair, length_out)


def steps(planes: int, layers: int) -> int:
    """Return the number of calls of `advance` for a volume with this number of planes."""
    return planes + LAG * (layers - 1)


@in_slices(over=lambda step, source, active, table, *_: (table.shape[0] - 1) * ((active.shape[2] + 1) // 2))
def advance(begin, end, step, source, active, table, slopes, weights, quiet, memory, like, planes, out):
    """Run one step of a sweep: each layer's next plane, with pairs of rows as the tasks shared among threads.

    Args:
        step: step number, from 0 to `steps` (exclusive), in order.
        source: (I, J, K * C), contiguous.
        active: (L + 1, I, J, ceil(K / 8)) bytes; [0] where the source is not background, [l] the same dilated l times.
        table: (L + 1, COLUMNS) int64: kind, channels, and the layer's offsets in `weights`, `memory` and `quiet`.
        slopes: (L + 1,) float32, slopes of the LeakyReLUs; 1 for linear layers.
        weights: flat float32, by layer: weights (4, 3, 3, C, C') and bias (VOXELS * C').
        quiet: flat float32, by layer: output (n, n, n, C') for pure background; n is `like`.
        memory: flat float32, by layer: a ring (planes, J, K * C').
        planes: number of planes of each ring, at least 4; with I planes a ring keeps the whole layer.
        out: (I, J, K, C'), C' at most the channels of the last layer.
    """
    size_i, size_j, size_k = out.shape[:3]
    shape = size_i, size_j, size_k
    blocks, last, pairs = active.shape[3], table.shape[0] - 1, (size_j + 1) // 2
    widest = table[:, CHANNELS].max()
    nothing = active[0, :0]
    moved = np.empty(ROWS * PRODUCTS * (blocks * VOXELS + 2) * widest, np.float32)
    zeros = np.zeros(size_k * widest, np.float32)
    products = np.empty(PRODUCTS * VOXELS * widest, np.float32)
    pair = np.empty(2 * blocks * VOXELS * widest, np.float32)
    for task in range(begin, end):
        layer, p = 1 + task // pairs, task % pairs
        i = step - LAG * (layer - 1)
        if i < 0 or i >= size_i:
            continue
        channels, channels_in = table[layer, CHANNELS], table[layer - 1, CHANNELS]
        first = table[layer, QUIET]
        around = quiet[first : first + like**3 * channels].reshape(like, like, like, channels)
        first = table[layer, BIAS]
        bias = weights[first : first + VOXELS * channels]
        taps = weights.ctypes.data + table[layer, WEIGHTS] * BYTE
        before, kept = source, size_i
        if layer > 1:
            first = table[layer - 1, RING]
            size = planes * size_j * size_k * channels_in
            before, kept = memory[first : first + size].reshape(planes, size_j, size_k * channels_in), planes
        following = active[layer + 1] if layer < last else nothing
        _layer_pair(
            before, kept, i, p, shape, active[layer], following, table[layer, KIND], taps, bias, slopes[layer],
            around, zeros, moved, products, pair,
        )  # fmt: skip
        for n in range(min(2, size_j - 2 * p)):
            row = pair[n * blocks * VOXELS * channels :]
            if layer < last:
                first = table[layer, RING] + ((i % planes) * size_j + 2 * p + n) * size_k * channels
                memory[first : first + size_k * channels] = row[: size_k * channels]
            else:
                for k in range(size_k):
                    for c in range(out.shape[3]):
                        out[i, 2 * p + n, k, c] = row[k * channels + c]


@in_slices(over="out")
def pool(begin, end, features, out):
    """Compute the means of 2x2x2 voxels; features (2I, 2J, 2K, C), out (I, J, K, C)."""
    _, size_j, size_k, channels = out.shape
    for i in range(begin, end):
        for j in range(size_j):
            for k in range(size_k):
                for c in range(channels):
                    total = np.float32(0)
                    for n in range(8):
                        total += features[2 * i + (n >> 2), 2 * j + ((n >> 1) & 1), 2 * k + (n & 1), c]
                    out[i, j, k, c] = total * np.float32(0.125)


@in_slices(over="rows")
def repeat_block(begin, end, rows, kind, weights, times):
    """Repeat one block of convolution in every worker, to measure the speed of the inner loop without memory traffic.

    rows: (workers, at least 4 (VOXELS + 2) C): memory that each worker reads and, in the last quarter, writes.
    """
    for worker in range(begin, end):
        pointers = np.empty(ROWS, np.int64)
        quarter = rows.shape[1] // 4
        first = rows.ctypes.data + worker * rows.shape[1] * BYTE
        for a in range(ROWS):
            pointers[a] = first + a * quarter * BYTE
        for _ in range(times):
            _block(kind, pointers.ctypes.data, 0, weights.ctypes.data, first + ROWS * quarter * BYTE)
