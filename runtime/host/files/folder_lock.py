"""An output folder for one run at a time: a lock that names its holder and ends with the holder's process."""

import contextlib
import datetime
import errno
import json
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...errors import InputError, ScarceError, first_line, refused
from ..stopping import held_signals
from .whole_files import lives, remove_leftovers, this_process
from .whole_folder import finish_replacements

LOCK = ".rpnet-lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # said by file systems without them
BYTE = 1 << 30  # of the file, which Windows locks


@contextmanager
def folder_lock(folder: Path, argument: str = "--output", subfolders: Sequence[str] = ()) -> Iterator[None]:
    """Holds an output folder, which is made if need be; a second run is refused, in this process or any other.

    The operating system lets go of the lock of a process that ends, however it ends. On a file system without such
    locks the holder is looked for by what the file says: host, process and when that process began.

    What killed runs left of temporary files is removed, and a result that one of them had begun to put in its place is
    put there: first when the lock is taken, and again when it is given back. A folder made for nothing is removed.

    Args:
        folder: what to hold.
        argument: which names the folder, for the error.
        subfolders: in which this run writes too.

    Raises:
        ScarceError: another run holds the folder.
        InputError: the folder cannot be made or written to.
    """
    missing: list[Path] = []
    handle = None
    try:
        with _explained(folder, argument), held_signals():  # one between making and noting would leave the file
            missing += [place for place in (folder, *folder.absolute().parents) if not place.exists()]
            folder.mkdir(parents=True, exist_ok=True)
            handle = _taken(folder, argument)
        _tidy(folder, subfolders)
        yield
    finally:
        try:
            if handle is not None:
                _tidy(folder, subfolders)
        finally:
            if handle is not None:
                _given_back(folder / LOCK, handle)
        for place in missing:
            with contextlib.suppress(OSError):
                place.rmdir()


@contextmanager
def _explained(folder: Path, argument: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise refused(f"{argument}: cannot write to {folder} ({reason}); choose another folder", error) from None


def _tidy(folder: Path, subfolders: Sequence[str]) -> None:
    finish_replacements(folder)
    for name in ("", *subfolders):
        remove_leftovers(folder / name, locked=True)


def _taken(folder: Path, argument: str) -> int:
    """The lock file, open and locked. One that its holder has removed meanwhile locks nothing: then once more."""
    path = folder / LOCK
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        try:
            _require_free(folder, handle, argument)
            if _is_same(path, handle):
                _sign(handle)
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _require_free(folder: Path, handle: int, argument: str) -> None:
    try:
        _lock(handle)
        return
    except OSError as error:
        held = error.errno not in NO_LOCKS
    holder = _holder(handle)
    who = "process {process} on {host}, since {since}".format(**holder) if holder else "another run"
    alive = lives(*holder["key"]) if holder else False
    if held or alive:
        raise ScarceError(f"{argument}: {folder} is in use by {who}; wait until that ends or choose another folder")
    if alive is None:
        raise InputError(
            f"{argument}: {folder} was taken by {who}; remove {folder / LOCK} if that has ended, or choose another"
        )


def _lock(handle: int) -> None:
    """Locks an open file for this handle alone, or raises OSError at once."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        os.lseek(handle, BYTE, os.SEEK_SET)
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        return
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_same(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle))
    except FileNotFoundError:
        return False


def _sign(handle: int) -> None:
    """Writes who holds the lock; a disk too full even for that takes nothing from the lock."""
    since = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    text = {"host": socket.gethostname(), "process": os.getpid(), "since": since, "key": this_process()}
    with contextlib.suppress(OSError):
        os.ftruncate(handle, 0)
        os.lseek(handle, 0, os.SEEK_SET)
        os.write(handle, json.dumps(text).encode() + b"\n")


def _holder(handle: int) -> dict[str, Any] | None:
    """What the holder wrote; None of a file that is empty or foreign."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        os.lseek(handle, 0, os.SEEK_SET)
        found = json.loads(os.read(handle, 4096))
        host, pid, start = found["key"]
        names = ("host", "process", "since")
        return {**{name: str(found[name]) for name in names}, "key": (host, int(pid), int(start))}
    return None


def _given_back(path: Path, handle: int) -> None:
    """Removes the file while it is still locked (Windows: once it is closed), so that no later holder's is removed."""
    with contextlib.suppress(OSError):
        if os.name == "posix":
            path.unlink()
    os.close(handle)
    with contextlib.suppress(OSError):
        if os.name != "posix":
            path.unlink()
