"""Atomic replacement of a result of several files: written into a hidden folder, then moved into place.

The hidden folder is renamed once it is complete. From then on the new result counts: if the moving is interrupted,
the next run that locks the folder finishes it.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ...errors import InputError
from ..stopping import check_asked
from .whole_files import TEMPORARY, sync, temporary_name, write_text

READY, PLAN = ".complete", "plan.json"


@contextmanager
def whole_result(folder: Path, removed: Iterable[str], last: str) -> Iterator[Path]:
    """Give a hidden folder for the files of a result; existing files in `folder` stay until all new ones are written.

    On failure, a full disk for instance, `folder` stays as it was. Other files in it are left alone. The caller holds
    the folder's lock.

    Args:
        folder: where the result belongs.
        removed: names of an earlier result's files, which are removed.
        last: the file that marks a result as complete: its old version is removed first, its new one moved last.
    """
    stage = temporary_name(folder / "result")
    stage.mkdir()
    try:
        with _final_names(stage):
            yield stage
        names = sorted(path.name for path in stage.iterdir())
        write_text(stage / PLAN, json.dumps({"removed": sorted(set(removed) - set(names)), "last": last}))
        sync(stage)
        ready = folder / f"{READY}{stage.name}"
        check_asked()
        stage.rename(ready)
        sync(folder)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    _put_in_place(ready)


@contextmanager
def _final_names(stage: Path) -> Iterator[None]:
    """Replace the hidden folder's path by the final one in errors."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            error.filename = str(error.filename).replace(str(stage), str(stage.parent))
        raise
    except InputError as error:
        raise type(error)(str(error).replace(str(stage), str(stage.parent))) from None


def finish_replacements(folder: Path) -> None:
    """Finish replacements that were interrupted; other folders with similar names are left alone."""
    with contextlib.suppress(FileNotFoundError):
        for ready in folder.glob(f"{READY}.*"):
            if TEMPORARY.fullmatch(ready.name.removeprefix(READY)) and ready.is_dir() and not ready.is_symlink():
                _put_in_place(ready)


def _put_in_place(ready: Path) -> None:
    """Move the files of a complete result into place; safe to interrupt and repeat."""
    folder, plan = ready.parent, ready / PLAN
    if plan.is_file():
        names = json.loads(plan.read_text(encoding="utf-8"))
        if (ready / names["last"]).exists():
            for name in (names["last"], *names["removed"]):
                (folder / name).unlink(missing_ok=True)
        for path in sorted(ready.iterdir(), key=lambda path: path.name == names["last"]):
            if path.name != PLAN:
                os.replace(path, folder / path.name)
        sync(folder)
    shutil.rmtree(ready, ignore_errors=True)
