"""What is left when commands are killed or asked to stop at random moments: half files, and what the next run leaves.

    python -m measurements.kills --kills 40 --signals 20

Half of the moments are drawn over the time that a whole run takes, half from its last fifth, in which results are
written; those that came too late are drawn again. A half file is one under its final name that cannot be read whole,
or a sign of a whole result (a report, a manifest) beside files that are not those it names. Left over is what the next
whole run leaves besides what a first one does.
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
from runtime.images.volume import write_volume
from tests import scans
from train.model.checkpoint import load_checkpoint

ROOT = Path(__file__).resolve().parent.parent
CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}
WORD = "Stopped by"
STEPS = 6  # of a training run
MEASURED = 10  # stopped runs, after which a whole one shows what is left over and how long it takes by now


@dataclass(frozen=True)
class Job:
    """A command that can be run again and again into one folder, and what its results must be like.

    Attributes:
        whole: whether what the folder holds is what it says it is.
        forget: removes what the command would keep instead of doing it again.
        resumes: the option with which it continues what is in the folder, where there is one.
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
        """To its end; seconds."""
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
    """How often a signal met a command while it ran, and what was found then.

    Attributes:
        late: how often it came after the end.
        half, left: half files; left-overs and half files after the next whole run.
        wrong: exit codes, words and hidden files that are not as they should be.
    """

    met: int = 0
    late: int = 0
    half: int = 0
    left: int = 0
    wrong: int = 0


def _hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def readable(path: Path) -> bool:
    """Whether a file is all there, as far as its kind tells."""
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
    """A report stands beside all the files it names, and files of a result without one are none."""
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
    """Each record's files are those it was written with."""
    records = [json.loads(path.read_text()) for path in folder.glob("records/*.json")]
    outputs = [output for record in records for output in record.get("outputs", {}).values()]
    return all(sha256_of_file(folder / output["path"]) == output["sha256"] for output in outputs)


def trained(folder: Path) -> bool:
    """Checkpoints load, the best one never alone; the log has a row for each step of last.pt, and no step twice."""
    last, best, log = (folder / name for name in ("last.pt", "best.pt", "log.csv"))
    if not all(_accepted(load_checkpoint, path) for path in (last, best) if path.exists()):
        return False
    if not last.exists():
        return not best.exists()
    with log.open(newline="") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file)]
    return steps == list(range(1, len(steps) + 1)) and len(steps) >= load_checkpoint(last).training["step"]


def jobs(work: Path) -> dict[str, Job]:
    """By name, with their inputs."""
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
    """Of `prepare` and `evaluate`, which keep what is done."""
    for path in [*folder.glob("records/*"), *folder.glob("pairs/*")]:
        path.unlink()


def forget_finished_run(folder: Path) -> None:
    """One of `train` that was stopped is continued."""
    last = folder / "last.pt"
    if last.exists() and load_checkpoint(last).training["step"] == STEPS:
        shutil.rmtree(folder)


def attack(job: Job, number: int, times: int, expected: set[str], draw: random.Random) -> Tally:
    """Sends a signal so many times while the command runs.

    Args:
        job, number, times: what, the signal, how often.
        expected: names in the folder after a first whole run.
        draw: moments.
    """
    tally = Tally()
    shares = (draw.uniform(low, 1.0) for low in itertools.cycle((0.0, 0.8)))
    for n in range(times):
        if n % MEASURED == 0:
            seconds = _measured(job, expected, tally)
        while not _met(job, number, seconds * next(shares), tally):
            tally.late += 1
        tally.met += 1
        tally.half += _told(job, job.half_files())
    _measured(job, expected, tally)
    return tally


def _measured(job: Job, expected: set[str], tally: Tally) -> float:
    """A run to its end, which must leave what a first one does, and one of which nothing is done yet; seconds."""
    job.run()
    tally.left += _told(job, [*(job.names() ^ expected), *job.half_files()])
    job.forget(job.folder)
    return job.run()


def _met(job: Job, number: int, moment: float, tally: Tally) -> bool:
    """Whether a signal at this many seconds met the command before its end."""
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
        tally.wrong += _told(job, [] if right and "Traceback" not in errors else [process.returncode, errors[-2000:]])
        tally.wrong += _told(job, job.hidden())
    elif not met:
        tally.wrong += _told(job, ["swallowed", errors[-2000:]] if "ignored" in errors else [])
    return met


def _answers(process: int) -> bool:
    """Whether it handles signals by now: before that one ends it as it ends every program (Linux)."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return False
    caught = next((int(line.split()[1], 16) for line in lines if line.startswith("SigCgt")), 0)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


def _told(job: Job, trouble: list) -> int:
    """Says what is wrong; 1 if anything is."""
    if trouble:
        click.echo(f"{job.name}: {trouble}", err=True)
    return bool(trouble)


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--kills", default=40, show_default=True)
@click.option("--signals", default=20, show_default=True, help="Of each of SIGTERM and Ctrl-C.")
@click.option("--command", "wanted", multiple=True, help="Of register, prepare, evaluate, train, export.")
@click.option("--seed", default=0, show_default=True)
def main(kills, signals, wanted, seed) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells let what runs in their background ignore it
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
