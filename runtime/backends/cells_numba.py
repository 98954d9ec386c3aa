"""Trilinear interpolation inside one cell of a channels-last array, in vector instructions.

All channels of a voxel lie side by side, so each of a cell's eight corners is one vector load. Compilers do not find
that by themselves in a loop over a few channels; these functions spell it out as LLVM instructions, which every
processor gets translated to what it has. Indices are flat and unsigned, and nothing is checked: the caller makes sure
that all eight corners lie inside the array.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

FLOAT, INDEX = ir.FloatType(), ir.IntType(32)
CONTRACT = ("contract",)  # a * b + c as one instruction where there is one; NaN and infinities are kept


def _data(context, builder, array_type, array):
    return context.make_array(array_type)(context, builder, array).data


def _at(builder, data, index, width):
    pointer = builder.gep(data, [index])
    return pointer if width == 1 else builder.bitcast(pointer, ir.VectorType(FLOAT, width).as_pointer())


def _load(builder, data, index, width):
    value = builder.load(_at(builder, data, index, width))
    value.align = 4
    return value


def _store(builder, value, data, index, width):
    builder.store(value, _at(builder, data, index, width)).align = 4


def _shuffled(builder, vector, lanes):
    mask = ir.Constant(ir.VectorType(INDEX, len(lanes)), lanes)
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), mask)


def _spread(builder, value, width):
    """A number in every lane."""
    if width == 1:
        return value
    empty = ir.Constant(ir.VectorType(FLOAT, width), ir.Undefined)
    return _shuffled(builder, builder.insert_element(empty, value, INDEX(0)), [0] * width)


def _between(builder, fraction, low, high):
    step = builder.fsub(high, low, flags=CONTRACT)
    return builder.fadd(low, builder.fmul(fraction, step, flags=CONTRACT), flags=CONTRACT)


def _column(builder, load, start, step_i, step_j, u, v):
    """Interpolated along the first two axes; `load` reads what lies at an index."""
    far = builder.add(start, step_i)
    near = _between(builder, v, load(start), load(builder.add(start, step_j)))
    return _between(builder, u, near, _between(builder, v, load(far), load(builder.add(far, step_j))))


def _blend_into(width):
    """``blend(image, start, step_i, step_j, step_k, u, v, w, out, at)``: `width` channels from image[start] to out[at].

    Steps are the distances of neighbouring voxels along the axes, u, v, w the fractions along them.
    """

    @intrinsic
    def blend(typing, image, start, step_i, step_j, step_k, u, v, w, out, at):
        index, number = types.uintp, types.float32
        signature = types.void(image, index, index, index, index, number, number, number, out, index)

        def generate(context, builder, signature, arguments):
            image, start, step_i, step_j, step_k, u, v, w, out, at = arguments
            data = _data(context, builder, signature.args[0], image)
            u, v, w = (_spread(builder, fraction, width) for fraction in (u, v, w))

            def line(index):
                last = builder.add(index, step_k)
                return _between(builder, w, _load(builder, data, index, width), _load(builder, data, last, width))

            value = _column(builder, line, start, step_i, step_j, u, v)
            _store(builder, value, _data(context, builder, signature.args[8], out), at, width)
            return context.get_dummy_value()

        return signature, generate

    return blend


blend_1, blend_8 = _blend_into(1), _blend_into(8)


@intrinsic
def sample_1(typing, image, start, step_i, step_j, u, v, w):
    """The value in a cell of an array with one channel; its neighbours along the last axis are read in one load."""
    index, number = types.uintp, types.float32

    def generate(context, builder, signature, arguments):
        image, start, step_i, step_j, u, v, w = arguments
        data = _data(context, builder, signature.args[0], image)
        u, v = _spread(builder, u, 2), _spread(builder, v, 2)
        pair = _column(builder, lambda index: _load(builder, data, index, 2), start, step_i, step_j, u, v)
        low, high = (builder.extract_element(pair, INDEX(lane)) for lane in range(2))
        return _between(builder, w, low, high)

    return number(image, index, index, index, number, number, number), generate


@intrinsic
def sample_3(typing, flow, start, step_i, step_j, u, v, w):
    """The three values in a cell of an array with three channels.

    Two neighbours along the last axis are six numbers: loads of the first and of the last four stay inside them.
    """
    index, number = types.uintp, types.float32
    triple = types.UniTuple(number, 3)

    def generate(context, builder, signature, arguments):
        flow, start, step_i, step_j, u, v, w = arguments
        data = _data(context, builder, signature.args[0], flow)
        u, v, w = (_spread(builder, fraction, 4) for fraction in (u, v, w))

        def half(offset):
            begin = builder.add(start, start.type(offset))
            return _column(builder, lambda index: _load(builder, data, index, 4), begin, step_i, step_j, u, v)

        value = _between(builder, w, half(0), _shuffled(builder, half(2), [1, 2, 3, 3]))
        lanes = [builder.extract_element(value, INDEX(lane)) for lane in range(3)]
        return context.make_tuple(builder, signature.return_type, lanes)

    return triple(flow, index, index, index, number, number, number), generate


@intrinsic
def between_3(typing, row, start, w, out, at):
    """``out[at:at + 3]`` from the triples row[start:start + 3] and the next; reads and writes one number beyond."""
    signature = types.void(row, types.uintp, types.float32, out, types.uintp)

    def generate(context, builder, signature, arguments):
        row, start, w, out, at = arguments
        data = _data(context, builder, signature.args[0], row)
        low, high = _load(builder, data, start, 4), _load(builder, data, builder.add(start, start.type(3)), 4)
        value = _between(builder, _spread(builder, w, 4), low, high)
        _store(builder, value, _data(context, builder, signature.args[3], out), at, 4)
        return context.get_dummy_value()

    return signature, generate
