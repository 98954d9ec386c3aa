"""Register inputs that break naive readers: each file against itself, and one brain in three orientations.

    python -m measurements.hostile_inputs --engine-dir engines/ --data DIR

`--data` holds `hostile/*` and `pair/fixed_t1.nii.gz`; none of it is part of this project.
"""

from pathlib import Path

import click
import numpy as np

import runtime

ORIENTATIONS = ("LIA", "PIR", "LPS")


def against_itself(engines, path: Path) -> str:
    try:
        result = runtime.register(path, path, engines, runtime.Options(schedule="1,1,1,1"))
    except runtime.InputError as error:
        return f"refused: {error}"
    shape = " x ".join(map(str, result.transform.grid.shape))
    length = np.linalg.norm(result.displacement, axis=-1)
    return f"registers on {shape}, displacement mean {length.mean():.2f} mm, largest {length.max():.2f} mm"


def orientation_differences(engines, data: Path) -> list[str]:
    fixed = data / "pair" / "fixed_t1.nii.gz"
    results = {o: runtime.register(fixed, data / "hostile" / f"{o}.nii.gz", engines) for o in ORIENTATIONS}
    first, *others = ORIENTATIONS
    lines = []
    for other in others:
        distance = np.linalg.norm(results[first].displacement - results[other].displacement, axis=-1)
        counts = " ".join(str(results[orientation].iterations.counts[0]) for orientation in (first, other))
        lines.append(f"| {first} against {other} | {distance.mean():.5f} | {distance.max():.5f} | {counts} |")
    return lines


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--engine-dir", type=click.Path(path_type=Path), default="engines")
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Folder of the scans.")
def main(engine_dir, data) -> None:
    folder = data / "hostile"
    if not folder.is_dir():
        raise click.ClickException(f"--data: {folder} is missing; give the folder that holds hostile/ and pair/")
    with runtime.open_engines(engine_dir) as engines:
        click.echo("| as moving image | mean difference, mm | largest, mm | iterations |\n| --- | --- | --- | --- |")
        for line in orientation_differences(engines, data):
            click.echo(line)
        click.echo("\n| file against itself | |\n| --- | --- |")
        for path in sorted(folder.iterdir()):
            click.echo(f"| {path.name} | {against_itself(engines, path)} |")


if __name__ == "__main__":
    main()
