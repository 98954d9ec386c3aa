"""The program that `runtime.host.files.reading_process` starts: it reads one file by one reader, in bounded time.

    python elsewhere_child.py READER FILE [OPTION ...]

READER is a Python file with a function ``read(path, size, *options)``, `size` that of the file in bytes, which returns
plain facts and arrays. The facts are written as one line of JSON, then the arrays as they are in memory; or
{"refused": reason}. It imports nothing of ours, so that it starts quickly.
"""

import importlib.util
import json
import os
import sys

CPU_SECONDS, PER_BYTE = 3, 1e-7  # that reading may take, and on top for each byte of the file


def main(reader: str, path: str, *options: str) -> None:
    """Read a file and write it to standard output."""
    size = os.stat(path).st_size
    _limit(CPU_SECONDS + PER_BYTE * size)
    try:
        spec = importlib.util.spec_from_file_location("reader", reader)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        head, arrays = module.read(path, size, *options)
    except Exception as error:  # damaged files raise errors of a dozen kinds
        lines = str(error).splitlines() or [""]
        head, arrays = {"refused": lines[0][:300] or type(error).__name__}, []
    sys.stdout.buffer.write(json.dumps(head).encode() + b"\n")
    for array in arrays:
        sys.stdout.buffer.write(memoryview(array).cast("B"))
    sys.stdout.buffer.flush()


def _limit(seconds: float) -> None:
    """The system ends this process when it has computed for so long; where it cannot, its parent's clock does."""
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 2))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    main(*sys.argv[1:])
