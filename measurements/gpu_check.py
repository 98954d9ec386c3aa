"""Check everything that computes on a CUDA GPU, then measure it; write gpu_check.md and gpu_check.json.

    python -m measurements.gpu_check --engine-dir engines/ --output gpu_check --quick

On the GPU: all kernels against the reference implementation (and under compute-sanitizer if it is installed), every
backend against the CPU, the latency table with PyTorch in turn, each kernel's share of the memory bandwidth, and the
loop's time by stage. With --fixed and --moving also on two scans, with --fixed-labels and --moving-labels also by Dice.
Exit code 1 if anything is wrong or there is no GPU.
"""

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import click

from measurements.gpu.agreement import Agreement, Scans
from measurements.gpu.kernel_tests import kernel_tests
from measurements.gpu.kernel_times import kernel_times
from measurements.gpu.latency import arguments, clean, latency, stages, torch_sees_gpu
from measurements.gpu.machine import machine
from measurements.gpu.part import DATA, TEXT, Part, guarded, verdict, write
from measurements.gpu.throughput import throughput
from runtime.backends.cuda.gpu import find_gpu
from runtime.backends.engines import SHIPPED
from runtime.errors import InputError
from runtime.workflows.benchmark.contenders.contender import EngineContender
from runtime.workflows.benchmark.options import BenchmarkOptions
from runtime.workflows.benchmark.pairs import Shape

PATH = click.Path(path_type=Path)
SHAPE: Shape = (160, 192, 160)
HEAD = "# Check on a CUDA GPU"
KERNEL_RUNS, KERNEL_RUNS_QUICK = 40, 10


@dataclass
class Check:
    """A check, run part by part."""

    engine_dir: Path
    scans: Scans | None
    quick: bool
    shape: Shape = SHAPE
    passed: list[EngineContender] = field(default_factory=list)

    def parts(self) -> Iterator[Part]:
        yield guarded("Machine", machine)
        report_progress("the kernels' tests")
        yield guarded("Kernels against the reference", lambda: kernel_tests(sanitize=not self.quick))
        yield guarded("GPU against CPU", self._agreement)
        report_progress("the kernels' times")
        runs = KERNEL_RUNS_QUICK if self.quick else KERNEL_RUNS
        yield guarded("Kernels and the memory's bandwidth", lambda: kernel_times(self.shape, runs))
        if self.passed:
            yield from self._latency()

    def _agreement(self) -> Part:
        agreement = Agreement(self.engine_dir, self.shape, self.scans, progress=report_progress)
        part = agreement.part()
        self.passed = clean(agreement.passed, agreement.failed)
        return part

    def _latency(self) -> Iterator[Part]:
        report_progress("the command benchmark, which takes some minutes")
        torch, records = torch_sees_gpu(), []

        def measured() -> Part:
            command = arguments(self.engine_dir, self.passed, self.shape, self.scans, torch, self.quick)
            part, record = latency(command, torch)
            records.append(record)
            return part

        yield guarded("Latency", measured)
        if records and records[0]:
            yield guarded("Where time goes on the GPU", lambda: stages(records[0]))
        report_progress("several pairs in flight")
        with tempfile.TemporaryDirectory() as folder:
            yield guarded("Throughput", lambda: throughput(self.passed, self.shape, Path(folder)))


def report_progress(text: str) -> None:
    click.echo(f"... {text}", err=True)


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--engine-dir", type=PATH, default=SHIPPED, show_default="engines/ of the project")
@click.option("--fixed", type=PATH, help="Fixed scan of a real pair, besides the generated one.")
@click.option("--moving", type=PATH, help="Moving scan of that pair.")
@click.option("--fixed-labels", type=PATH, help="Label map of the fixed scan, for Dice.")
@click.option("--moving-labels", type=PATH, help="Label map of the moving scan.")
@click.option("--shape", type=int, nargs=3, default=SHAPE, show_default=True, help="Image size; less for a small GPU.")
@click.option("--output", type=PATH, default="gpu_check", show_default=True, help="Folder for the record.")
@click.option("--quick", is_flag=True, help="Fewer runs; no files, no start-up, no compute-sanitizer.")
def main(engine_dir, fixed, moving, fixed_labels, moving_labels, shape, output, quick) -> None:
    if isinstance(gpu := find_gpu(), str):
        raise click.ClickException(f"this check needs an NVIDIA GPU, but {gpu}; nothing was checked")
    if (fixed is None) != (moving is None) or (fixed is None and (fixed_labels or moving_labels)):
        raise click.ClickException("--fixed, --moving: expected both, and labels only with them")
    scans = Scans(fixed, moving, fixed_labels, moving_labels) if fixed else None
    try:
        if scans:
            scans.check()
        BenchmarkOptions(shape=shape)
        output.mkdir(parents=True, exist_ok=True)
    except (InputError, OSError) as error:
        raise click.ClickException(str(error)) from None
    click.echo(HEAD)
    parts = []
    for part in Check(engine_dir, scans, quick, shape).parts():
        parts.append(part)
        click.echo(f"\n{part.text()}")
        write(output, HEAD, parts, done=False)
    write(output, HEAD, parts, done=True)
    click.echo(f"\n{verdict(parts)}\n\nRecord: {output / TEXT}, {output / DATA}")
    sys.exit(any(part.wrong for part in parts))


if __name__ == "__main__":
    main()
