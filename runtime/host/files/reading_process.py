"""Files read by a program of its own: what damaged files do to a C library, they do there, and in bounded time.

The program (`elsewhere_child.py`, which says what it writes) limits the time it computes for itself; a clock here ends
it if that fails.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

CHILD = Path(__file__).with_name("reading_child.py")
PATIENCE, PER_BYTE = 60.0, 1e-6  # seconds until it is ended, and on top for each byte of the file


class Unreadable(Exception):
    """A file that was not read, and why, in one line."""


def read_elsewhere(reader: Path, path: Path, *options: str) -> tuple[dict[str, Any], memoryview]:
    """The line of JSON, and the bytes behind it.

    Args:
        reader: a Python file with a function `read`.
        path: what it reads.
        options: its further arguments.

    Raises:
        Unreadable: refused, or the program was ended by what it read.
    """
    command = [sys.executable, "-P", str(CHILD), str(reader), str(path), *options]
    seconds = PATIENCE + PER_BYTE * path.stat().st_size
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        raise Unreadable(f"it is not read after {seconds:.0f} s") from None
    line, _, _ = done.stdout.partition(b"\n")
    if done.returncode or not line:
        raise Unreadable(f"the library that reads it came to an end, {done.returncode}")
    head = json.loads(line)
    if "refused" in head:
        raise Unreadable(head["refused"])
    return head, memoryview(done.stdout)[len(line) + 1 :]
