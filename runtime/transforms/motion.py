"""Motion of a series: one transform for each volume, in files of any convention that can be read."""

import glob
import re
from pathlib import Path

from ..errors import InputError, explained
from ..geometry.transform import Transform
from ..images.volume import Volume
from . import read_transform


@explained("--motion")
def read_motion(text: str, series: Volume, convention: str) -> tuple[Transform, ...]:
    """Read the transforms, RAS mm, from the end of a chain into each volume of a series.

    Args:
        text: folder or glob of as many files as volumes, in the order of their names (MAT_2 before MAT_10).
        series: the series; FLIRT's matrices refer to its grid.
        convention: convention of the files that do not say theirs.

    Raises:
        InputError: not a series, another number of files than of volumes, or a file that is not a transform.
    """
    if series.step is None:
        raise InputError(f"--motion: is for a 4-D series, but {series.path} has one volume; give its transform with -t")
    files, volumes = _files(text), series.data.shape[3]
    if len(files) != volumes:
        raise InputError(f"--motion: {text} holds {len(files)} files, expected one for each of the {volumes} volumes")
    return tuple(read_transform(path, "--motion", convention, series.grid, series.grid).transform for path in files)


def _files(text: str) -> list[Path]:
    """Return the files of a folder or glob, sorted, without those whose names begin with a dot."""
    folder = Path(text)
    found = folder.iterdir() if folder.is_dir() else map(Path, glob.glob(text))
    return sorted((path for path in found if path.is_file() and not path.name.startswith(".")), key=_counted)


def _counted(path: Path) -> list[tuple[int, str]]:
    """Return a sort key that orders names by the numbers in them: MAT_2 before MAT_10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)]
