"""The folder for what is compiled for this computer: kept between runs and safe to delete."""

import functools
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

VARIABLE = "RPNET_CACHE"


def cache_folder() -> Path:
    """This user's folder for compiled code, made if need be.

    The environment variable RPNET_CACHE names it; else it is `rpnet` in the system's folder for caches. Where that
    cannot be written to, a folder among the temporary ones that nobody else may write to takes its place.
    """
    try:
        chosen = os.environ.get(VARIABLE)
        folder = Path(chosen).expanduser().absolute() if chosen else _system_folder() / "rpnet"
    except RuntimeError:  # no home folder
        return _temporary_folder()
    return folder if _usable(folder) else _temporary_folder()


def keep_latest(paths: Iterable[Path], number: int) -> None:
    """Removes all of these files and folders but the ones used last."""
    for path in sorted(paths, key=lambda path: path.stat().st_mtime)[:-number]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _system_folder() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or "~/AppData/Local").expanduser()
    if sys.platform == "darwin":
        return Path("~/Library/Caches").expanduser()
    chosen = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return chosen if chosen.is_absolute() else Path("~/.cache").expanduser()


def _usable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


@functools.cache
def _temporary_folder() -> Path:
    """The same from run to run as long as it is ours alone: what lies in it is executed."""
    if not hasattr(os, "getuid"):  # Windows: temporary folders are the user's own
        folder = Path(tempfile.gettempdir()) / "rpnet"
        return folder if _usable(folder) else Path(tempfile.mkdtemp(prefix="rpnet-"))
    folder = Path(tempfile.gettempdir()) / f"rpnet-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        facts = folder.lstat()
        ours = not folder.is_symlink() and facts.st_uid == os.getuid() and not facts.st_mode & 0o022
    except OSError:
        ours = False
    return folder if ours and _usable(folder) else Path(tempfile.mkdtemp(prefix="rpnet-"))
