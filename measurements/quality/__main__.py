"""Run cases with a known outcome on scans with labels, and record figures and Dice of each.

    python -m measurements.quality --scans scans.csv --output runs/cases.csv --body shared/data/ct/body_ct.nii.gz

`scans.csv` has the columns name, image, labels, half; both scans of a pair are of one half. Run again, it goes on.
"""

import csv
from pathlib import Path

import click

import runtime
from measurements.quality.cases import Subject, entries
from measurements.quality.run import Records, plan, run
from runtime.images.volume import read_labels, read_volume


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--scans", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--output", type=click.Path(path_type=Path), required=True)
@click.option("--engine-dir", default="engines", show_default=True)
@click.option("--body", type=click.Path(path_type=Path, exists=True), help="A scan of another body part.")
@click.option("--each", default=7, show_default=True, help="Number of cases made of each pair.")
@click.option("--half", help="Run only cases of this half.")
@click.option("--threads", type=int)
def main(scans: Path, output: Path, engine_dir: str, body: Path | None, each: int, half: str | None, threads: int):
    with scans.open(newline="") as file:
        rows = list(csv.DictReader(file))
    halves: dict[str, list[str]] = {}
    for row in rows:
        halves.setdefault(row["half"], []).append(row["name"])
    cases = list(plan(halves, entries(None if body is None else read_volume(body, "--body")), each))
    cases = [case for case in cases if half in (None, case.half)]
    used = {name for case in cases for name in (case.fixed, case.moving)}
    subjects = {
        row["name"]: Subject(row["name"], read_volume(row["image"], "image"), read_labels(row["labels"], "labels"))
        for row in rows
        if row["name"] in used
    }
    with runtime.open_engines(engine_dir, threads=threads) as engines:
        run(cases, subjects, engines, Records(output), click.echo)


if __name__ == "__main__":
    main()
