"""A result of several files that is replaced as a whole: written into a hidden folder, then moved to its place.

The hidden folder gets another name once it is complete. From then on the result is the new one: where the moving is
cut short, whoever locks the folder next carries it to its end.
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
    """Gives a hidden folder for the files of a result; what stands in `folder` is touched after all are written.

    On failure, a full disk for instance, `folder` stays as it was. Other files in it are left alone. The caller holds
    the folder's lock.

    Args:
        folder: where the result belongs.
        removed: names of an earlier result's files, which go.
        last: the file that says of a result that it is whole: it goes first and comes last.
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
    """What goes wrong is told of the files' places, not of where they are written meanwhile."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            error.filename = str(error.filename).replace(str(stage), str(stage.parent))
        raise
    except InputError as error:
        raise type(error)(str(error).replace(str(stage), str(stage.parent))) from None


def finish_replacements(folder: Path) -> None:
    """Carries to their end replacements that were cut short; folders that only look like one are left alone."""
    with contextlib.suppress(FileNotFoundError):
        for ready in folder.glob(f"{READY}.*"):
            if TEMPORARY.fullmatch(ready.name.removeprefix(READY)) and ready.is_dir() and not ready.is_symlink():
                _put_in_place(ready)


def _put_in_place(ready: Path) -> None:
    """Moves the files of a complete result; can be cut short and done again."""
    folder, plan = ready.parent, ready / PLAN
    if plan.is_file():
        told = json.loads(plan.read_text(encoding="utf-8"))
        if (ready / told["last"]).exists():
            for name in (told["last"], *told["removed"]):
                (folder / name).unlink(missing_ok=True)
        for path in sorted(ready.iterdir(), key=lambda path: path.name == told["last"]):
            if path.name != PLAN:
                os.replace(path, folder / path.name)
        sync(folder)
    shutil.rmtree(ready, ignore_errors=True)
