"""Measure the time that each term of the training loss and the second direction add to a step, or their gradients.

    python -m measurements.loss_terms --shape 80,96,80 --rounds 7 --threads 1
    python -m measurements.loss_terms --start runs/shipped/last.pt --iterations 2,3,2,2

With --start: value and gradient norm of each term of weight 1, means over generated pairs; weights are chosen by them.

Every contender is the step of `train` with additions to the plain one. Seconds are processor time of the process: with
one thread, the time of a step on an idle core, however busy the machine is.
"""

import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import click
import torch

from measurements.training_speed import parsed
from runtime.host.machine import processor_name
from runtime.host.memory import keep_freed_memory
from train.loss.terms import bending, inverse_consistency, local_ncc, log_jacobian, smoothness
from train.model.fields import warp
from train.options import FitOptions
from train.steps.run import Run

CONTENDERS = {
    "plain": {},
    "bending": {"bending": 0.1},
    "log Jacobian": {"log_jacobian": 0.1},
    "Dice": {"dice": 0.1},
    "both directions": {"both_directions": True},
    "both and inverse consistency": {"both_directions": True, "inverse_consistency": 0.1},
    "both, all terms but Dice": {
        "both_directions": True, "inverse_consistency": 0.1, "bending": 0.1, "log_jacobian": 0.1,
    },
}  # fmt: skip


def measure(runs: dict[str, Run], rounds: int) -> dict[str, list[float]]:
    """Return the processor seconds of every step by contender; the first round is a warm-up."""
    pairs = [runs["plain"].sources.pair(2 * number) for number in range(2)]
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            before = time.process_time()
            run.train_step([pairs[number % len(pairs)]])
            seconds[name] += [time.process_time() - before] if number else []
            click.echo(f"\r{number}/{rounds} {name}          ", nl=False, err=True)
    click.echo(err=True)
    return seconds


def gradients(run: Run, pairs: int) -> dict[str, tuple[float, float]]:
    """Return value and norm of the weights' gradient of each term, means over some pairs in both directions."""
    found: dict[str, list[tuple[float, float]]] = {}
    for number in range(pairs):
        pair = run.sources.pair(number)
        moving = torch.stack((pair.moving, pair.fixed))[:, None]
        with run.numerics.autocast():
            flow = run.network.flows_both_ways(*moving.split(1), run.options.iterations)[1]
        terms = {"local NCC": local_ncc(moving.flip(0), warp(moving, flow), run.options.loss)}
        terms |= {term.__name__: term(flow) for term in (smoothness, bending, log_jacobian, inverse_consistency)}
        for name, term in terms.items():
            gradient = torch.autograd.grad(term, [*run.network.parameters()], retain_graph=True)
            norm = torch.cat([part.flatten() for part in gradient]).norm()
            found.setdefault(name, []).append((term.item(), norm.item()))
    return {name: tuple(statistics.fmean(column) for column in zip(*rows, strict=True)) for name, rows in found.items()}


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--shape", default="80,96,80", show_default=True, help="Multiples of 8.")
@click.option("--iterations", default="1,1,1,1", show_default=True, help="Maximum at levels 4,3,2,1, as for `train`.")
@click.option("--rounds", default=7, show_default=True, help="Timed steps of each, or pairs with --start.")
@click.option("--threads", default=1, show_default=True)
@click.option("--start", type=click.Path(path_type=Path, exists=True), help="Weights at which gradients are taken.")
def main(shape: str, iterations: str, rounds: int, threads: int, start: Path | None) -> None:
    torch.set_num_threads(threads)
    keep_freed_memory()
    counts = tuple(int(count) for count in iterations.split(","))
    usual = FitOptions(
        Path(tempfile.gettempdir()) / "loss-terms",  # named in the options, never written to
        shape=parsed(shape), loss="squared", iterations=counts, validation_pairs=1, device="cpu",
    )  # fmt: skip
    if start is not None:
        click.echo("| term | value | norm of its gradient |\n| --- | --- | --- |")
        run = Run(replace(usual, start=start, template="mni152", both_directions=True))
        for name, (value, norm) in gradients(run, rounds).items():
            click.echo(f"| {name} | {value:.3f} | {norm:.2f} |")
        return
    runs = {name: Run(replace(usual, **changes)) for name, changes in CONTENDERS.items()}
    seconds = {name: statistics.median(found) for name, found in measure(runs, rounds).items()}
    precision = runs["plain"].numerics.precision
    click.echo(f"{processor_name()}, {threads} threads, torch {torch.__version__}, {usual.shape}, {precision}")
    click.echo("| step | s, median | to the plain one |\n| --- | --- | --- |")
    for name, found in seconds.items():
        click.echo(f"| {name} | {found:.3f} | {found / seconds['plain']:.2f} |")


if __name__ == "__main__":
    main()
