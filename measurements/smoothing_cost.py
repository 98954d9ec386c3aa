"""Time the smoothing of residuals and the iteration it is added to, in turn, on images cropped or padded to one size.

    python -m measurements.smoothing_cost --fixed FIXED --moving MOVING

"smoothed" is smoothing the residual of every level once, "made once" the preparation of all levels from the fixed
image, "iteration" one iteration at level 1 without smoothing, "share" the ratio of "smoothed" to "iteration". Medians
of --runs, wall-clock time; cores may be shared, so the share is more reliable than the times.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import click
import numpy as np

import runtime
from runtime.backends.engines import SHIPPED
from runtime.backends.pair import EnginePair
from runtime.geometry.smoothing import RECOMMENDED_SIGMA
from runtime.loop.schedules import LEVELS
from runtime.workflows.benchmark.pairs import RealPair

Array = np.ndarray


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(pair: EnginePair, fields, fixed: Array, sigma: float, runs: int) -> dict[str, float]:
    """Return the medians of the times that the module docstring defines, after one warm-up round."""
    residuals = {level: pair.step(level, pair.zero(level)) for level in LEVELS}
    images = {1: fixed}
    for level in sorted(LEVELS)[1:]:
        images[level] = fields.halve(images[level - 1])
    smoothers = {level: fields.smoother(image, sigma) for level, image in images.items()}
    parts = {
        "made once": lambda: [fields.smoother(image, sigma) for image in images.values()],
        "smoothed": lambda: [smoothers[level](residuals[level]) for level in LEVELS],
        "iteration": lambda: pair.step(1, residuals[1]),
    }
    rounds = [{name: seconds(work) for name, work in parts.items()} for _ in range(runs + 1)][1:]
    found = {name: median(each[name] for each in rounds) for name in parts}
    return {**found, "share": median(each["smoothed"] / each["iteration"] for each in rounds)}


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--fixed", type=click.Path(path_type=Path), required=True)
@click.option("--moving", type=click.Path(path_type=Path), required=True)
@click.option("--engine-dir", type=click.Path(path_type=Path), default=SHIPPED)
@click.option("--backend", default="native", show_default=True)
@click.option("--crop-to", type=int, nargs=3, default=(160, 192, 160), show_default=True)
@click.option("--threads", type=int, multiple=True, default=(1, 2), show_default=True)
@click.option("--sigma", default=RECOMMENDED_SIGMA, show_default=True)
@click.option("--runs", default=5, show_default=True)
def main(fixed, moving, engine_dir, backend, crop_to, threads, sigma, runs) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pair.npz"
        RealPair(fixed, moving, engine_dir, crop_to).make(path)
        with np.load(path) as arrays:
            images = arrays["fixed"], arrays["moving"]
    click.echo("| threads | made once, ms | smoothed, ms | iteration, ms | share, % |\n" + "| --- " * 5 + "|")
    for count in threads:
        with runtime.open_engines(engine_dir, backend, count) as engines, engines.running():
            ready = [engines.fields.to_device(image) for image in images]
            pair = engines.fixed_side(ready[0], "ncc").pair(ready[1])
            found = measure(pair, engines.fields, ready[0], sigma, runs)
        times = (f"{1000 * found[name]:.0f}" for name in ("made once", "smoothed", "iteration"))
        click.echo(f"| {count} | {' | '.join(times)} | {100 * found['share']:.1f} |")


if __name__ == "__main__":
    main()
