"""Checks that an input is a regular file, so that nothing waits for a pipe or reads a device without end."""

import stat
from os import PathLike
from pathlib import Path

from ...errors import InputError, explained

_OTHERS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


def read_bytes(path: str | PathLike[str], argument: str, largest: int) -> bytes:
    """Read a small regular file; arguments and errors as for `require_file`, and InputError if it cannot be opened."""
    path = require_file(path, argument, largest)
    with explained(argument):
        return path.read_bytes()


def require_file(path: str | PathLike[str], argument: str, largest: int | None = None) -> Path:
    """Return the path of a regular file, or of a link to one.

    Args:
        path: the file.
        argument: what to call it in messages.
        largest: most bytes that a file of its kind may have; None: any number.

    Raises:
        InputError: nothing is there, or a folder, a pipe, a device or a socket, or a file that is larger.
    """
    path = Path(path)
    with explained(argument):
        try:
            facts = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(f"{argument}: {path} does not exist") from None
        except ValueError as error:  # a zero byte in the name
            raise InputError(f"{argument}: {str(path)!r} is not a valid file name ({error})") from None
    if not stat.S_ISREG(facts.st_mode):
        what = next((what for holds, what in _OTHERS if holds(facts.st_mode)), "something else")
        raise InputError(f"{argument}: {path} is not a file but {what}; give a file")
    if largest is not None and facts.st_size > largest:
        raise InputError(
            f"{argument}: {path} has {facts.st_size / 2**20:.0f} MiB, expected {largest / 2**20:.0f} MiB at most; "
            "is it the right file?"
        )
    return path
