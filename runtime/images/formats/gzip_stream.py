"""One gzip stream compressed on several cores: float volumes would otherwise take longer to write than to compute."""

import collections
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import BinaryIO

Piece = Callable[[], "bytes | memoryview"]

LEVEL = 1
# Neighbouring floats share almost no byte strings: searching for matches costs three times the time and gains 0 to 2 %.
STRATEGY = zlib.Z_RLE
# The mantissas of a smooth field are noise: the 9 % that its exponents yield cost more time than all other files.
WORTH = 0.8  # a piece that shrinks to no less than this is stored as it is
SAMPLES, SAMPLE = 16, 1024  # how often and how many bytes of a piece are tried
AHEAD = 32  # pieces
HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x04\xff"  # no name and no time: equal data give equal files
LAST_BLOCK = zlib.compressobj(LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS).flush()


def write_gzip(stream: BinaryIO, pieces: Iterable[Piece], pool: Executor | None = None) -> None:
    """Write pieces, one after the other, as a single gzip member (RFC 1952) that every reader takes.

    Args:
        stream: opened for writing.
        pieces: each gives about a megabyte when it is called; only a few are held in memory at a time.
        pool: runs the compression; None: threads of its own. The bytes written do not depend on it.
    """
    if pool is None:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            return write_gzip(stream, pieces, pool)
    checksum, size = 0, 0
    stream.write(HEADER)
    for content, packed in _few_ahead(pool, pieces):
        checksum, size = zlib.crc32(content, checksum), size + len(content)
        stream.write(packed)
    stream.write(LAST_BLOCK + struct.pack("<II", checksum, size & 0xFFFFFFFF))


def _few_ahead(pool: Executor, pieces: Iterable[Piece]) -> Iterator[tuple[memoryview, bytes]]:
    """Each piece and its packed form, in order, no more than a few of them waiting to be written."""
    waiting: collections.deque[Future] = collections.deque()
    for piece in pieces:
        waiting.append(pool.submit(_pack, piece))
        if len(waiting) > AHEAD:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _pack(piece: Piece) -> tuple[memoryview, bytes]:
    """The content, and a piece of a raw deflate stream that ends on a byte border and can be followed by another."""
    content = memoryview(piece()).cast("B")
    compressor = zlib.compressobj(LEVEL if _shrinks(content) else 0, zlib.DEFLATED, -zlib.MAX_WBITS, 9, STRATEGY)
    return content, compressor.compress(content) + compressor.flush(zlib.Z_SYNC_FLUSH)


def _shrinks(content: memoryview) -> bool:
    """Whether compressing is worth its time, by samples from all over the piece."""
    step = max(len(content) // SAMPLES, SAMPLE)
    sample = b"".join(content[start : start + SAMPLE] for start in range(0, len(content), step))
    compressor = zlib.compressobj(LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS, 9, STRATEGY)
    return len(compressor.compress(sample) + compressor.flush()) < WORTH * len(sample)
