"""Round trips of transforms through other tools: convention x tool x grid, worst error in mm and of the image.

    python -m measurements.round_trips [--output table.md]

Known maps (shifts, rotations and scales along each axis, an affine, a smooth nonlinear map, a registration's transform)
on five pairs of grids are written by us and applied by the tool, and written by the tool and applied by us. The truth
is closed-form; for images, it is resampled by SciPy. Needs requirements.txt, no engines and no data; fslpy and surfa
are used as well if they are installed.
"""

import argparse
import importlib.metadata
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

from measurements.round_trip_tools import add_installed
from runtime.host.files.whole_files import write_text
from tests.transforms.round_trip_cases import (
    COMPACT_MM,
    COMPACT_SHARE,
    FIXED,
    IMAGE_SHARE,
    MAPS,
    POINTS_MM,
    Case,
    write_images,
)
from tests.transforms.round_trip_tools import AFFINE_FILES, APPLY, WRITE, Key, holds, read_back, written

TOOLS = ("SimpleITK", "antspyx", "nitransforms", "fslpy", "surfa", "nibabel", "scipy", "numpy")
Errors = list[tuple[float, float]]
BOUNDS = {  # direction: mm, share of the intensity range
    "written by us": (POINTS_MM, IMAGE_SHARE),
    "written by us, compact": (COMPACT_MM, COMPACT_SHARE),
    "read by us": (POINTS_MM, IMAGE_SHARE),
}


def main() -> None:
    """Run everything and print the table as Markdown; exit status 1 if a case is out of bounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="also write the table to this file")
    output = parser.parse_args().output
    warnings.simplefilter("ignore")
    add_installed()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder))
    text = "\n".join([*versions(), "", *table(found), "", summary(found)]) + "\n"
    print(text, end="")
    if output:
        write_text(output, text)
    sys.exit(any(not within(error, key[0]) for key, errors in found.items() for error in errors))


def measure(folder: Path) -> dict[tuple[str, Key, str], Errors]:
    """Return errors (mm, share of the intensity range) of maps a file can hold, by direction, key and fixed grid."""
    found: dict[tuple[str, Key, str], Errors] = {}
    for place in FIXED:
        images = write_images(folder, place)
        for case in (Case(place, name, *images) for name in MAPS):
            for direction, key, error in errors_of(case, folder):
                found.setdefault((direction, key, place), []).append(error)
        print(f"{place}: done", file=sys.stderr)
    return found


def errors_of(case: Case, folder: Path) -> Iterator[tuple[str, Key, tuple[float, float]]]:
    """Yield the errors of a case through every tool, in both directions."""
    for key, apply in APPLY.items():
        if holds(key[1], case):
            places, image = apply(written(folder, key, case), case)
            yield "written by us", key, (case.miss(places), case.difference(image))
        if key[1] not in AFFINE_FILES:
            places, image = apply(written(folder, key, case, compact=True), case)
            yield "written by us, compact", key, (case.miss(places), case.difference(image))
    for key, write in WRITE.items():
        if holds(key[1], case):
            places, image = read_back(write(folder, case), key, case)
            yield "read by us", key, (case.miss(places), case.difference(image))


def within(error: tuple[float, float], direction: str) -> bool:
    """Return True if errors (mm, share of the intensity range) are within the bounds of a direction."""
    return error[0] <= BOUNDS[direction][0] and error[1] <= BOUNDS[direction][1]


def versions() -> Iterator[str]:
    """Yield the versions of the tools."""
    for name in TOOLS:
        try:
            yield f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            yield f"{name} not installed"


def table(found: dict[tuple[str, Key, str], Errors]) -> Iterator[str]:
    """Yield a Markdown table, a row per direction, file and tool; cells are the worst mm / the worst image error."""
    yield f"| file | tool | {' | '.join(FIXED)} | cases | within |"
    yield f"| --- | --- | {' | '.join('---' for _ in FIXED)} | --- | --- |"
    for direction in BOUNDS:
        for key in dict.fromkeys(key for way, key, _ in found if way == direction):
            rows = [found[direction, key, place] for place in FIXED]
            cells = [" / ".join(f"{max(values):.0e}" for values in zip(*errors, strict=True)) for errors in rows]
            every = [error for errors in rows for error in errors]
            share = sum(within(error, direction) for error in every) / len(every)
            what = f"{key[0]} {key[1]}, {direction}"
            yield f"| {what} | {key[2]} | {' | '.join(cells)} | {len(every)} | {100 * share:.0f} % |"


def summary(found: dict[tuple[str, Key, str], Errors]) -> str:
    """Summarise all cases with their worst errors, a line per direction."""
    lines = []
    for direction, bounds in BOUNDS.items():
        every = [error for (way, _, _), errors in found.items() if way == direction for error in errors]
        distance, image = (max(values) for values in zip(*every, strict=True))
        share = 100 * sum(within(error, direction) for error in every) / len(every)
        limits = f"{bounds[0]} mm and {bounds[1]} of the intensity range"
        worst = f"worst {distance:.1e} mm and {image:.1e}"
        lines.append(f"{direction}: {len(every)} cases, {share:.1f} % within {limits}; {worst}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
