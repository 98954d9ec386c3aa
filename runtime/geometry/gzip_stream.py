"""One gzip stream compressed on several cores: float volumes would otherwise take longer to write than to compute."""

import os
import struct
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

BLOCK = 4 << 20  # bytes compressed by one task
LEVEL = 1
# Neighbouring floats share almost no byte strings: searching for matches costs three times the time and gains 0 to 2 %.
STRATEGY = zlib.Z_RLE
HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x04\xff"  # no name and no time: equal data give equal files


def write_gzip(stream: BinaryIO, data: bytes | memoryview) -> None:
    """Write `data` as a single gzip member (RFC 1952) that every reader takes; the bytes do not depend on the cores."""
    view = memoryview(data).cast("B")
    stream.write(HEADER)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for compressed in pool.map(_deflate, _blocks(view)):
            stream.write(compressed)
    stream.write(zlib.compressobj(LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS).flush())
    stream.write(struct.pack("<II", zlib.crc32(view), len(view) & 0xFFFFFFFF))


def _blocks(view: memoryview) -> Iterator[memoryview]:
    return (view[start : start + BLOCK] for start in range(0, len(view), BLOCK))


def _deflate(block: memoryview) -> bytes:
    """A piece of a raw deflate stream that ends on a byte border and can be followed by another."""
    compressor = zlib.compressobj(LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS, 9, STRATEGY)
    return compressor.compress(block) + compressor.flush(zlib.Z_SYNC_FLUSH)
