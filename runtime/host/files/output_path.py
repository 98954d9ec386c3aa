"""Checks of a command's single output file: refused before any work if it cannot or must not be written."""

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ...errors import InputError, first_line, refused


def check_output_file(path: Path, overwrite: bool, inputs: Iterable[Path | None], suffixes: tuple[str, ...]) -> None:
    """Check before any work that a file can be written, is no input, has a known suffix and replaces nothing unasked.

    Args:
        path: ``--output``.
        overwrite: whether an existing file may be replaced; an input never is.
        inputs: files that the command reads.
        suffixes: allowed endings of the name, in lower case.

    Raises:
        InputError: one of these conditions does not hold.
    """
    if not path.name.lower().endswith(suffixes):
        raise InputError(f"--output: got {path}, expected a name that ends in {_either(suffixes)}")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
        there = path.exists()
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise refused(f"--output: cannot write into {path.parent} ({reason}); choose another folder", error) from None
    if any(_same(path, other) for other in inputs if other is not None):
        raise InputError(f"--output: would replace the input {path}; choose another name")
    if there and not path.is_file():
        raise InputError(f"--output: {path} is not a file and cannot be replaced; choose another name")
    if there and not overwrite:
        raise InputError(f"--output: {path} exists; add --overwrite or choose another name")


@contextmanager
def writing(what: Path | str) -> Iterator[None]:
    """Turn an OSError while ``--output`` is written (a full disk) into an InputError of one line.

    Args:
        what: the file, or its destination in words.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or first_line(error)  # Pillow's errors have no number and no strerror
        raise refused(f"--output: writing {what} failed ({reason}); free disk space or choose another", error) from None


def _same(path: Path, other: Path) -> bool:
    return path.resolve() == other.resolve() or (path.exists() and other.exists() and path.samefile(other))


def _either(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
