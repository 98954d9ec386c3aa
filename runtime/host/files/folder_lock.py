"""A lock that gives an output folder to one run at a time; it names its holder and ends with the holder's process."""

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
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # raised by file systems without locks
BYTE = 1 << 30  # offset of the byte that is locked on Windows


@contextmanager
def folder_lock(folder: Path, argument: str = "--output", subfolders: Sequence[str] = ()) -> Iterator[None]:
    """Hold an output folder, created if necessary; a second run is refused, in this process or any other.

    The operating system releases the lock when its process ends, however it ends. On a file system without locks, the
    lock file tells whether the holder is alive: it contains the host, the process and when that process began.

    Temporary files of killed runs are removed, and a result that one of them had begun to move into place is completed:
    once when the lock is acquired, and again when it is released. Folders that were created but stay empty are removed.

    Args:
        folder: the folder to hold.
        argument: name of the folder's option, for messages.
        subfolders: names of subfolders that this run also writes to.

    Raises:
        ScarceError: another run holds the folder.
        InputError: the folder cannot be created or written to.
    """
    missing: list[Path] = []
    handle = None
    try:
        with _explained(folder, argument), held_signals():  # a signal between creating and noting would leave the file
            missing += [place for place in (folder, *folder.absolute().parents) if not place.exists()]
            folder.mkdir(parents=True, exist_ok=True)
            handle = _acquired(folder, argument)
        _tidy(folder, subfolders)
        yield
    finally:
        try:
            if handle is not None:
                _tidy(folder, subfolders)
        finally:
            if handle is not None:
                _release(folder / LOCK, handle)
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


def _acquired(folder: Path, argument: str) -> int:
    """Open and lock the lock file. If its holder removed it meanwhile, the lock is void, so try again."""
    path = folder / LOCK
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        try:
            _require_free(folder, handle, argument)
            if _is_same(path, handle):
                _write_holder(handle)
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
        raise ScarceError(f"{argument}: {folder} is in use by {who}; wait until it ends or choose another folder")
    if alive is None:
        raise InputError(
            f"{argument}: {folder} is locked by {who}; remove {folder / LOCK} if it has ended, or choose another"
        )


def _lock(handle: int) -> None:
    """Lock an open file for this handle alone, or raise OSError at once."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        os.lseek(handle, BYTE, os.SEEK_SET)
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]  # checkers know it on Windows only
        return
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_same(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle))
    except FileNotFoundError:
        return False


def _write_holder(handle: int) -> None:
    """Write into the lock file who holds it; the lock holds even if the disk is too full for that."""
    since = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    text = {"host": socket.gethostname(), "process": os.getpid(), "since": since, "key": this_process()}
    with contextlib.suppress(OSError):
        os.ftruncate(handle, 0)
        os.lseek(handle, 0, os.SEEK_SET)
        os.write(handle, json.dumps(text).encode() + b"\n")


def _holder(handle: int) -> dict[str, Any] | None:
    """Return what the holder wrote; None if the file is empty or not ours."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        os.lseek(handle, 0, os.SEEK_SET)
        found = json.loads(os.read(handle, 4096))
        host, pid, start = found["key"]
        names = ("host", "process", "since")
        return {**{name: str(found[name]) for name in names}, "key": (host, int(pid), int(start))}
    return None


def _release(path: Path, handle: int) -> None:
    """Remove the file while it is still locked (Windows: after closing it), so that a later holder's file is safe."""
    with contextlib.suppress(OSError):
        if os.name == "posix":
            path.unlink()
    os.close(handle)
    with contextlib.suppress(OSError):
        if os.name != "posix":
            path.unlink()
