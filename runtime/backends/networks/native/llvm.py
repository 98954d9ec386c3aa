"""The inner loop of a convolution, written in LLVM's vector instructions and compiled by numba for this processor.

    out[v, o] = sum over rows r, steps s, channels c of  weights[r, s, c, o] * row_r[v + s, c]

for VOXELS adjacent voxels v of a row and all output channels o; r runs over three rows, s over the voxels before, at
and after v. A vector holds output channels of one voxel; the sums of all voxels stay in registers, and each weight
vector is loaded once for all of them.
"""

from collections.abc import Sequence

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ....host.machine import processor_features

VOXELS = 8  # voxels per block, one byte of an activity mask
ROWS, STEPS = 3, 3
EIGHT, BYTE = 8, 4  # elements of a vector that suits any processor; bytes per element
WIDE = "avx512f" in processor_features()

_FLOAT, _INT = ir.FloatType(), ir.IntType(64)
_ZERO = ir.Constant(ir.IntType(32), 0)


def block_kernel(kinds: Sequence[tuple[int, int]]):
    """Return a numba intrinsic ``block(kind, rows, offset, weights, out)`` for kinds (channels_in, channels_out).

    Its arguments are int64. kind: index into `kinds`. rows, weights, out: addresses of ROWS row addresses, of weights
    (ROWS, STEPS, channels_in, channels_out), and of the output (VOXELS, channels_out), which is overwritten. offset:
    bytes from each row's address to the neighbour before the first voxel. Channels of a voxel are contiguous.
    """

    @intrinsic
    def block(typing_context, kind, rows, offset, weights, out):
        signature = types.void(*[types.int64] * 5)

        def generate(context, builder, signature, arguments):
            kind, *operands = arguments
            end = builder.append_basic_block("kind_end")
            switch = builder.switch(kind, end)
            for number, channels in enumerate(kinds):
                case = builder.append_basic_block(f"kind{number}")
                switch.add_case(_INT(number), case)
                builder.position_at_end(case)
                _write_block(builder, *channels, *operands)
                builder.branch(end)
            builder.position_at_end(end)
            return context.get_dummy_value()

        return signature, generate

    return block


def _write_block(builder: ir.IRBuilder, channels_in: int, channels_out: int, rows, offset, weights, out) -> None:
    """Emit a block for these channels, with as many voxels at once as there are registers for their sums."""
    at_once = VOXELS if WIDE else min(VOXELS, 64 // channels_out)  # the sums take half of AVX2's sixteen registers
    for first in range(0, VOXELS, at_once):
        writer = _Block(builder, channels_in, channels_out, min(channels_out, 16), at_once)
        start = builder.add(offset, _INT(BYTE * first * channels_in))
        writer.write(rows, start, weights, builder.add(out, _INT(BYTE * first * channels_out)))


@intrinsic
def winograd_rows(typing_context, d0, d1, d2, d3, out, stride, count):
    """Compute ``d0 - d2, d1 + d2, d2 - d1, d1 - d3`` for `count` vectors of EIGHT elements, `stride` bytes apart.

    d0..d3, out: addresses (int64). The four results begin at out, out + stride, and so on.
    """
    signature = types.void(*[types.int64] * 7)

    def generate(context, builder, signature, arguments):
        *sources, out, stride, count = arguments
        vector = ir.VectorType(_FLOAT, EIGHT)

        def place(address, index):
            pointer = builder.inttoptr(address, vector.as_pointer())
            return builder.gep(pointer, [index])

        with cgutils.for_range(builder, count) as loop:
            loaded = [builder.load(place(source, loop.index)) for source in sources]
            for value in loaded:
                value.align = BYTE
            a, b, c, d = loaded
            results = builder.fsub(a, c), builder.fadd(b, c), builder.fsub(c, b), builder.fsub(b, d)
            for n, result in enumerate(results):
                row = builder.add(out, builder.mul(stride, _INT(n)))
                builder.store(result, place(row, loop.index)).align = BYTE
        return context.get_dummy_value()

    return signature, generate


class _Block:
    """A writer of the instructions of one block: two nested loops (rows, channels) that accumulate, then a store."""

    def __init__(self, builder: ir.IRBuilder, channels_in: int, channels_out: int, lanes: int, voxels: int) -> None:
        self.builder, self.channels_in, self.channels_out = builder, channels_in, channels_out
        self.voxels, self.vectors = range(voxels), range(0, channels_out, lanes)
        self.vector = ir.VectorType(_FLOAT, lanes)
        self.first_lane = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
        shape = ir.FunctionType(self.vector, [self.vector] * 3)
        self.fma = cgutils.get_or_insert_function(builder.module, shape, f"llvm.fma.v{lanes}f32")

    def write(self, rows, offset, weights, out) -> None:
        builder = self.builder
        rows = builder.inttoptr(rows, _INT.as_pointer())
        weights, out = (builder.inttoptr(place, _FLOAT.as_pointer()) for place in (weights, out))
        zero = ir.Constant(self.vector, [0.0] * self.vector.count)

        def add_row(row, sums):
            place = builder.add(builder.load(builder.gep(rows, [row])), offset)
            voxels = builder.inttoptr(place, _FLOAT.as_pointer())
            taps = builder.gep(weights, [builder.mul(row, _INT(STEPS * self.channels_in * self.channels_out))])
            return self._loop("channel", self.channels_in, sums, lambda c, sums: self._add(voxels, taps, c, sums))

        sums = self._loop("row", ROWS, [zero] * (len(self.voxels) * len(self.vectors)), add_row)
        for n, total in enumerate(sums):
            voxel, vector = divmod(n, len(self.vectors))
            self._store(total, out, voxel * self.channels_out + self.vectors[vector])

    def _add(self, voxels, taps, channel, sums):
        """Add one input channel's contribution: for each step, the weight vectors times the channel of every voxel."""
        builder, sums = self.builder, list(sums)
        source = builder.gep(voxels, [channel])
        taps = builder.gep(taps, [builder.mul(channel, _INT(self.channels_out))])
        for step in range(STEPS):
            loaded = [self._load(taps, step * self.channels_in * self.channels_out + o) for o in self.vectors]
            for voxel in self.voxels:
                value = builder.load(builder.gep(source, [_INT((voxel + step) * self.channels_in)]))
                value = self._spread(value)
                for n, weight in enumerate(loaded):
                    place = voxel * len(self.vectors) + n
                    sums[place] = builder.call(self.fma, [value, weight, sums[place]])
        return sums

    def _loop(self, name: str, count: int, values, body):
        """Emit ``for n in range(count): values = body(n, values)`` with the values kept in registers."""
        builder = self.builder
        before, loop, after = builder.block, *(builder.append_basic_block(f"{name}{part}") for part in ("", "_end"))
        builder.branch(loop)
        builder.position_at_end(loop)
        index, carried = builder.phi(_INT), [builder.phi(self.vector) for _ in values]
        index.add_incoming(_INT(0), before)
        for phi, value in zip(carried, values, strict=True):
            phi.add_incoming(value, before)
        results = body(index, carried)
        following = builder.add(index, _INT(1))
        index.add_incoming(following, builder.block)
        for phi, value in zip(carried, results, strict=True):
            phi.add_incoming(value, builder.block)
        builder.cbranch(builder.icmp_signed("<", following, _INT(count)), loop, after)
        builder.position_at_end(after)
        return results

    def _spread(self, value):
        """Return a vector with a number in every lane."""
        undefined = ir.Constant(self.vector, ir.Undefined)
        single = self.builder.insert_element(undefined, value, _ZERO)
        return self.builder.shuffle_vector(single, undefined, self.first_lane)

    def _place(self, pointer, offset: int):
        place = self.builder.gep(pointer, [_INT(offset)])
        return self.builder.bitcast(place, self.vector.as_pointer())

    def _load(self, pointer, offset: int):
        loaded = self.builder.load(self._place(pointer, offset))
        loaded.align = BYTE
        return loaded

    def _store(self, value, pointer, offset: int) -> None:
        self.builder.store(value, self._place(pointer, offset)).align = BYTE
