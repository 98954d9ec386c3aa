"""Exceptions whose messages are written for users."""

import errno
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Error numbers for resources that have run out for now: disk space, memory, processes, open files.
SCARCITIES: tuple[int, ...] = (errno.ENOSPC, errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE)
SCARCITIES += (errno.EDQUOT,) if hasattr(errno, "EDQUOT") else ()  # not on Windows
LARGEST_SINGLE = (2 - 2**-23) * 2.0**127


class InputError(ValueError):
    """Invalid input, described in one line: the argument, what it got, what was expected and what to do about it.

    Line breaks in the message, such as those quoted from a file, become blanks.
    """

    def __init__(self, *message: object) -> None:
        super().__init__(*(" ".join(str(part).splitlines()) for part in message))


class NotAvailableError(InputError):
    """A valid request that this machine cannot serve: a library, a driver, a GPU or its memory is missing."""


class ScarceError(InputError):
    """A valid request that cannot be served at the moment: memory, disk space, or a folder that another run holds.

    The same command may work later; the command line has an exit code of its own for it.
    """


def require_single(value: float, argument: str) -> None:
    """Raise InputError for a number outside the range of single precision, in which images are kept."""
    if not abs(value) <= LARGEST_SINGLE:
        raise InputError(f"{argument}: got {value:g}, expected a number in the range of single precision, such as 0")


def is_scarcity(error: Exception) -> bool:
    """Return whether an error may be temporary: a `ScarceError`, memory that ran out, a full disk or the like."""
    return isinstance(error, ScarceError | MemoryError) or (isinstance(error, OSError) and error.errno in SCARCITIES)


def recorded(error: Exception) -> dict[str, Any]:
    """Return the entries of a JSON record for the error of one item, when the other items were still processed.

    `error` is one line, `scarce` says whether a later attempt may succeed; unexpected exceptions add a `traceback`.
    """
    if isinstance(error, InputError):
        return {"error": first_line(error), "scarce": is_scarcity(error)}
    line = f"{type(error).__name__}: {first_line(error)}"
    return {"error": line, "scarce": is_scarcity(error), "traceback": "".join(traceback.format_exception(error))}


def first_line(error: object) -> str:
    """Return the first non-blank line of an exception's message, or its class name if there is none."""
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)


def system_reason(error: OSError) -> str:
    """Return the path that an OSError is about and its reason, in one line."""
    reason = error.strerror or first_line(error)
    return reason if error.filename is None else f"{error.filename}: {reason}"


def refused(line: str, error: OSError) -> InputError:
    """Return the exception for an OSError: `ScarceError` if disk space, memory or the like ran out."""
    return ScarceError(line) if error.errno in SCARCITIES else InputError(line)


@contextmanager
def explained(argument: str) -> Iterator[None]:
    """Turn an OSError about a path (no permission, a name too long) into an InputError.

    ``Path.exists`` and similar methods raise such errors instead of returning False. Also works as a decorator.
    """
    try:
        yield
    except OSError as error:
        raise refused(f"{argument}: {system_reason(error)}; check the name and the permissions", error) from None
