"""Write the list of real pairs for `cli.py evaluate`: two brains of a tutorial, and Mindboggle's subjects in a chain.

    python -m measurements.real_pairs_list --data DIR --output pairs.csv
    python cli.py evaluate --pairs pairs.csv --output scores

`--data` holds `pair/{fixed,moving}_{t1,labels}.nii.gz` and `mindboggle/sN_{t1,labels}.nii.gz`; none of it is part of
this project. A pair sA-sB has fixed sA and moving sB. `pair` is scored on its 30 structures, the others on every label
that both maps hold with 50 voxels or more.
"""

import csv
from itertools import pairwise
from pathlib import Path

import click

COLUMNS = ("name", "fixed", "moving", "fixed_labels", "moving_labels", "label_ids")
PAIR_LABELS = (2, 3, 4, 7, 8, 10, 11, 12, 13, 14, 15, 16, 17, 18, 24, 28, 31, 41, 42, 43, 46, 47, 49, 50, 51, 52, 53)
PAIR_LABELS += (54, 60, 63)
SUBJECTS = (3, 4, 6, 7, 9, 11, 12, 13, 14, 16, 17, 18)
ALL = ("pair", *(f"s{a}-s{b}" for a, b in pairwise(SUBJECTS)))


def files(data: Path, name: str) -> tuple[Path, Path, Path, Path]:
    """Return the paths of fixed, moving, fixed labels and moving labels of a pair."""
    folder, sides = ("pair", ("fixed", "moving")) if name == "pair" else ("mindboggle", name.split("-"))
    found = tuple(data / folder / f"{side}_{kind}.nii.gz" for kind in ("t1", "labels") for side in sides)
    for file in found:
        if not file.is_file():
            raise click.ClickException(f"--data: {file} is missing; give the folder that holds pair/ and mindboggle/")
    return found


def row(data: Path, name: str) -> dict[str, str]:
    """Return one line of the list."""
    ids = " ".join(map(str, PAIR_LABELS)) if name == "pair" else ""
    return dict(zip(COLUMNS, (name, *(str(file.resolve()) for file in files(data, name)), ids), strict=True))


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--data", type=click.Path(path_type=Path), required=True)
@click.option("--pairs", default=",".join(ALL), show_default=True)
@click.option("--output", type=click.Path(path_type=Path), required=True, help="CSV.")
def main(data: Path, pairs: str, output: Path) -> None:
    rows = [row(data, name) for name in pairs.split(",")]
    with output.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
