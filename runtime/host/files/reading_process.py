"""Files read in a separate process: a damaged file that crashes or hangs a C library does so only there.

The program (`reading_child.py`, which documents its output) limits its own processor time; a timeout here ends it if
that fails.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

CHILD = Path(__file__).with_name("reading_child.py")
PATIENCE, PER_BYTE = 60.0, 1e-6  # timeout in seconds, and extra time for each byte of the file


class UnreadableError(Exception):
    """A file that could not be read; the message is the reason, in one line."""


def read_elsewhere(reader: Path, path: Path, *options: str) -> tuple[dict[str, Any], memoryview]:
    """Read a file in a separate process and return its facts, from a line of JSON, and the bytes after that line.

    Args:
        reader: a Python file with a function `read`.
        path: the file to read.
        options: further arguments of `read`.

    Raises:
        UnreadableError: the reader refused the file, crashed or took too long.
    """
    command = [sys.executable, "-P", str(CHILD), str(reader), str(path), *options]
    seconds = PATIENCE + PER_BYTE * path.stat().st_size
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        raise UnreadableError(f"reading it took more than {seconds:.0f} s") from None
    line, _, _ = done.stdout.partition(b"\n")
    if done.returncode or not line:
        raise UnreadableError(f"the process that reads it ended unexpectedly, exit code {done.returncode}")
    head = json.loads(line)
    if "refused" in head:
        raise UnreadableError(head["refused"])
    return head, memoryview(done.stdout)[len(line) + 1 :]
