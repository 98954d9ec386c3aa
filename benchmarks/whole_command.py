"""Time and peak memory of the whole `register` command, and of the eager PyTorch loop on the same images, in turn.

    python benchmarks/whole_command.py --checkpoint best.pt --fixed F --moving M --runs 3

Each run is a process of its own, A B A B ..., so that both see the same machine; figures are medians. The PyTorch loop
is the definition the parity gate uses: same weights, same images on the working grid, same schedule; its time is the
loop's alone, imports and reading not counted, its memory the whole process's.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def process(arguments: list[str]) -> tuple[str, float, float]:
    """Runs a command; its output, wall-clock seconds and peak memory in GB."""
    start = time.perf_counter()
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, cwd=ROOT) as child:
        output = child.stdout.read()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise click.ClickException(f"{' '.join(arguments)} failed with code {child.returncode}")
    return output, time.perf_counter() - start, usage.ru_maxrss / 1e6


def torch_loop(checkpoint: Path, images: Path, schedule: str, threads: int) -> None:
    """Body of the PyTorch process: prints seconds and iteration counts as JSON."""
    import torch

    from export.reference import register_with_torch
    from runtime.iterstop import parse_schedule
    from train.checkpoint import load_checkpoint

    torch.set_num_threads(threads)
    network, arrays = load_checkpoint(checkpoint).network(), np.load(images)
    start = time.perf_counter()
    result = register_with_torch(network, arrays["fixed"], arrays["moving"], parse_schedule(schedule))
    print(json.dumps({"seconds": time.perf_counter() - start, "counts": result.counts}))


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--checkpoint", type=click.Path(path_type=Path), required=True)
@click.option("--fixed", type=click.Path(path_type=Path), required=True)
@click.option("--moving", type=click.Path(path_type=Path), required=True)
@click.option("--schedule", default="iterstop", show_default=True)
@click.option("--threads", type=int, default=os.cpu_count(), show_default=True)
@click.option("--runs", type=int, default=3, show_default=True)
@click.option("--torch-images", type=click.Path(path_type=Path), hidden=True)
def main(checkpoint, fixed, moving, schedule, threads, runs, torch_images) -> None:
    if torch_images:
        return torch_loop(checkpoint, torch_images, schedule, threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shape = prepare(checkpoint, fixed, moving, folder)
        common = ["--fixed", fixed, "--moving", moving, "--schedule", schedule, "--threads", threads]
        ours = [sys.executable, "cli.py", "register", "--engine-dir", folder / "set", "--output", folder / "out"]
        ours += ["--overwrite", "--quiet", *common]
        theirs = [sys.executable, __file__, "--torch-images", folder / "images.npz", "--checkpoint", checkpoint]
        theirs += common
        records = {"register": [], "loop": [], "memory": [], "torch loop": [], "torch memory": [], "ratio": []}
        for _ in range(runs):
            _, seconds, memory = process(list(map(str, ours)))
            report = json.loads((folder / "out" / "report.json").read_text())
            output, _, torch_memory = process(list(map(str, theirs)))
            torch_run = json.loads(output)
            loop = sum(report["seconds"][stage] for stage in ("encode", "iterate"))
            row = (seconds, loop, memory, torch_run["seconds"], torch_memory, torch_run["seconds"] / loop)
            for values, value in zip(records.values(), row, strict=True):
                values.append(value)
            counts = report["iterations"]["counts"], torch_run["counts"]
    show(shape, threads, runs, counts, records)


def prepare(checkpoint: Path, fixed: Path, moving: Path, folder: Path) -> tuple[int, ...]:
    """Engines of this checkpoint, and the images as the network sees them, for the PyTorch process."""
    import runtime
    from export.publish import ExportOptions, export_checkpoint

    export_checkpoint(checkpoint, folder / "set", ExportOptions())
    with runtime.open_engines(folder / "set") as engines:
        result = runtime.register(fixed, moving, engines, runtime.Options(schedule="0,0,0,0"))
    np.savez(folder / "images.npz", fixed=result.working.fixed, moving=result.working.moving)
    return result.transform.grid.shape


def show(shape, threads: int, runs: int, counts, records: dict[str, list[float]]) -> None:
    median = {name: statistics.median(values) for name, values in records.items()}
    spread = {name: f"{min(values):.1f} to {max(values):.1f}" for name, values in records.items()}
    click.echo(f"working grid {shape}, {threads} threads, {runs} runs; iterations {counts[0]}, PyTorch {counts[1]}")
    click.echo("| | median | range |\n| --- | --- | --- |")
    units = {"register": "whole command, s", "loop": "of which the loop, s", "memory": "its peak memory, GB"}
    units |= {"torch loop": "eager PyTorch loop, s", "torch memory": "its peak memory, GB"}
    units |= {"ratio": "PyTorch loop / our loop"}
    for name, label in units.items():
        click.echo(f"| {label} | {median[name]:.2f} | {spread[name]} |")


if __name__ == "__main__":
    main()
