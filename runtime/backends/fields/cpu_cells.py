"""Trilinear interpolation inside one cell of a channels-last array, and its derivatives, in vector instructions.

All channels of a voxel are contiguous, so each of a cell's eight corners is one vector load. Compilers do not recognise
that in a loop over a few channels; these functions write it out as LLVM instructions, which are translated for every
processor. Indices are flat and unsigned, and nothing is checked: the caller must make sure, with `locate`, that all
eight corners lie inside the array.

`blend_*`, `slopes_*`, `near_*` and `far_*` take ``(array, start, step_i, step_j, step_k, u, v, w, other, at)``: the
cell's first corner is array[start], the steps are the strides along the axes, and u, v, w are the fractions along them.
The number in a name is the number of channels processed at once, from `start` in the array and from `at` in `other`.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

F = np.float32
FLOAT, LANE = ir.FloatType(), ir.IntType(32)
CONTRACT = ("contract",)  # allows fused a * b + c; NaN and infinities are preserved


class _Lanes:
    """A writer of instructions on vectors of `width` floats."""

    def __init__(self, builder: ir.IRBuilder, width: int) -> None:
        self.builder, self.width = builder, width
        self.type = ir.VectorType(FLOAT, width)

    def _at(self, data, index):
        return self.builder.bitcast(self.builder.gep(data, [index]), self.type.as_pointer())

    def load(self, data, index):
        value = self.builder.load(self._at(data, index))
        value.align = 4
        return value

    def store(self, value, data, index) -> None:
        self.builder.store(value, self._at(data, index)).align = 4

    def spread(self, number):
        """Return a vector with a number in every lane."""
        one = self.builder.insert_element(ir.Constant(self.type, ir.Undefined), number, LANE(0))
        return self.shuffled(one, [0] * self.width)

    def shuffled(self, vector, lanes: list[int]):
        mask = ir.Constant(ir.VectorType(LANE, self.width), lanes)
        return self.builder.shuffle_vector(vector, ir.Constant(self.type, ir.Undefined), mask)

    def numbers(self, vector) -> list:
        return [self.builder.extract_element(vector, LANE(lane)) for lane in range(self.width)]

    def minus(self, a, b):
        return self.builder.fsub(a, b, flags=CONTRACT)

    def plus(self, a, b):
        return self.builder.fadd(a, b, flags=CONTRACT)

    def times(self, a, b):
        return self.builder.fmul(a, b, flags=CONTRACT)

    def between(self, fraction, low, high):
        return self.plus(low, self.times(fraction, self.minus(high, low)))

    def total(self, vector):
        """Return the sum over the lanes, adding neighbours pairwise."""
        lanes = self.numbers(vector)
        while len(lanes) > 1:
            lanes = [self.plus(*lanes[n : n + 2]) if n + 1 < len(lanes) else lanes[n] for n in range(0, len(lanes), 2)]
        return lanes[0]


def _corners(builder, start, steps) -> dict[tuple[int, ...], Any]:
    """Return the flat index of each corner of the cell, by its position 0 or 1 along the axes."""
    corners: dict[tuple[int, ...], Any] = {(): start}
    for step in steps:
        corners = {(*corner, n): builder.add(at, step) if n else at for corner, at in corners.items() for n in (0, 1)}
    return corners


def _interpolated(lanes, data, corners, fractions):
    """Interpolate the values at the corners, along the last axis first."""
    values = {corner: lanes.load(data, index) for corner, index in corners.items()}
    for fraction in reversed(fractions):
        shorter = [corner[:-1] for corner in values if corner[-1] == 0]
        values = {corner: lanes.between(fraction, values[(*corner, 0)], values[(*corner, 1)]) for corner in shorter}
    return values[()]


def _data(context, builder, array_type, array):
    return context.make_array(array_type)(context, builder, array).data


def _cell_function(width: int, returns, write: Callable) -> Callable:
    """Return an intrinsic of the common arguments, emitted by `write(lanes, array, corners, fractions, other, at)`."""

    @intrinsic
    def function(typing, array, start, step_i, step_j, step_k, u, v, w, other, at):
        index, number = types.uintp, types.float32
        signature = returns(array, index, index, index, index, number, number, number, other, index)

        def generate(context, builder, signature, arguments):
            array, start, step_i, step_j, step_k, *fractions, other, at = arguments
            array = _data(context, builder, signature.args[0], array)
            other = _data(context, builder, signature.args[8], other)
            lanes = _Lanes(builder, width)
            corners = _corners(builder, start, (step_i, step_j, step_k))
            results = write(lanes, array, corners, [lanes.spread(fraction) for fraction in fractions], other, at)
            if results is None:
                return context.get_dummy_value()
            return context.make_tuple(builder, signature.return_type, results)

        return signature, generate

    return function


def _blend(lanes, image, corners, fractions, out, at) -> None:
    lanes.store(_interpolated(lanes, image, corners, fractions), out, at)


def _slopes(lanes, image, corners, fractions, gradient, at) -> list:
    u, v, w = fractions
    values = {corner: lanes.load(image, index) for corner, index in corners.items()}
    edge, along_k = {}, {}
    for a in (0, 1):
        for b in (0, 1):
            low, high = values[a, b, 0], values[a, b, 1]
            edge[a, b], along_k[a, b] = lanes.between(w, low, high), lanes.minus(high, low)
    face = [lanes.between(v, edge[a, 0], edge[a, 1]) for a in (0, 1)]
    slope_j = [lanes.minus(edge[a, 1], edge[a, 0]) for a in (0, 1)]
    slope_k = [lanes.between(v, along_k[a, 0], along_k[a, 1]) for a in (0, 1)]
    slopes = (lanes.minus(face[1], face[0]), lanes.between(u, *slope_j), lanes.between(u, *slope_k))
    weight = lanes.load(gradient, at)
    return [lanes.total(lanes.times(weight, slope)) for slope in slopes]


def _add_to(side: int) -> Callable:
    def add(lanes, out, corners, fractions, gradient, at) -> None:
        shares: dict[tuple[int, ...], Any] = {(): lanes.load(gradient, at)}
        for fraction in fractions:
            far = {(*corner, 1): lanes.times(fraction, share) for corner, share in shares.items()}
            near = {(*corner, 0): lanes.minus(share, far[(*corner, 1)]) for corner, share in shares.items()}
            shares = near | far
        for corner, index in corners.items():
            if corner[0] == side:
                lanes.store(lanes.plus(lanes.load(out, index), shares[corner]), out, index)

    return add


_THREE = types.UniTuple(types.float32, 3)
# other[at] = the array's interpolated value.
blend_1, blend_3, blend_8 = (_cell_function(width, types.void, _blend) for width in (1, 3, 8))
# -> derivatives of the interpolated value along the axes, times other[at], summed over the channels.
slopes_1, slopes_3, slopes_8 = (_cell_function(width, _THREE, _slopes) for width in (1, 3, 8))
# other[at], times each corner's weight, is added to the four corners at the near or at the far end of the first axis.
near_1, near_3, near_8 = (_cell_function(width, types.void, _add_to(0)) for width in (1, 3, 8))
far_1, far_3, far_8 = (_cell_function(width, types.void, _add_to(1)) for width in (1, 3, 8))


@intrinsic
def sample_1(typing, image, start, step_i, step_j, u, v, w):
    """Return the value in a cell of a one-channel array; neighbours along the last axis are read in one load."""
    index, number = types.uintp, types.float32

    def generate(context, builder, signature, arguments):
        image, start, step_i, step_j, u, v, w = arguments
        data, lanes = _data(context, builder, signature.args[0], image), _Lanes(builder, 2)
        corners = _corners(builder, start, (step_i, step_j))
        pair = _interpolated(lanes, data, corners, (lanes.spread(u), lanes.spread(v)))
        return lanes.between(w, *lanes.numbers(pair))

    return number(image, index, index, index, number, number, number), generate


@intrinsic
def sample_3(typing, flow, start, step_i, step_j, u, v, w):
    """Return the three values in a cell of a three-channel array.

    Two neighbours along the last axis are six numbers, read as the first four and the last four to stay inside them.
    """
    index, number = types.uintp, types.float32

    def generate(context, builder, signature, arguments):
        flow, start, step_i, step_j, *fractions = arguments
        data, lanes = _data(context, builder, signature.args[0], flow), _Lanes(builder, 4)
        u, v, w = (lanes.spread(fraction) for fraction in fractions)

        def half(offset):
            begin = builder.add(start, start.type(offset))
            return _interpolated(lanes, data, _corners(builder, begin, (step_i, step_j)), (u, v))

        value = lanes.between(w, half(0), lanes.shuffled(half(2), [1, 2, 3, 3]))
        return context.make_tuple(builder, signature.return_type, lanes.numbers(value)[:3])

    return _THREE(flow, index, index, index, number, number, number), generate


@intrinsic
def between_3(typing, row, start, w, out, at):
    """Write out[at:at + 3] from row[start:start + 3] and the next triple; reads and writes one element beyond each."""
    signature = types.void(row, types.uintp, types.float32, out, types.uintp)

    def generate(context, builder, signature, arguments):
        row, start, w, out, at = arguments
        data, lanes = _data(context, builder, signature.args[0], row), _Lanes(builder, 4)
        low, high = lanes.load(data, start), lanes.load(data, builder.add(start, start.type(3)))
        value = lanes.between(lanes.spread(w), low, high)
        lanes.store(value, _data(context, builder, signature.args[3], out), at)
        return context.get_dummy_value()

    return signature, generate


@njit(error_model="numpy")
def locate(row, i, j, sizes, first_voxels, fractions):
    """Compute the target cells of a row of voxels from their row of a flow (3 K numbers): first voxels and fractions.

    first_voxels (K,) int64, written: flat index of the cell's first voxel, or -1 if a corner lies outside the image
    or a coordinate is NaN. fractions (3, K), written: position within the cell along each axis. No voxels are read
    here, so that the loop compiles to vector instructions.
    """
    size_i, size_j, size_k = sizes
    last_i, last_j, last_k = F(size_i - 1), F(size_j - 1), F(size_k - 1)
    u, v, w = fractions[0], fractions[1], fractions[2]
    for k in range(len(first_voxels)):
        x, y, z = F(i) + row[3 * k], F(j) + row[3 * k + 1], F(k) + row[3 * k + 2]
        inside = (x >= 0) & (y >= 0) & (z >= 0) & (x < last_i) & (y < last_j) & (z < last_k)
        fi, fj, fk = np.floor(x), np.floor(y), np.floor(z)
        place = (np.int64(np.int32(fi)) * size_j + np.int64(np.int32(fj))) * size_k + np.int64(np.int32(fk))
        first_voxels[k] = place if inside else -1
        u[k], v[k], w[k] = x - fi, y - fj, z - fk


@njit(forceinline=True, error_model="numpy")
def target(row, i, j, k):
    """Return the target position of voxel (i, j, k) under a row of a flow."""
    return F(i) + row[3 * k], F(j) + row[3 * k + 1], F(k) + row[3 * k + 2]
