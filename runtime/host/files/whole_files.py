"""Atomic writing: a file is written under a temporary name in the same folder, then renamed.

Temporary names say which process made them, so that files left behind by killed processes can be recognised.
"""

import contextlib
import functools
import hashlib
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

from ..stopping import check_asked

# Names from `temporary_name`: host, process, its start, and a random part.
TEMPORARY = re.compile(r"\.(?P<stem>[^.]*)\.(?P<host>[0-9a-f]{8})-(?P<pid>\d+)-(?P<start>\d+)-[0-9a-f]{12}(?=\.|$)")
# Seconds without a change after which the temporary file of another machine counts as left over. With the folder
# locked, only a command that writes a single file, which needs no lock, could still be writing it.
FORGOTTEN, FORGOTTEN_LOCKED = 24 * 3600, 600


@contextmanager
def atomic_path(path: str | PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside `path`, with its suffixes; rename it to `path` on success, remove it on failure.

    The content is on disk before the renaming: after a power loss `path` is the old file or the new one. Files that
    killed processes left from earlier attempts at `path` are removed. An OSError carries the final path.

    Usage::

        with atomic_path("report.json") as temporary:
            temporary.write_text(text)
    """
    path = Path(path)
    temporary = temporary_name(path)
    remove_leftovers(path.parent, stem=_stem(path))
    check_asked()
    try:
        yield temporary
        check_asked()
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | PathLike[str], text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: str | PathLike[str], content: bytes) -> None:
    """Write a binary file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def temporary_name(path: Path) -> Path:
    """Return a unique hidden name in the folder of a file or folder, with the same suffixes; see `TEMPORARY`."""
    owner = f"{_host()}-{os.getpid()}-{_start(os.getpid())}-{uuid.uuid4().hex[:12]}"
    return path.with_name(f".{_stem(path)}.{owner}{path.name[len(_stem(path)) :]}")


def remove_leftovers(folder: Path, stem: str | None = None, locked: bool = False) -> None:
    """Remove temporary files and folders that no living process will rename.

    Args:
        folder: the folder to clean; nothing is done if it is missing or cannot be read.
        stem: of the final names; None: any.
        locked: the caller holds the folder's lock, so that files of other machines count as left over sooner.
    """
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(folder)):
            match = TEMPORARY.match(entry.name)
            if match is None or (stem is not None and match["stem"] != stem):
                continue
            if _is_left_over(match, entry, locked):
                _remove(Path(entry))


def sync(path: Path) -> None:
    """Flush a file, or a folder's entries, to the disk. On systems that cannot flush folders, errors are ignored."""
    folder = path.is_dir()
    with contextlib.suppress(OSError) if folder else contextlib.nullcontext():
        handle = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def lives(host: str, pid: int, start: int) -> bool | None:
    """Return whether a process still runs; None if it belongs to another machine or container and cannot be checked."""
    return _start(pid) == start if host == _host() else None


def this_process() -> tuple[str, int, int]:
    """Return host, number and start of this process, as `lives` takes them."""
    return _host(), os.getpid(), _start(os.getpid())


def _is_left_over(match: re.Match[str], entry: os.DirEntry[str], locked: bool) -> bool:
    alive = lives(match["host"], int(match["pid"]), int(match["start"]))
    if alive is None:
        unchanged = time.time() - entry.stat(follow_symlinks=False).st_mtime
        return unchanged > (FORGOTTEN_LOCKED if locked else FORGOTTEN)
    return not alive


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _stem(path: Path) -> str:
    return path.name.split(".")[0]


@functools.cache
def _host() -> str:
    """Return a hash of the machine and the container, within which process numbers are unique."""
    facts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        facts.append(Path("/etc/machine-id").read_text(encoding="ascii").strip())
    with contextlib.suppress(OSError):
        facts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256(" ".join(facts).encode()).hexdigest()[:8]


def _start(pid: int) -> int:
    """Return the start of a process on this machine, in clock ticks since boot; -1: no such process, 0: unknown."""
    if not os.path.exists("/proc/self/stat"):
        return 0
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # field 22; the name before it, in parentheses, may hold blanks
            return int(file.read().rsplit(b")", 1)[1].split()[19])
    except (OSError, ValueError, IndexError):
        return -1
