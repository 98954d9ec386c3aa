"""Registers real pairs with engine sets and schedules, and prints Dice, folds and iterations side by side.

    python benchmarks/real_pairs.py --engine-dir engines/ --engine-dir /tmp/mind --schedule 1,1,1,1 --schedule iterstop

`--data` holds `pair/{fixed,moving}_{t1,labels}.nii.gz` and `mindboggle/sN_{t1,labels}.nii.gz`; none of it is part of
this project. A pair sA-sB has fixed sA and moving sB. Dice is the mean over labels present in both scans with at least
50 voxels, for `pair` over its 30 structures. The last rows are means: of the Mindboggle pairs, and of all.
"""

import json
import sys
from itertools import pairwise
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
SUBJECTS = (3, 4, 6, 7, 9, 11, 12, 13, 14, 16, 17, 18)
CHAIN = ",".join(("pair", *(f"s{a}-s{b}" for a, b in pairwise(SUBJECTS))))
FIGURES = ("Dice", "folded %", "NCC", "seconds")


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
    """One registration's figures, and those of its affine start."""
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
        "NCC affine": result.similarity_before,
        "Dice": mean_dice(truth, result.warped_labels, labels),
        "NCC": result.iterations.similarity,
        "folded %": 100 * result.folded_share,
        "iterations": " + ".join(str(counts) for counts in result.iterations.counts),
        "seconds": sum(result.seconds.values()),
        "stages": result.seconds,
    }


def row(cells) -> str:
    return "| " + " | ".join(f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in cells) + " |"


def table(records: list[dict], columns: list[str], figure: str) -> list[str]:
    """One line a pair and one column an engine set and schedule; means of the Mindboggle pairs and of all below."""
    pairs = list(dict.fromkeys(record["pair"] for record in records))
    value = {(record["pair"], record["column"]): record[figure] for record in records}
    start = {record["pair"]: record.get(f"{figure} affine", "") for record in records}
    lines = [row([figure, "affine only", *columns]), row(["---"] * (len(columns) + 2))]
    lines += [row([pair, start[pair], *(value[pair, column] for column in columns)]) for pair in pairs]
    if isinstance(records[0][figure], str):
        return lines
    for name, chosen in (("mean of Mindboggle", [p for p in pairs if p != "pair"]), ("mean of all", pairs)):
        if chosen:
            affine = float(np.mean([start[p] for p in chosen])) if start[chosen[0]] != "" else ""
            means = [float(np.mean([value[p, column] for p in chosen])) for column in columns]
            lines.append(row([name, affine, *means]))
    return lines


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--engine-dir", "folders", multiple=True, default=("engines",), show_default=True, help="One or several.")
@click.option("--data", type=click.Path(path_type=Path), default="../shared/data", show_default=True)
@click.option("--pairs", default=CHAIN, show_default=True)
@click.option("--schedule", "schedules", multiple=True, default=("iterstop",), show_default=True, help="Likewise.")
@click.option("--on-stop", default=None)
@click.option("--affine", default="auto")
@click.option("--backend", default="auto", show_default=True)
@click.option("--precision", default="auto", show_default=True)
@click.option("--threads", type=int)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the figures here as well.")
def main(folders, data, pairs, schedules, on_stop, affine, backend, precision, threads, json_path) -> None:
    records, columns = [], []
    for folder in folders:
        with runtime.open_engines(folder, backend, threads, precision) as engines:
            for schedule in schedules:
                options = runtime.Options(affine=affine, schedule=schedule, on_stop=on_stop)
                columns.append(f"{folder} {schedule}")
                for pair in pairs.split(","):
                    records.append({"column": columns[-1]} | run(engines, data, pair, options))
                    click.echo(f"{columns[-1]} {pair}: Dice {records[-1]['Dice']:.3f}", err=True)
    for figure in (*FIGURES[:2], "iterations", *FIGURES[2:]):
        click.echo("\n".join(table(records, columns, figure)) + "\n")
    if json_path:
        json_path.write_text(json.dumps(records, indent=2) + "\n")


if __name__ == "__main__":
    main()
