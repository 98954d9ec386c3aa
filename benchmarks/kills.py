"""What is left when commands are killed or asked to stop at random moments: half files, and what the next run leaves.

    python -m benchmarks.kills --kills 40 --signals 20

A half file is one under its final name that cannot be read whole, or a sign of a whole result (a report, a manifest)
beside files that are not those it names. Left over is what the next whole run leaves besides what a first one does.
"""

import gzip
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click

from runtime.geometry.errors import InputError
from runtime.geometry.volume import write_volume
from runtime.manifest import load_engine_set
from runtime.preparation.folder import file_hash
from tests import scans

ROOT = Path(__file__).resolve().parent.parent
CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}


@dataclass(frozen=True)
class Job:
    """A command that can be run again and again into one folder, and what its results must be like."""

    name: str
    arguments: tuple[str, ...]
    folder: Path
    whole: Callable[[Path], bool]

    def start(self) -> subprocess.Popen:
        command = [sys.executable, str(ROOT / "cli.py"), self.name, *self.arguments]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def run(self) -> float:
        """To its end; seconds."""
        begin = time.monotonic()
        process = self.start()
        _, errors = process.communicate()
        if process.returncode:
            raise click.ClickException(f"{self.name} failed ({process.returncode}): {errors}")
        return time.monotonic() - begin

    def names(self) -> set[str]:
        return {path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*")}

    def half_files(self) -> list[str]:
        found = [path for path in self.folder.rglob("*") if path.is_file() and not _hidden(path, self.folder)]
        half = [path.name for path in found if not readable(path)]
        return half + ([] if self.whole(self.folder) else ["a result that is not whole"])


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def readable(path: Path) -> bool:
    """Whether a file is all there, as far as its kind tells."""
    try:
        if path.suffix == ".gz":
            gzip.decompress(path.read_bytes())
        elif path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        return path.stat().st_size > 0
    except (OSError, ValueError, EOFError):
        return False


def registered(folder: Path) -> bool:
    """A report stands beside all the files it names, and files of a result without one are none."""
    report = folder / "report.json"
    if not report.is_file():
        return not (folder / "warp.nii.gz").exists()
    return all((folder / name).is_file() for name in json.loads(report.read_text())["outputs"])


def exported(folder: Path) -> bool:
    if not (folder / "manifest.json").is_file():
        return True
    try:
        load_engine_set(folder)
    except InputError:
        return False
    return True


def prepared(folder: Path) -> bool:
    """Each record's files are those it was written with."""
    records = [json.loads(path.read_text()) for path in folder.glob("records/*.json")]
    outputs = [output for record in records for output in record.get("outputs", {}).values()]
    return all(file_hash(folder / output["path"]) == output["sha256"] for output in outputs)


def evaluated(folder: Path) -> bool:
    return True  # every file stands for itself


def jobs(work: Path) -> dict[str, Job]:
    fixed, moving = str(work / "f.nii.gz"), str(work / "m.nii.gz")
    for path, move in ((fixed, lambda points: points), (moving, scans.bend)):
        write_volume(path, scans.scan(scans.grid(), move), scans.grid())
    (work / "scans.csv").write_text(f"image\n{fixed}\n{moving}\n")
    out = {name: work / name for name in ("register", "export", "prepare", "evaluate")}
    pair = ("--fixed", fixed, "--moving", moving, "--affine", "none", "--threads", "1")
    checkpoint, prepare = str(ROOT / "engines" / "trained_from.pt"), ("--shape", "32,40,32", "--spacing", "1")
    made = (
        Job("register", (*pair, "--overwrite", "--output", str(out["register"])), out["register"], registered),
        Job("export", ("--checkpoint", checkpoint, "--gate-shape", "16,16,16", "--no-fp16", "--engine-dir",
                       str(out["export"])), out["export"], exported),
        Job("prepare", ("--data", str(work / "scans.csv"), "--reference", "first", *prepare, "--jobs", "1",
                        "--output", str(out["prepare"])), out["prepare"], prepared),
        Job("evaluate", (*pair, "--output", str(out["evaluate"])), out["evaluate"], evaluated),
    )  # fmt: skip
    return {job.name: job for job in made}


def again(job: Job) -> None:
    """`prepare` and `evaluate` keep what is done: then there would be nothing to kill."""
    for path in [*job.folder.glob("records/*"), *job.folder.glob("pairs/*")]:
        path.unlink()


def attack(job: Job, number: int, times: int, seconds: float, draw: random.Random) -> tuple[int, int, int]:
    """Sends a signal at random moments: how often it met the command running, half files, and wrong endings."""
    met = half = wrong = 0
    for _ in range(times):
        again(job)
        process = job.start()
        time.sleep(draw.uniform(0.15, seconds))
        process.send_signal(number)
        _, errors = process.communicate()
        met += process.returncode != 0
        half += len(job.half_files())
        if number in CODES and process.returncode != 0:
            said = errors.splitlines()[-1:] and errors.splitlines()[-1].startswith("Stopped by")
            hidden = [name for name in job.names() if name.rpartition("/")[2].startswith(".")]
            if process.returncode != CODES[number] or not said or hidden:
                wrong += 1
                click.echo(f"{job.name}: {process.returncode}, {errors[-300:]!r}, {hidden}", err=True)
    return met, half, wrong


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--kills", default=40, show_default=True)
@click.option("--signals", default=20, show_default=True, help="Of each of SIGTERM and Ctrl-C.")
@click.option("--command", "wanted", multiple=True, help="Of register, export, prepare, evaluate.  [default: all]")
@click.option("--seed", default=0, show_default=True)
def main(kills, signals, wanted, seed) -> None:
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        made = jobs(Path(folder))
        click.echo("| command | killed | half files | left over | stopped by SIGTERM, Ctrl-C | other endings |")
        click.echo("| --- | --- | --- | --- | --- | --- |")
        for name in wanted or made:
            job = made[name]
            job.run()
            expected = job.names()
            again(job)
            seconds = job.run()
            killed, half, _ = attack(job, signal.SIGKILL, kills, seconds, draw)
            job.run()
            left = len(job.names() ^ expected) + len(job.half_files())
            ended, wrong = [], 0
            for number in CODES:
                met, more, odd = attack(job, number, signals, seconds, draw)
                ended, half, wrong = [*ended, met], half + more, wrong + odd
            click.echo(f"| {name} | {killed} of {kills} | {half} | {left} | {ended[0]}, {ended[1]} | {wrong} |")


if __name__ == "__main__":
    main()
