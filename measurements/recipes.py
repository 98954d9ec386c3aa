"""Train by several recipes for equally many steps from the same weights, in turn, and compare their final results.

    python -m measurements.recipes a.toml b.toml --start runs/long/last.pt --steps 400 --output runs/compared

The table compares the last line of each log.csv: means over the validation pairs. Options in `--with` go to every run:
`--with "--validation pairs.csv --validation-pairs 50"`. A complete run is not repeated, an interrupted one is resumed.
"""

import csv
import subprocess
import sys
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = {
    "seconds": "seconds",
    "local NCC": "local_ncc",
    "RP-Net Dice": "rpnet_dice",
    "folded": "rpnet_folded",
    "SDlogJ": "rpnet_sdlogj",
    "IterStop Dice": "iterstop_dice",
    "IterStop folded": "iterstop_folded",
    "IterStop SDlogJ": "iterstop_sdlogj",
    "iterations": "iterstop_iterations",
    "by group": "groups",
}


def train(recipe: Path, start: Path, steps: int, output: Path, further: tuple[str, ...]) -> None:
    """Run or resume one training at the lowest priority, with validation at its end; skip it if it is complete."""
    if (output / "log.csv").exists() and end(output)["step"] == str(steps):
        return
    goes_on = ("--resume",) if (output / "last.pt").exists() else ("--start", start)
    fixed = ("--recipe", recipe, "--steps", steps, "--validate-every", steps, "--output", output, *goes_on)
    command = ("nice", "-n", "19", sys.executable, ROOT / "cli.py", "train", *fixed, *further)
    subprocess.run([str(word) for word in command], check=True)


def end(output: Path) -> dict[str, str]:
    """Return the last line of a run's log."""
    with (output / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))[-1]


@click.command(help=__doc__.split("\n\n")[0])
@click.argument("recipes", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option(
    "--start", required=True, type=click.Path(path_type=Path, exists=True), help="Initial weights of all runs."
)
@click.option("--steps", default=400, show_default=True)
@click.option(
    "--output", required=True, type=click.Path(path_type=Path), help="Folder for the runs, one subfolder per recipe."
)
@click.option("--with", "further", default="", help="Options for every run, in one string.")
def main(recipes: tuple[Path, ...], start: Path, steps: int, output: Path, further: str) -> None:
    click.echo(f"| {steps} steps | {' | '.join(COLUMNS)} |\n|{' --- |' * (len(COLUMNS) + 1)}")
    for recipe in recipes:
        train(recipe, start, steps, output / recipe.stem, tuple(further.split()))
        found = end(output / recipe.stem)
        click.echo(f"| {recipe.stem} | {' | '.join(found[column] for column in COLUMNS.values())} |")


if __name__ == "__main__":
    main()
