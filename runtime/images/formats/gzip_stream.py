"""Gzip compression on several cores: float volumes would otherwise take longer to write than to compute."""

import collections
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO

Piece = Callable[[], "bytes | memoryview"]


@dataclass(frozen=True)
class Compression:
    """Settings of zlib: its level, 1 to 9, and its strategy."""

    level: int
    strategy: int

    def compressor(self, level: int | None = None) -> "zlib._Compress":
        """Return a compressor of raw deflate, at another level if one is given; level 0 stores."""
        return zlib.compressobj(
            self.level if level is None else level, zlib.DEFLATED, -zlib.MAX_WBITS, 9, self.strategy
        )


# Neighbouring floats share almost no byte strings: searching for matches takes three times as long and gains 0 to 2 %.
FAST = Compression(1, zlib.Z_RLE)
# Rounded floats do share them: the search more than halves their size; beyond level 4 it takes three times as long.
DENSE = Compression(4, zlib.Z_DEFAULT_STRATEGY)
# The mantissas of a smooth field are noise: the 9 % that its exponents save cost more time than all other files.
WORTH = 0.8  # a piece that would not shrink below this share is stored uncompressed
SAMPLES, SAMPLE = 16, 1024  # number and size in bytes of the samples of a piece that are compressed to decide
AHEAD = 32  # most pieces waiting to be written
HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x04\xff"  # no name and no time: equal data give equal files
LAST_BLOCK = FAST.compressor().flush()


def write_gzip(
    stream: BinaryIO, pieces: Iterable[Piece], pool: Executor | None = None, compression: Compression = FAST
) -> None:
    """Write pieces in order as a single gzip member (RFC 1952), which every reader supports.

    Args:
        stream: opened for writing.
        pieces: callables that each return about a megabyte; only a few are held in memory at a time.
        pool: runs the compression; None: a pool created for this call. The bytes written do not depend on it.
        compression: settings of zlib.
    """
    if pool is None:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            return write_gzip(stream, pieces, pool, compression)
    checksum, size = 0, 0
    stream.write(HEADER)
    for content, packed in _few_ahead(pool, pieces, compression):
        checksum, size = zlib.crc32(content, checksum), size + len(content)
        stream.write(packed)
    stream.write(LAST_BLOCK + struct.pack("<II", checksum, size & 0xFFFFFFFF))


def _few_ahead(pool: Executor, pieces: Iterable[Piece], compression: Compression) -> Iterator[tuple[memoryview, bytes]]:
    """Yield each piece and its compressed form, in order, with only a few of them waiting to be written."""
    waiting: collections.deque[Future[tuple[memoryview, bytes]]] = collections.deque()
    for piece in pieces:
        waiting.append(pool.submit(_pack, piece, compression))
        if len(waiting) > AHEAD:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _pack(piece: Piece, compression: Compression) -> tuple[memoryview, bytes]:
    """Return the content and its raw deflate stream, which ends on a byte boundary, so that another can follow."""
    content = memoryview(piece()).cast("B")
    compressor = compression.compressor(None if _shrinks(content, compression) else 0)
    return content, compressor.compress(content) + compressor.flush(zlib.Z_SYNC_FLUSH)


def _shrinks(content: memoryview, compression: Compression) -> bool:
    """Return whether compressing a piece is worth its time, judged by samples spread over it."""
    step = max(len(content) // SAMPLES, SAMPLE)
    sample = b"".join(content[start : start + SAMPLE] for start in range(0, len(content), step))
    compressor = compression.compressor()
    return len(compressor.compress(sample) + compressor.flush()) < WORTH * len(sample)
