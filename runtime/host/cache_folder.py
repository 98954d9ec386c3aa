"""The cache folder for code compiled for this machine: kept between runs and safe to delete.

Its files are executed, so it is used only if no other user can write to it, and each file is checked against a hash
stored in front of its content. A cache that cannot be read or written costs time, nothing else.
"""

import contextlib
import functools
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from .files.whole_files import atomic_path

VARIABLE = "RPNET_CACHE"
NOWHERE = Path(os.devnull) / "rpnet"  # can neither be read nor created
ROOM = 1 << 16  # bytes that it must be possible to write before a folder is used as a cache
HASH = hashlib.sha256().digest_size


def cache_folder(part: str = "") -> Path:
    """Return this user's cache folder for compiled code, created if necessary.

    The environment variable RPNET_CACHE names it; the default is `rpnet` in the system's cache folder. A folder that
    cannot be written to (in a container, on a full disk) is used read-only if it already holds `part`. Otherwise a
    folder among the temporary files is used, and failing that, a path that can be neither read nor written.

    Args:
        part: path, relative to the folder, of the entry that is needed; "": any.
    """
    for folder, mode in _candidates():
        if _is_ours(folder, part) and (_usable(folder, mode) or _holds(folder / part)):
            return folder
    return _temporary_folder()


def keep_in_cache(variable: str, name: str) -> None:
    """Make a library keep its own cache in this cache folder instead of the home folder or a temporary one.

    Args:
        variable: environment variable that the library reads its folder from; left alone if it is already set.
        name: of the subfolder. Only this user can access it, because libraries store no hashes with their files.
    """
    folder = cache_folder(name) / name
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        os.environ.setdefault(variable, str(folder))


def keep(path: Path, content: bytes) -> None:
    """Write a file to the cache with its hash in front; do nothing if there is no space or no permission."""
    with contextlib.suppress(OSError):
        for folder in reversed([place for place in path.parents if not place.exists()]):
            folder.mkdir(mode=0o755, exist_ok=True)
        with atomic_path(path) as temporary:
            temporary.write_bytes(hashlib.sha256(content).digest() + content)
            temporary.chmod(0o644)  # whatever the umask is: `kept` rejects files that others may write


def kept(path: Path) -> bytes | None:
    """Return what `keep` wrote; None if the file is missing or damaged, or if other users may have written it."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        found = file.read() if _is_trusted(os.fstat(file.fileno())) else b""
        content = memoryview(found)[HASH:]
        if hashlib.sha256(content).digest() == found[:HASH]:
            return bytes(content)
    return None


def keep_latest(paths: Iterable[Path], number: int) -> None:
    """Remove all but the `number` most recently used of these files and folders, as far as the system allows."""
    with contextlib.suppress(OSError):
        for path in sorted(paths, key=lambda path: path.stat().st_mtime)[:-number]:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _candidates() -> list[tuple[Path, int]]:
    """Return the configured cache folder and the mode to create it with, as a list of one; empty without a home folder.

    A folder that the user names may also serve other users, who can only read it.
    """
    with contextlib.suppress(RuntimeError):  # no home folder
        if chosen := os.environ.get(VARIABLE):
            return [(Path(chosen).expanduser().absolute(), 0o755)]
        return [(_system_folder() / "rpnet", 0o700)]
    return []


def _system_folder() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or "~/AppData/Local").expanduser()
    if sys.platform == "darwin":
        return Path("~/Library/Caches").expanduser()
    chosen = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return chosen if chosen.is_absolute() else Path("~/.cache").expanduser()


def _is_ours(folder: Path, part: str) -> bool:
    """Return whether no other user can write to a folder or to any existing folder from there down to `part`."""
    try:
        below = [folder / place for place in [*reversed(Path(part).parents), Path(part)]]
        return all(_is_trusted(place.stat()) for place in below if place.exists())
    except OSError:
        return False


def _is_trusted(facts: os.stat_result) -> bool:
    """Return whether only this user or root can have written the file or folder with this status."""
    return not hasattr(os, "getuid") or (facts.st_uid in (0, os.getuid()) and not facts.st_mode & 0o022)


def _usable(folder: Path, mode: int) -> bool:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=mode, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(ROOM))
    except OSError:
        return False
    return True


def _holds(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        return any(folder.iterdir())
    return False


@functools.cache
def _temporary_folder() -> Path:
    """Return a cache folder among the temporary files: the same in every run, used only if no other user can write."""
    try:
        folder = Path(tempfile.gettempdir()) / (f"rpnet-{os.getuid()}" if hasattr(os, "getuid") else "rpnet")
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.is_symlink() or not _is_trusted(folder.lstat()) or not _usable(folder, 0o700):
            return NOWHERE
    except OSError:
        return NOWHERE
    return folder
