"""One file as a command's output: refused before any work where it cannot or must not be written."""

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ...errors import InputError, first_line, refused


def check_output_file(path: Path, overwrite: bool, inputs: Iterable[Path | None], suffixes: tuple[str, ...]) -> None:
    """Before any work: the file can be written, is no input, has a known suffix, and replaces nothing unasked.

    Args:
        path: ``--output``.
        overwrite: whether a file that is there may be replaced; an input never is.
        inputs: files the command reads.
        suffixes: how the name may end, lower case.

    Raises:
        InputError: one line.
    """
    if not path.name.lower().endswith(suffixes):
        raise InputError(f"--output: {path} is of no known type here, expected a name that ends in {_either(suffixes)}")
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
        raise InputError(f"--output: {path} is no file and cannot be replaced; choose another name")
    if there and not overwrite:
        raise InputError(f"--output: {path} exists; add --overwrite or choose another name")


@contextmanager
def writing(what: Path | str) -> Iterator[None]:
    """Turns what the system says while ``--output`` is written (a full disk) into an InputError of one line.

    Args:
        what: the file or, in words, where to.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or first_line(error)  # Pillow's errors have no number and no strerror
        raise refused(f"--output: writing {what} failed ({reason}); free space or choose another", error) from None


def _same(path: Path, other: Path) -> bool:
    return path.resolve() == other.resolve() or (path.exists() and other.exists() and path.samefile(other))


def _either(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
