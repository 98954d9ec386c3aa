"""The program that `runtime.host.files.reading_process` starts: it reads one file with one reader, in bounded time.

    python elsewhere_child.py READER FILE [OPTION ...]

READER is a Python file with a function ``read(path, size, *options)``, where `size` is the file's in bytes. It returns
plain facts and arrays. The facts are written as one line of JSON, followed by the arrays as they are in memory; a file
that cannot be read gives {"refused": reason}. This program imports none of our modules, so that it starts quickly.
"""

import importlib.util
import json
import os
import sys

CPU_SECONDS, PER_BYTE = 3, 1e-7  # limit of the processor time, and extra time for each byte of the file


def main(reader: str, path: str, *options: str) -> None:
    """Read a file and write it to standard output."""
    size = os.stat(path).st_size
    _limit(CPU_SECONDS + PER_BYTE * size)
    try:
        spec = importlib.util.spec_from_file_location("reader", reader)
        assert spec is not None and spec.loader is not None  # as for every Python file
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        head, arrays = module.read(path, size, *options)
    except Exception as error:  # damaged files raise a dozen kinds of errors
        lines = str(error).splitlines() or [""]
        head, arrays = {"refused": lines[0][:300] or type(error).__name__}, []
    sys.stdout.buffer.write(json.dumps(head).encode() + b"\n")
    for array in arrays:
        sys.stdout.buffer.write(memoryview(array).cast("B"))
    sys.stdout.buffer.flush()


def _limit(seconds: float) -> None:
    """Have the system end this process after so much processor time; where it cannot, the parent's timeout does."""
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 2))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    main(*sys.argv[1:])
