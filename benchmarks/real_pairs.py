"""Registers real pairs with an engine set and prints Dice, folds, iterations and time, before and after, as a table.

    python benchmarks/real_pairs.py --engine-dir engines/ --data ../shared/data --pairs pair,s3-s4,s4-s6

`--data` holds `pair/{fixed,moving}_{t1,labels}.nii.gz` and `mindboggle/sN_{t1,labels}.nii.gz`; none of it is part of
this project. A pair sA-sB has fixed sA and moving sB. Dice is the mean over labels present in both scans with at least
50 voxels, for `pair` over its 30 structures.
"""

import json
import sys
from pathlib import Path

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import runtime
from runtime.geometry.overlap import common_labels, mean_dice
from runtime.geometry.transform import SpatialTransform
from runtime.geometry.volume import read_labels
from runtime.resample import resample_through

PAIR_LABELS = (2, 3, 4, 7, 8, 10, 11, 12, 13, 14, 15, 16, 17, 18, 24, 28, 31, 41, 42, 43, 46, 47, 49, 50, 51, 52, 53)
PAIR_LABELS += (54, 60, 63)
COLUMNS = ("pair", "labels", "Dice affine", "Dice", "NCC affine", "NCC", "folded %", "iterations", "seconds")


def files(data: Path, pair: str) -> tuple[Path, Path, Path, Path]:
    """Fixed, moving, fixed labels, moving labels of a pair."""
    if pair == "pair":
        names = [data / "pair" / f"{role}_{kind}.nii.gz" for kind in ("t1", "labels") for role in ("fixed", "moving")]
    else:
        names = [data / "mindboggle" / f"{s}_{kind}.nii.gz" for kind in ("t1", "labels") for s in pair.split("-")]
    for name in names:
        if not name.is_file():
            raise click.ClickException(f"--data: {name} is absent; give the folder that holds pair/ and mindboggle/")
    return tuple(names)


def run(engines, data: Path, pair: str, options: runtime.Options) -> dict:
    fixed, moving, fixed_labels, moving_labels = files(data, pair)
    result = runtime.register(fixed, moving, engines, options, moving_labels)
    truth = read_labels(fixed_labels, "fixed labels").data
    labels = PAIR_LABELS if pair == "pair" else common_labels(truth, result.labels.data)
    transform, grid = result.transform, result.fixed.grid
    still = SpatialTransform(transform.affine, np.zeros_like(transform.flow), transform.grid)
    affine_only = resample_through(result.labels.data, result.labels.grid, still.displacement(grid), grid, "nearest", 0)
    return {
        "pair": pair,
        "labels": len(labels),
        "Dice affine": mean_dice(truth, affine_only, labels),
        "Dice": mean_dice(truth, result.warped_labels, labels),
        "NCC affine": result.similarity_before,
        "NCC": result.iterations.similarity,
        "folded %": 100 * result.folded_share,
        "iterations": " + ".join(str(counts) for counts in result.iterations.counts),
        "seconds": sum(result.seconds.values()),
        "stages": result.seconds,
    }


def row(cells) -> str:
    return "| " + " | ".join(f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in cells) + " |"


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--engine-dir", type=click.Path(path_type=Path), default="engines")
@click.option("--data", type=click.Path(path_type=Path), default="../shared/data", show_default=True)
@click.option("--pairs", default="pair,s3-s4,s4-s6,s6-s7,s7-s9", show_default=True)
@click.option("--schedule", default="iterstop")
@click.option("--on-stop", default=None)
@click.option("--affine", default="auto")
@click.option("--backend", default="auto", show_default=True)
@click.option("--precision", default="auto", show_default=True)
@click.option("--threads", type=int)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the figures here as well.")
def main(engine_dir, data, pairs, schedule, on_stop, affine, backend, precision, threads, json_path) -> None:
    options = runtime.Options(affine=affine, schedule=schedule, on_stop=on_stop)
    records = []
    click.echo(row(COLUMNS) + "\n" + row(["---"] * len(COLUMNS)))
    with runtime.open_engines(engine_dir, backend, threads, precision) as engines:
        for pair in pairs.split(","):
            records.append(run(engines, data, pair, options))
            click.echo(row(records[-1][column] for column in COLUMNS))
    numbers = [c for c in COLUMNS if isinstance(records[0][c], float)]
    means = {c: float(np.mean([record[c] for record in records])) for c in numbers}
    click.echo(row(means.get(c, "mean" if c == "pair" else "") for c in COLUMNS))
    if json_path:
        json_path.write_text(json.dumps(records, indent=2) + "\n")


if __name__ == "__main__":
    main()
