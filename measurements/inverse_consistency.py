"""Register real pairs and print the accuracy of the inverse of each transform, as a Markdown table.

    python -m measurements.inverse_consistency --data DIR --pairs pair,s3-s4

For every voxel x of the fixed foreground (above 0) where the Jacobian determinant is positive: |inverse(forward(x)) -
x| in mm, "solved" with the inverse solved at forward(x), "on the grid" with the displacement field on the moving grid,
as written to a file, interpolated at forward(x). The columns before give that field's residuals |T(x) - y| at the
voxels y of the moving grid, the share of voxels for which no x was found within the tolerance, and its seconds.
`--data` as in real_pairs_list.py.
"""

import time
from pathlib import Path

import click
import numpy as np

import runtime
from measurements.real_pairs_list import ALL, files
from runtime.geometry.inverse import invert_displacement
from runtime.geometry.jacobian import folded_share, jacobian_of_displacement
from runtime.geometry.transform import from_displacement
from runtime.images.volume import read_volume

COLUMNS = (
    *("pair", "folded %", "seconds", "residual mean", "max", "unresolved %"),
    *("solved: mean", "p95", "max", "on the grid: mean", "p95", "max"),
)


def spread(errors: np.ndarray) -> list[float]:
    """Return mean, 95th percentile and maximum."""
    return [float(errors.mean()), float(np.percentile(errors, 95)), float(errors.max())]


def figures(engines, fixed: Path, moving: Path, options: runtime.Options) -> list[float]:
    """Return the row of one pair without its name."""
    result = runtime.register(fixed, moving, engines, options)
    transform, grid, end = result.transform, result.fixed.grid, result.moving.grid
    begin = time.perf_counter()
    inversion = invert_displacement(transform, end)
    seconds = time.perf_counter() - begin
    determinant = jacobian_of_displacement(result.displacement, grid)
    foreground = read_volume(fixed, "fixed").data > 0
    points = grid.to_physical(np.argwhere(foreground & (determinant > 0)).astype(np.float64))
    there = transform.points(points)
    solved = np.linalg.norm(transform.inverse().points(there) - points, axis=1)
    on_grid = np.linalg.norm(from_displacement(inversion.displacement, end).points(there) - points, axis=1)
    left = [inversion.residual_mm["mean"], inversion.residual_mm["max"], 100 * inversion.unresolved_share]
    return [100 * folded_share(determinant, foreground), seconds, *left, *spread(solved), *spread(on_grid)]


def row(cells) -> str:
    return "| " + " | ".join(f"{cell:.2g}" if isinstance(cell, float) else cell for cell in cells) + " |"


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--engine-dir", default="engines", show_default=True)
@click.option("--data", type=click.Path(path_type=Path), required=True)
@click.option("--pairs", default=",".join(ALL), show_default=True)
@click.option("--schedule", default="iterstop", show_default=True)
@click.option("--threads", type=int)
def main(engine_dir: str, data: Path, pairs: str, schedule: str, threads: int | None) -> None:
    rows = []
    with runtime.open_engines(engine_dir, threads=threads) as engines:
        for pair in pairs.split(","):
            fixed, moving, *_ = files(data, pair)
            rows.append(figures(engines, fixed, moving, runtime.Options(schedule=schedule)))
            click.echo(f"{pair}: mean {rows[-1][5]:.3f} mm", err=True)
    click.echo(row(COLUMNS) + "\n" + row(["---"] * len(COLUMNS)))
    for name, cells in zip(pairs.split(","), rows, strict=True):
        click.echo(row([name, *cells]))
    if len(rows) > 1:
        click.echo(row(["mean", *map(float, np.mean(rows, axis=0))]))


if __name__ == "__main__":
    main()
