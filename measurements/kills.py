"""Kill or stop commands at random moments, and count the incomplete files left then and after the next run.

    python -m measurements.kills --kills 40 --signals 20

Half of the moments are drawn over the time that a whole run takes, half from its last fifth, in which results are
written; moments after the end of the run are drawn again. A half file is one under its final name that is incomplete,
or a report or manifest beside files other than those it names. Left over are the files that the next whole run leaves
in addition to those of a first run.
"""

import csv
import gzip
import itertools
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path

import click
from PIL import Image

from runtime.backends.engine_set import load_engine_set
from runtime.errors import InputError
from runtime.host.files.hashes import sha256_of_file
from runtime.images.formats.nifti_writer import write_volume
from tests import scans
from train.model.checkpoint import load_checkpoint

ROOT = Path(__file__).resolve().parent.parent
CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}
WORD = "Stopped by"
STEPS = 6  # of a training run
MEASURED = 10  # stopped runs before a whole one, which shows the files left over and the current duration


@dataclass(frozen=True)
class Job:
    """A command that can be run repeatedly into one folder, and a check of its results.

    Attributes:
        whole: checks that the results in the folder are complete and consistent.
        forget: removes results that the command would keep instead of computing them again.
        resumes: the option that makes the command continue from the folder, if it has one.
    """

    name: str
    arguments: tuple[str, ...]
    folder: Path
    whole: Callable[[Path], bool]
    forget: Callable[[Path], None] = lambda folder: None
    resumes: str | None = None

    def start(self) -> subprocess.Popen:
        command = [sys.executable, str(ROOT / "cli.py"), self.name, *self.arguments, "--quiet"]
        if self.resumes and (self.folder / "last.pt").exists():
            command.append(self.resumes)
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def run(self) -> float:
        """Run to the end; return the seconds."""
        begin = time.monotonic()
        process = self.start()
        _, errors = process.communicate()
        if process.returncode:
            raise click.ClickException(f"{self.name} failed ({process.returncode}): {errors}")
        return time.monotonic() - begin

    def names(self) -> set[str]:
        return {path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*")}

    def hidden(self) -> list[str]:
        return [name for name in self.names() if _hidden(name)]

    def half_files(self) -> list[str]:
        names = [name for name in self.names() if not _hidden(name) and (self.folder / name).is_file()]
        half = [name for name in names if not readable(self.folder / name)]
        return half + ([] if self.whole(self.folder) else ["a result that is not whole"])


@dataclass
class Tally:
    """Counts over all signals sent to one command.

    Attributes:
        met: signals that arrived while the command ran.
        late: signals that came after its end.
        half: runs after which there were half files.
        left: next whole runs that left half files or files over.
        wrong: wrong exit codes and messages, and hidden files left.
    """

    met: int = 0
    late: int = 0
    half: int = 0
    left: int = 0
    wrong: int = 0


def _hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def readable(path: Path) -> bool:
    """Return True if a file is complete, as far as its format shows."""
    try:
        if path.suffix == ".gz":
            gzip.decompress(path.read_bytes())
        elif path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".png":
            Image.open(path).load()
        elif path.suffix in (".csv", ".md", ".txt"):
            return path.read_text(encoding="utf-8").endswith("\n")
        return path.stat().st_size > 0
    except (OSError, ValueError, EOFError):
        return False


def registered(folder: Path) -> bool:
    """Check that all files named in the report exist, and that there is no result without a report."""
    report = folder / "report.json"
    if not report.is_file():
        return not (folder / "warp.nii.gz").exists()
    return all((folder / name).is_file() for name in json.loads(report.read_text())["outputs"])


def exported(folder: Path) -> bool:
    return not (folder / "manifest.json").is_file() or _accepted(load_engine_set, folder)


def _accepted(read: Callable[[Path], object], path: Path) -> bool:
    try:
        read(path)
    except InputError:
        return False
    return True


def prepared(folder: Path) -> bool:
    """Check that the files of each record have the recorded hashes."""
    records = [json.loads(path.read_text()) for path in folder.glob("records/*.json")]
    outputs = [output for record in records for output in record.get("outputs", {}).values()]
    return all(sha256_of_file(folder / output["path"]) == output["sha256"] for output in outputs)


def trained(folder: Path) -> bool:
    """Check that checkpoints load, best.pt never alone, and that the log has each step up to last.pt exactly once."""
    last, best, log = (folder / name for name in ("last.pt", "best.pt", "log.csv"))
    if not all(_accepted(load_checkpoint, path) for path in (last, best) if path.exists()):
        return False
    if not last.exists():
        return not best.exists()
    with log.open(newline="") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file)]
    return steps == list(range(1, len(steps) + 1)) and len(steps) >= load_checkpoint(last).training["step"]


def jobs(work: Path) -> dict[str, Job]:
    """Write the inputs and return the jobs by name."""
    fixed, moving = str(work / "f.nii.gz"), str(work / "m.nii.gz")
    for path, move in ((fixed, lambda points: points), (moving, scans.bend)):
        write_volume(path, scans.scan(scans.grid(), move), scans.grid())
    (work / "scans.csv").write_text(f"image\n{fixed}\n{moving}\n")
    out = {name: work / name for name in ("register", "prepare", "evaluate", "train", "export")}
    pair = ("--fixed", fixed, "--moving", moving, "--affine", "none", "--threads", "1")
    checkpoint, prepare = str(ROOT / "engines" / "trained_from.pt"), ("--shape", "32,40,32", "--spacing", "1")
    training = ("--shape", "16,16,16", "--steps", str(STEPS), "--validate-every", "2", "--validation-pairs", "1")
    training += ("--precision", "fp32", "--device", "cpu", "--threads", "1", "--save-minutes", "0")
    made = (
        Job("register", (*pair, "--overwrite", "--output", str(out["register"])), out["register"], registered),
        Job("prepare", ("--data", str(work / "scans.csv"), "--reference", "first", *prepare, "--jobs", "1",
                        "--output", str(out["prepare"])), out["prepare"], prepared, forget_records),
        Job("evaluate", (*pair, "--output", str(out["evaluate"])), out["evaluate"], lambda _: True, forget_records),
        Job("train", ("--generated", *training, "--output", str(out["train"])), out["train"], trained,
            forget_finished_run, "--resume"),
        Job("export", ("--checkpoint", checkpoint, "--gate-shape", "16,16,16", "--no-fp16", "--engine-dir",
                       str(out["export"])), out["export"], exported),
    )  # fmt: skip
    return {job.name: job for job in made}


def forget_records(folder: Path) -> None:
    """Remove the records of `prepare` and `evaluate`, which keep finished work."""
    for path in [*folder.glob("records/*"), *folder.glob("pairs/*")]:
        path.unlink()


def forget_finished_run(folder: Path) -> None:
    """Remove a finished run of `train`; a stopped one stays and is resumed."""
    last = folder / "last.pt"
    if last.exists() and load_checkpoint(last).training["step"] == STEPS:
        shutil.rmtree(folder)


def attack(job: Job, number: int, times: int, expected: set[str], draw: random.Random) -> Tally:
    """Send a signal `times` times while the command runs.

    Args:
        job: the command.
        number: the signal.
        times: how often.
        expected: names in the folder after a first whole run.
        draw: draws the moments.
    """
    tally = Tally()
    shares = (draw.uniform(low, 1.0) for low in itertools.cycle((0.0, 0.8)))
    for n in range(times):
        if n % MEASURED == 0:
            seconds = _measured(job, expected, tally)
        while not _met(job, number, seconds * next(shares), tally):
            tally.late += 1
        tally.met += 1
        tally.half += _report(job, job.half_files())
    _measured(job, expected, tally)
    return tally


def _measured(job: Job, expected: set[str], tally: Tally) -> float:
    """Finish the last run and compare its files with those of a first one; return the seconds of a run from scratch."""
    job.run()
    tally.left += _report(job, [*(job.names() ^ expected), *job.half_files()])
    job.forget(job.folder)
    return job.run()


def _met(job: Job, number: int, moment: float, tally: Tally) -> bool:
    """Send a signal after `moment` seconds; return True if it arrived before the command's end."""
    job.forget(job.folder)
    process = job.start()
    time.sleep(moment)
    while number in CODES and process.poll() is None and not _answers(process.pid):
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate()
    lines = [line for line in errors.splitlines() if line.strip()]
    met = process.returncode != 0
    if met and number in CODES:
        right = process.returncode == CODES[number] and lines[-1:] and lines[-1].startswith(WORD)
        tally.wrong += _report(job, [] if right and "Traceback" not in errors else [process.returncode, errors[-2000:]])
        tally.wrong += _report(job, job.hidden())
    elif not met:
        tally.wrong += _report(job, ["swallowed", errors[-2000:]] if "ignored" in errors else [])
    return met


def _answers(process: int) -> bool:
    """Return True if the process handles SIGTERM by now; before, a signal ends it like any program (Linux)."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return False
    caught = next((int(line.split()[1], 16) for line in lines if line.startswith("SigCgt")), 0)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


def _report(job: Job, trouble: list) -> int:
    """Print what is wrong; return 1 if anything is, else 0."""
    if trouble:
        click.echo(f"{job.name}: {trouble}", err=True)
    return bool(trouble)


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--kills", default=40, show_default=True)
@click.option("--signals", default=20, show_default=True, help="Number of each of SIGTERM and Ctrl-C.")
@click.option("--command", "wanted", multiple=True, help="One of register, prepare, evaluate, train, export.")
@click.option("--seed", default=0, show_default=True)
def main(kills, signals, wanted, seed) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells make background processes ignore SIGINT
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        made = jobs(Path(folder))
        click.echo("| command | signal | met it | came too late | half files | left over | wrong endings |")
        click.echo("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
        for name in wanted or made:
            job = made[name]
            job.run()
            expected = job.names()
            for number, times in {signal.SIGKILL: kills, **dict.fromkeys(CODES, signals)}.items():
                if times:
                    found = attack(job, number, times, expected, draw)
                    click.echo(f"| {name} | {signal.Signals(number).name} | {' | '.join(map(str, astuple(found)))} |")


if __name__ == "__main__":
    main()
