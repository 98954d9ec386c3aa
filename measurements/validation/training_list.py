"""Write a small part of the validation as prepared pairs, for `train --validation`.

    python -m measurements.validation.training_list --data DIR --output runs/validation

Each pair is aligned by the affine initialisation and resampled on its working grid with both label maps. The labels of
the template are the majority vote of the subjects after RP-Net. `make train-on` validates on the list if it exists.
"""

import csv
from functools import partial
from pathlib import Path

import click
import numpy as np

from measurements.validation.methods import Method, parse_options
from measurements.validation.run import Folder, ReadyCouple, key_of, run
from measurements.validation.scans import Catalogue, Couple, Scan
from measurements.validation.template import majority
from runtime.backends.engines import OpenEngines
from runtime.commands.terminal import one_line_errors
from runtime.geometry.grid import Grid
from runtime.images.formats.nifti_writer import write_volume
from runtime.images.overlap import common_labels
from runtime.images.resampling.resample import resample
from runtime.images.volume import Volume, read_labels, read_volume
from runtime.registration.engines import open_engines

COLUMNS = ("fixed", "moving", "fixed_labels", "moving_labels", "group")
# Couples of half "a" and their direction.
CHOSEN = (
    ("chain.s9-s11", "forward"),
    ("pair.fixed-moving", "forward"),
    ("pair.fixed-moving", "backward"),
    ("across.fixed-s3", "forward"),
    ("across.fixed-s9", "backward"),
    ("across.moving-s6", "forward"),
    ("across.moving-s12", "backward"),
    ("template.mni152-s9", "forward"),
    ("template.mni152-s3", "backward"),
    ("contrast.s3-s4.contrast", "forward"),
)


def template_labels(couples: list[Couple], engines: OpenEngines, folder: Folder) -> Path:
    """Write the majority vote of the subjects' labels warped to the template by RP-Net; return the file.

    Args:
        couples: those of the template group.
        engines: open engines.
        folder: output folder.
    """
    path = folder.path / "template_labels.nii.gz"
    if not path.exists():
        rpnet = Method("", "1,1,1,1", parse_options("1,1,1,1"))
        run(couples, [rpnet], engines, "auto", folder, partial(click.echo, err=True))
        key = key_of(rpnet, dict(engines.engine_set.hashes), "auto")
        maps = [np.load(folder.warped_labels(couple, key))["carried"] for couple in couples]
        write_volume(path, majority(maps).astype(np.int32), read_volume(couples[0].one.image, "template").grid)
    return path


def write_pair(couple: Couple, direction: str, engines: OpenEngines, folder: Folder, template: Path) -> dict[str, str]:
    """Write the images and labels of one pair on its working grid; return its line of the list."""
    ready = ReadyCouple(couple, engines, "auto", folder).pairs[direction].ready
    fixed, moving = (couple.one, couple.other)[:: 1 if direction == "forward" else -1]
    labels = [
        _on_grid(_labels(scan, template), ready.grid, affine)
        for scan, affine in ((fixed, None), (moving, ready.affine))
    ]
    scored = [label for label in common_labels(*labels) if couple.labels is None or label in couple.labels]
    maps = [np.where(np.isin(each, scored), each, 0) for each in labels]
    row = {"group": couple.group}
    for name, data in zip(COLUMNS[:4], (ready.fixed, ready.moving, *maps), strict=True):
        row[name] = f"{couple.name}.{direction}.{name}.nii.gz"
        write_volume(folder.path / row[name], data, ready.grid)
    return row


def _labels(scan: Scan, template: Path) -> Volume:
    return read_labels(scan.labels or template, "labels")


def _on_grid(labels: Volume, grid: Grid, affine: np.ndarray | None) -> np.ndarray:
    return resample(labels.data, labels.grid, grid, affine, "nearest").astype(np.int32)


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Holds pair/ and mindboggle/.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Folder for images and pairs.csv.")
@click.option("--engine-dir", type=click.Path(path_type=Path), default="engines", show_default=True)
@click.option("--threads", type=click.IntRange(min=1))
@one_line_errors
def main(data: Path, output: Path, engine_dir: Path, threads: int | None) -> None:
    folder, catalogue = Folder(output), Catalogue(data, output / "scans")
    couples = {couple.name: couple for couple in catalogue.couples()}
    with open_engines(engine_dir, threads=threads) as engines:
        subjects = [couple for couple in couples.values() if couple.group == "template"]
        template = template_labels(subjects, engines, folder)
        rows = [write_pair(couples[name], direction, engines, folder, template) for name, direction in CHOSEN]
    with (output / "pairs.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    click.echo(f"wrote {output / 'pairs.csv'}: {len(rows)} pairs")


if __name__ == "__main__":
    main()
