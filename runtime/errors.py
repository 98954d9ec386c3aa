"""The exceptions a user is meant to read."""

import errno
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# What the system says where there is too little of something just now: disk, memory, processes, open files.
SCARCITIES = (errno.ENOSPC, errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE)
SCARCITIES += (errno.EDQUOT,) if hasattr(errno, "EDQUOT") else ()  # not on Windows
LARGEST_SINGLE = (2 - 2**-23) * 2.0**127


class InputError(ValueError):
    """Bad input in one line: the argument, what came, what was expected and what to do about it.

    One line also where it quotes a file that has line breaks in odd places.
    """

    def __init__(self, *told: object) -> None:
        super().__init__(*(" ".join(str(part).splitlines()) for part in told))


class NotAvailableError(InputError):
    """What was asked for is sound but not to be had on this computer: a library, a driver, a GPU, its memory."""


class ScarceError(InputError):
    """What was asked for is sound but cannot be had just now: memory, disk space, a folder that another run holds.

    The same command may work later; the command line's exit code tells it from bad input.
    """


def require_single(value: float, argument: str) -> None:
    """Refuse a number that single precision, in which images are kept, does not hold; InputError."""
    if not abs(value) <= LARGEST_SINGLE:
        raise InputError(f"{argument}: got {value:g}, expected a number that single precision holds, such as 0")


def is_scarcity(error: Exception) -> bool:
    """Whether it may be gone another time: a `ScarceError`, memory that ran out, a full disk or the like."""
    return isinstance(error, ScarceError | MemoryError) or (isinstance(error, OSError) and error.errno in SCARCITIES)


def recorded(error: Exception) -> dict[str, Any]:
    """What went wrong with one part of a work whose other parts went on, as records have it.

    `error` is a line, `scarce` whether it may work another time; of what nobody foresaw there is the `traceback` too.
    """
    if isinstance(error, InputError):
        return {"error": first_line(error), "scarce": is_scarcity(error)}
    line = f"{type(error).__name__}: {first_line(error)}"
    return {"error": line, "scarce": is_scarcity(error), "traceback": "".join(traceback.format_exception(error))}


def first_line(error: object) -> str:
    """What an exception says, in one line; its kind where it says nothing."""
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)


def system_reason(error: OSError) -> str:
    """The path the system refused and why, in one line."""
    reason = error.strerror or first_line(error)
    return reason if error.filename is None else f"{error.filename}: {reason}"


def refused(line: str, error: OSError) -> InputError:
    """The exception for what the system refused: `ScarceError` if it is a full disk, memory or the like."""
    return ScarceError(line) if error.errno in SCARCITIES else InputError(line)


@contextmanager
def explained(argument: str) -> Iterator[None]:
    """Turns what the system says of a path (no permission, a name too long) into an InputError.

    ``Path.exists`` and its like raise it instead of answering. Also a decorator.
    """
    try:
        yield
    except OSError as error:
        raise refused(f"{argument}: {system_reason(error)}; check the name and the permissions", error) from None
