"""Measure training steps per second and peak memory of `train` and of a naive implementation, in turn, in one run.

    python -m measurements.training_speed --shape 96,96,96 --rounds 7 --threads 2

"ours" is the step of `train`, "naive" a direct implementation of the paper's recipe: fp32, contiguous memory, warps by
`grid_sample`, and local NCC by convolution with a 9x9x9 box. Both train the same network from the same weights on the
same pairs, and must give the same losses, or the exit code is 1.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import torch
import torch.nn.functional as F
from torch import Tensor

from runtime.host.machine import peak_bytes, processor_name
from runtime.images.similarity import LNCC_EPSILON, LNCC_WINDOW
from train.data.image_pair import ImagePair
from train.model.network import LEVELS, RPNet
from train.options import FitOptions
from train.steps.run import Run

PAIRS = 4
TOLERANCE = {"fp32": 2e-3, "bf16": 5e-3, "fp16": 5e-3}  # of a step's loss, which is between -1 and 1
MEMORY_STEPS = 2
SPREAD = 30  # factor on the flows of a new network, which are so small that a wrong warp would not show


class Ours:
    """The training step of `train`."""

    name = "ours"

    def __init__(self, options: FitOptions) -> None:
        self.run = Run(options)
        with torch.no_grad():
            for estimator in self.run.network.estimators.values():
                estimator.flow.weight.mul_(SPREAD)
        numerics = self.run.numerics
        layout = "channels-last" if numerics.channels_last else "contiguous"
        self.facts = f"{numerics.precision}, {layout}{', compiled' if numerics.compiled else ''}"
        self.tolerance = TOLERANCE[numerics.precision]

    def step(self, pair: ImagePair) -> float:
        return self.run.train_step([pair]).total


class Naive:
    """The same recipe in plain PyTorch."""

    name, facts = "naive", "fp32, contiguous, grid_sample, box convolutions"

    def __init__(self, options: FitOptions, ours: Ours) -> None:
        self.smooth, self.form, self.device = options.smooth, options.loss, ours.run.numerics.device
        self.network = RPNet(ours.run.network.config)
        self.network.load_state_dict(ours.run.network.state_dict())
        self.network.to(self.device, memory_format=torch.contiguous_format)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=options.learning_rate)

    def step(self, pair: ImagePair) -> float:
        moving, fixed = pair.moving[None, None].to(self.device), pair.fixed[None, None].to(self.device)
        flow = self.flow(moving, fixed)
        loss = self.smooth * roughness(flow) - box_ncc(fixed, warp(moving, flow), self.form)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def flow(self, moving: Tensor, fixed: Tensor) -> Tensor:
        moving_features, fixed_features = self.network.encode(moving), self.network.encode(fixed)
        flow = None
        for level in LEVELS:
            features = moving_features[level]
            if flow is not None:
                flow = 2 * F.interpolate(flow, scale_factor=2, mode="trilinear", align_corners=True)
                features = warp(features, flow)
            residual = self.network.estimators[str(level)](torch.cat((features, fixed_features[level]), dim=1))
            flow = residual if flow is None else warp(flow, residual) + residual
        return flow


def warp(image: Tensor, flow: Tensor) -> Tensor:
    """Return ``image(x + flow(x))`` as in common tutorials: an align-corners grid from -1 to 1."""
    sizes = flow.shape[2:]
    axes = [torch.arange(size, device=flow.device, dtype=torch.float32) for size in sizes]
    place = torch.stack(torch.meshgrid(*axes, indexing="ij"))[None] + flow
    scaled = [2 * place[:, n] / (size - 1) - 1 for n, size in enumerate(sizes)]
    return F.grid_sample(image, torch.stack(scaled[::-1], dim=-1), align_corners=True)


def box_ncc(fixed: Tensor, warped: Tensor, form: str) -> Tensor:
    """Return the mean local correlation over 9^3 voxels by convolution with ones."""
    box, count = torch.ones(1, 1, *[LNCC_WINDOW] * 3, device=fixed.device), LNCC_WINDOW**3

    def total(image: Tensor) -> Tensor:
        return F.conv3d(image, box, padding=LNCC_WINDOW // 2)

    sum_f, sum_w = total(fixed), total(warped)
    cross = total(fixed * warped) - sum_f * sum_w / count
    var_f, var_w = total(fixed**2) - sum_f**2 / count, total(warped**2) - sum_w**2 / count
    product = var_f.clamp(min=0) * var_w.clamp(min=0) + LNCC_EPSILON
    return (cross**2 / product if form == "squared" else cross / product.sqrt()).mean()


def roughness(flow: Tensor) -> Tensor:
    return sum((flow.diff(dim=axis) ** 2).mean() for axis in (2, 3, 4)) / 3


def seconds(step: Callable[[ImagePair], float], pair: ImagePair, device: torch.device) -> tuple[float, float]:
    """Return the seconds of one step, until the device has finished, and its loss."""
    before = time.perf_counter()
    loss = step(pair)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - before, loss


def measure(contenders: tuple, pairs: list[ImagePair], rounds: int, device: torch.device) -> dict:
    """Return seconds and losses of every step by contender, one step each in turn; the first round is a warm-up."""
    results = {contender.name: {"seconds": [], "losses": []} for contender in contenders}
    for number in range(rounds + 1):
        for contender in contenders[:: 1 if number % 2 else -1]:
            took, loss = seconds(contender.step, pairs[number % len(pairs)], device)
            results[contender.name]["losses"].append(loss)
            results[contender.name]["seconds"] += [took] if number else []
            click.echo(f"\r{number}/{rounds} {contender.name} {took:.2f} s   ", nl=False, err=True)
    click.echo(err=True)
    return results


def peak_on_gpu(contender, pair: ImagePair, device: torch.device) -> float:
    """Return the peak MB allocated in a step, including weights and optimiser states of both contenders (10 MB)."""
    torch.cuda.reset_peak_memory_stats(device)
    contender.step(pair)
    return torch.cuda.max_memory_allocated(device) / 1e6


def peak_on_cpu(contender) -> float:
    """Return the peak MB, with Python and libraries, of a separate process in which the contender takes some steps."""
    command = [sys.executable, *sys.argv, "--peak-of", contender.name]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def own_peak(contender, pairs: list[ImagePair]) -> float:
    for pair in pairs[:MEMORY_STEPS]:
        contender.step(pair)
    return peak_bytes() / 1e6


def random_pairs(shape: tuple[int, int, int], seed: int) -> list[ImagePair]:
    """Return pairs of smooth random images; the time of a step does not depend on their content."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand((PAIRS, 2, *(size // 4 for size in shape)), generator=generator)
    images = F.interpolate(coarse, size=shape, mode="trilinear")
    return [ImagePair(moving.contiguous(), fixed.contiguous()) for moving, fixed in images]


def table(contenders: tuple, results: dict) -> str:
    lines = ["| | s/step (median, min) | steps/s | peak MB | how |", "| --- | --- | --- | --- | --- |"]
    for contender in contenders:
        found = results[contender.name]
        median, least = statistics.median(found["seconds"]), min(found["seconds"])
        peak = f"{found['peak_mb']:.0f}" if "peak_mb" in found else "not measured"
        cells = (contender.name, f"{median:.3f}, {least:.3f}", f"{1 / median:.2f}", peak, contender.facts)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def parsed(text: str) -> tuple[int, int, int]:
    return tuple(int(size) for size in text.split(","))


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--shape", default="96,96,96", show_default=True, help="Multiples of 8.")
@click.option("--rounds", default=7, show_default=True, help="Timed steps of each.")
@click.option("--threads", type=int, help="CPU threads; default: torch's choice.")
@click.option("--device", default="auto", show_default=True)
@click.option("--precision", default="auto", show_default=True, help="Precision of ours.")
@click.option("--compile", "compiled", is_flag=True, help="Use torch.compile for ours.")
@click.option("--memory/--no-memory", default=True, help="Measure peak memory too.")
@click.option("--output", type=click.Path(path_type=Path), help="JSON of every step.")
@click.option("--peak-of", hidden=True)
def main(shape, rounds, threads, device, precision, compiled, memory, output, peak_of) -> None:
    if threads:
        torch.set_num_threads(threads)
    folder = Path(tempfile.gettempdir()) / "training-speed"  # named in the options, never written to
    options = FitOptions(
        folder, shape=parsed(shape), validation_pairs=1, device=device, precision=precision, compile=compiled
    )
    pairs = random_pairs(options.shape, seed=0)
    ours = Ours(options)
    naive = Naive(options, ours)
    contenders = (ours, naive)
    if peak_of:
        click.echo(own_peak(next(c for c in contenders if c.name == peak_of), pairs))
        return
    place = ours.run.numerics.device
    results = measure(contenders, pairs, rounds, place)
    for contender in contenders if memory else ():
        on_gpu = place.type == "cuda"
        results[contender.name]["peak_mb"] = (
            peak_on_gpu(contender, pairs[0], place) if on_gpu else peak_on_cpu(contender)
        )
    report(options, contenders, results, place, output)


def report(options: FitOptions, contenders: tuple, results: dict, place: torch.device, output: Path | None) -> None:
    ours, naive = (results[contender.name] for contender in contenders)
    ratio = statistics.median(naive["seconds"]) / statistics.median(ours["seconds"])
    apart = max(abs(a - b) for a, b in zip(ours["losses"], naive["losses"], strict=True))
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else processor_name()
    click.echo(f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, {options.shape}")
    click.echo(table(contenders, results))
    bound = contenders[0].tolerance
    click.echo(f"{ratio:.2f} x as many steps per second; losses at most {apart:.1e} apart (bound {bound})")
    if output:
        facts = {"machine": name, "threads": torch.get_num_threads(), "torch": str(torch.__version__)}
        output.write_text(json.dumps(facts | {"shape": options.shape, "ratio": ratio, "steps": results}, indent=1))
    if not apart <= bound:
        raise click.ClickException("the two implementations do not compute the same loss")


if __name__ == "__main__":
    main()
