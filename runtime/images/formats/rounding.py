"""Rounding of float32 numbers to fewer bits, so that they compress: every reader reads them, as plain float32."""

import numpy as np

from ...types import Array

MANTISSA_BITS = 23  # stored bits of a float32's mantissa


def rounded_to_steps(values: Array, step: float) -> Array:
    """Return float32 values rounded to the nearest multiples of `step`, a power of two; each moves by step / 2 at most.

    The power of two makes the low bits of every mantissa zero, and multiplication and division exact.
    """
    return np.rint(values * np.float32(1 / step)) * np.float32(step)


def rounded_to_bits(values: Array, bits: int) -> Array:
    """Return finite float32 values rounded to `bits` stored bits of mantissa; the relative error is 2^-(bits + 1).

    Signs stay what they are, and no value other than 0 becomes 0 (but for those below 1e-37).
    """
    dropped = MANTISSA_BITS - bits
    half, kept = np.uint32(1 << (dropped - 1)), np.uint32((0xFFFFFFFF << dropped) & 0xFFFFFFFF)
    stored = np.ascontiguousarray(values.T, dtype=np.float32).view(np.uint32)
    return ((stored + half) & kept).view(np.float32).T  # a carry out of the mantissa rightly raises the exponent
