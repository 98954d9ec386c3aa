"""Files that appear whole or not at all: written under another name beside their place, then renamed.

Other names tell which process made them, so that what a killed one left behind is known for what it is.
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

# The names that `temporary_name` gives: host, process, its start, and a random part.
TEMPORARY = re.compile(r"\.(?P<stem>[^.]*)\.(?P<host>[0-9a-f]{8})-(?P<pid>\d+)-(?P<start>\d+)-[0-9a-f]{12}(?=\.|$)")
# Seconds without a change, after which the temporary file of another computer is a left-over. Under a folder's lock
# nothing but a command for single files, which needs no lock, may still be writing it.
FORGOTTEN, FORGOTTEN_LOCKED = 24 * 3600, 600


@contextmanager
def atomic_path(path: str | PathLike) -> Iterator[Path]:
    """Give a temporary path beside `path`, with its suffixes; rename it to `path` on success, remove it on failure.

    What is written is on the disk before it is renamed: after a power loss `path` is the old file or the new one. What
    killed processes left of earlier attempts at `path` is removed. An OSError says which file it is about.

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


def write_text(path: str | PathLike, text: str) -> None:
    """Write a UTF-8 text file, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: str | PathLike, content: bytes) -> None:
    """Write a binary file, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def temporary_name(path: Path) -> Path:
    """A hidden name beside a file or folder, with its suffixes, that nobody else takes; see `TEMPORARY`."""
    owner = f"{_host()}-{os.getpid()}-{_start(os.getpid())}-{uuid.uuid4().hex[:12]}"
    return path.with_name(f".{_stem(path)}.{owner}{path.name[len(_stem(path)) :]}")


def remove_leftovers(folder: Path, stem: str | None = None, locked: bool = False) -> None:
    """Remove temporary files and folders that no living process will rename.

    Args:
        folder: where they lie; one that is missing or cannot be read has none.
        stem: of the names they stand for; None: any.
        locked: the caller holds the folder's lock, so that files of other computers are left-overs sooner.
    """
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(folder)):
            match = TEMPORARY.match(entry.name)
            if match is None or (stem is not None and match["stem"] != stem):
                continue
            if _is_left_over(match, entry, locked):
                _remove(Path(entry))


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk. Folders of some systems cannot be, which is their affair."""
    folder = path.is_dir()
    with contextlib.suppress(OSError) if folder else contextlib.nullcontext():
        handle = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def lives(host: str, pid: int, start: int) -> bool | None:
    """True if a process still runs; None if it is of another computer (or container) and cannot be looked for."""
    return _start(pid) == start if host == _host() else None


def this_process() -> tuple[str, int, int]:
    """Host, number and start of this process, as `lives` takes them."""
    return _host(), os.getpid(), _start(os.getpid())


def _is_left_over(match: re.Match, entry: os.DirEntry, locked: bool) -> bool:
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
    """Hash of what process numbers are unique in: computer, and container."""
    facts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        facts.append(Path("/etc/machine-id").read_text(encoding="ascii").strip())
    with contextlib.suppress(OSError):
        facts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256(" ".join(facts).encode()).hexdigest()[:8]


def _start(pid: int) -> int:
    """Start of a process of this computer, in ticks since the computer's; -1: there is none, 0: not known."""
    if not os.path.exists("/proc/self/stat"):
        return 0
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rsplit(b")", 1)[1].split()[19])
    except (OSError, ValueError, IndexError):
        return -1
