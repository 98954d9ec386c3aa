"""The page of the registrations in a folder, index.html."""

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from os.path import relpath
from pathlib import Path
from urllib.parse import quote

from ...errors import InputError
from ...host.files.output_path import writing
from ...host.files.plain_json import read_record
from ...host.machine import cores
from ...pages.index.entries import Entry, entry_of_error, entry_of_report
from ...pages.index.page import write_index_page
from ...pages.index.ratings import Rating
from .folder import PAGE, PREVIEW, REPORT, REPORT_FORMAT

INDEX = "index.html"


def write_index(
    folder: Path,
    results: Iterable[Path],
    errors: Mapping[str, str] | None = None,
    ratings: Mapping[str, Rating] | None = None,
) -> Path:
    """Write the page of several registrations and return its path.

    Args:
        folder: where it belongs; its links are relative to it.
        results: folders of results, inside or beside it.
        errors: registrations that ended with an error, by name.
        ratings: ratings that the page starts with.

    Raises:
        InputError: one of the folders holds no complete result, or the page cannot be written.
    """
    with ThreadPoolExecutor(cores()) as pool:
        entries = list(pool.map(lambda result: _entry(result, folder), results))
    entries += [entry_of_error(name, error) for name, error in (errors or {}).items()]
    path = folder / INDEX
    with writing(f"to {folder}"):
        write_index_page(path, folder.absolute().name, entries, ratings)
    return path


def results_in(folder: Path) -> list[Path]:
    """Return the folders below a folder, or itself, that hold a complete result, in order of their names."""
    return sorted(path.parent for path in folder.rglob(REPORT) if read_record(path, REPORT_FORMAT))


def _entry(result: Path, folder: Path) -> Entry:
    report = read_record(result / REPORT, REPORT_FORMAT)
    if not report:
        raise InputError(f"{result} holds no {REPORT} of a registration")
    place = Path(relpath(result, folder))
    shown = next((name for name in (PAGE, PREVIEW) if (result / name).exists()), REPORT)
    return entry_of_report(place.as_posix(), report, quote((place / shown).as_posix()), result / PREVIEW)
