"""The folder for what is compiled for this computer: kept between runs and safe to delete.

What lies in it is run, so it is used only where nobody else may write, and each file is held against a hash in front
of its content. A cache that cannot be read or written costs time, nothing else.
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
NOWHERE = Path(os.devnull) / "rpnet"  # can neither be read nor made
ROOM = 1 << 16  # bytes that a disk with room for a cache takes
HASH = hashlib.sha256().digest_size


def cache_folder(part: str = "") -> Path:
    """This user's folder for compiled code, made if need be.

    The environment variable RPNET_CACHE names it; else it is `rpnet` in the system's folder for caches. One that
    cannot be written to (a container's, a full disk) serves as it is if the part asked for lies in it. Else one among
    the temporary folders takes its place; without any, a path that nothing can be read from or written to.

    Args:
        part: path, below the folder, of what it is wanted for; "": anything.
    """
    for folder, mode in _candidates():
        if _is_ours(folder, part) and (_usable(folder, mode) or _holds(folder / part)):
            return folder
    return _temporary_folder()


def keep_in_cache(variable: str, name: str) -> None:
    """Has a library keep in a folder of the cache what it would leave in the home folder or a temporary one.

    Args:
        variable: of the environment, that tells the library where; one that is set already stays.
        name: of the folder, which is this user's alone: what libraries keep carries no hashes.
    """
    folder = cache_folder(name) / name
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        os.environ.setdefault(variable, str(folder))


def keep(path: Path, content: bytes) -> None:
    """Writes a file of the cache, its hash in front; not where there is no room or no permission."""
    with contextlib.suppress(OSError):
        for folder in reversed([place for place in path.parents if not place.exists()]):
            folder.mkdir(mode=0o755, exist_ok=True)
        with atomic_path(path) as temporary:
            temporary.write_bytes(hashlib.sha256(content).digest() + content)
            temporary.chmod(0o644)  # whatever the umask is: `kept` refuses what others may write


def kept(path: Path) -> bytes | None:
    """What `keep` wrote; None where there is nothing, or not what it was, or others may have written it."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        found = file.read() if _is_trusted(os.fstat(file.fileno())) else b""
        content = memoryview(found)[HASH:]
        if hashlib.sha256(content).digest() == found[:HASH]:
            return bytes(content)
    return None


def keep_latest(paths: Iterable[Path], number: int) -> None:
    """Removes all of these files and folders but the ones used last, as far as the system allows."""
    with contextlib.suppress(OSError):
        for path in sorted(paths, key=lambda path: path.stat().st_mtime)[:-number]:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _candidates() -> list[tuple[Path, int]]:
    """The folder that is meant and the mode to make it with: what a user names may serve others, who only read."""
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
    """Whether nobody else may write to a folder, nor to those on the way to a part of it, as far as they are there."""
    try:
        below = [folder / place for place in [*reversed(Path(part).parents), Path(part)]]
        return all(_is_trusted(place.stat()) for place in below if place.exists())
    except OSError:
        return False


def _is_trusted(facts: os.stat_result) -> bool:
    """Whether what has these facts can have been written by this user, or the system's, alone."""
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
    """The same from run to run as long as it is ours alone."""
    try:
        folder = Path(tempfile.gettempdir()) / (f"rpnet-{os.getuid()}" if hasattr(os, "getuid") else "rpnet")
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.is_symlink() or not _is_trusted(folder.lstat()) or not _usable(folder, 0o700):
            return NOWHERE
    except OSError:
        return NOWHERE
    return folder
