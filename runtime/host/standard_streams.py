"""Standard streams that never fail a command: its results are files, so it goes on when nobody reads its output."""

import os
import sys
from typing import Any, TextIO


def keep_streams_usable() -> None:
    """Open standard streams that were closed before the program began, and ignore readers that leave later.

    The next file a program opens gets the lowest free descriptor: with 2 closed, that would be a result file, and
    whatever libraries write to standard error would end up in it.
    """
    for number, flags in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:
            stream = open(number, "w", encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
        if not isinstance(stream, _Unbroken):
            setattr(sys, name, _Unbroken(stream))


class _Unbroken:
    """A text stream that discards its output once its reader has left."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            written = self._stream.write(text)
            self._stream.flush()
            return written
        except BrokenPipeError:
            self._send_nowhere()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._send_nowhere()

    def _send_nowhere(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
