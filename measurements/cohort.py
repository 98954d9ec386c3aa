"""Cohorts under faults, and their throughput: real runs of `cli.py cohort`, killed at random and started again.

    python -m measurements.cohort kills --rows 1000 --kills 20 --output /tmp/cohort
    python -m measurements.cohort dask --rows 40 --kills 10 --output /tmp/cohort-dask
    python -m measurements.cohort throughput --fixed F.nii.gz M1.nii.gz M2.nii.gz ... --output /tmp/throughput

`kills`: a table of small generated pairs, one in a hundred of them damaged or missing; the whole process group is
killed (SIGKILL), and the same command started again, until it ends by itself. `dask`: two workers, one of which is
killed again and again; one pair hangs, one exhausts its worker's memory. `throughput`: one cohort against one command
per pair, in turn.
"""

import csv
import json
import os
import random
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import textwrap
import time
from collections import Counter
from pathlib import Path

import click

from tests import scans

ROOT = Path(__file__).resolve().parent.parent
SCANS = 12  # different moving scans
FILES = {"warped.nii.gz", "warp.nii.gz", "affine.txt", "jacobian.nii.gz", "preview.png", "report.html", "report.json"}


@click.group(help=__doc__.split("\n\n")[0])
def main() -> None:
    pass


def write_table(folder: Path, rows: int, bad_every: int = 100) -> Path:
    """Write small scans and a table of pairs; two in `2 * bad_every` rows have a damaged or a missing moving scan."""
    folder.mkdir(parents=True, exist_ok=True)
    grid = scans.grid((28, 32, 28))
    for number in range(2):
        scans.write_scan(folder / f"f{number}.nii.gz", grid, lambda x, n=number: x * (1 + 0.03 * n))
    for number in range(SCANS):
        scans.write_scan(folder / f"m{number}.nii.gz", grid, lambda x, n=number: scans.bend(x) + 0.3 * n)
    (folder / "damaged.nii.gz").write_bytes(b"nothing")
    lines = ["id\tfixed\tmoving"]
    for number in range(rows):
        moving = f"m{number % SCANS}.nii.gz"
        if number % bad_every == 3:
            moving = "damaged.nii.gz" if number % (2 * bad_every) == 3 else "missing.nii.gz"
        lines.append(f"p{number:05d}\tf{number % 2}.nii.gz\t{moving}")
    (folder / "pairs.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "pairs.tsv"


def command(table: Path, output: Path, *further: str) -> list[str]:
    return [sys.executable, str(ROOT / "cli.py"), "cohort", "--pairs", str(table), "--output", str(output), *further]


def judge(table: Path, output: Path, log: list[str]) -> None:
    """Print what became of the pairs, and whether any result is half or was made twice."""
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    states: Counter[str] = Counter()
    half, unknown = [], []
    for row in rows:
        record = json.loads((output / "records" / f"{row['id']}.json").read_text(encoding="utf-8"))
        states[record["state"]] += 1
        folder = output / "pairs" / row["id"]
        names = {path.name for path in folder.iterdir()} if folder.exists() else set()
        if names != (FILES if record["state"] == "done" else set()):
            half.append(row["id"])
    known = {row["id"] for row in rows}
    unknown += [path.name for path in (output / "pairs").iterdir() if path.name not in known]
    finished = Counter(line.partition(":")[0] for line in log if ": failed" not in line and ": " in line)
    twice = [name for name, count in finished.items() if count > 1 and name in known]
    click.echo(
        f"{dict(states)} of {len(rows)}; half results: {len(half)}; unknown: {len(unknown)}; done twice: {twice}"
    )


@main.command()
@click.option("--rows", default=1000, show_default=True)
@click.option("--kills", default=20, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), required=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--longest", default=60.0, show_default=True, help="Most seconds between two kills.")
def kills(rows: int, kills: int, output: Path, seed: int, longest: float) -> None:
    """Kill a cohort at random moments, and start it again each time."""
    table = write_table(output / "scans", rows)
    rng, log = random.Random(seed), []
    words = command(table, output / "cohort", "--forward-only", "--threads", "1")
    for number in range(kills + 1):
        with (output / "log.txt").open("a+", encoding="utf-8") as file:
            place = file.seek(0, os.SEEK_END)
            started = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
            try:
                started.wait(rng.uniform(0.5, longest) if number < kills else None)
                click.echo(f"run {number + 1} ended by itself with {started.returncode}")
                file.seek(place)
                log += file.read().splitlines()
                if number < kills:
                    break
            except subprocess.TimeoutExpired:
                os.killpg(started.pid, signal.SIGKILL)
                started.wait()
                file.seek(place)
                log += file.read().splitlines()
                done = sum(1 for _ in (output / "cohort" / "records").glob("*.json"))
                click.echo(f"killed {number + 1}: {done} records")
    judge(table, output / "cohort", log)


@main.command("dask")
@click.option("--rows", default=40, show_default=True)
@click.option("--kills", default=10, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), required=True)
def dask_faults(rows: int, kills: int, output: Path) -> None:
    """Two Dask workers: one is killed again and again, one pair hangs, one exhausts the memory of its worker."""
    table = write_table(output / "scans", rows)
    faulty = _faulty_scans(output / "scans")
    with table.open("a", encoding="utf-8") as file:
        file.writelines(f"{name}\tf0.nii.gz\t{path.name}\n" for name, path in faulty.items())
    environment = {**os.environ, "DASK_DISTRIBUTED__WORKER__PRELOAD": str(_preload(output)), "PYTHONPATH": str(ROOT)}
    words = command(
        table, output / "cohort", "--forward-only", "--executor", "dask", "--workers", "2", "--memory", "1.5GB",
        "--time-limit", "30",
    )  # fmt: skip
    started = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    killed = 0
    while started.poll() is None and killed < kills:
        time.sleep(4)
        workers = subprocess.run(
            ["pgrep", "-f", "multiprocessing.spawn"], capture_output=True, text=True
        ).stdout.split()
        children = [int(pid) for pid in workers if _is_worker(int(pid))]
        if children:
            os.kill(random.choice(children), signal.SIGKILL)
            killed += 1
    log = started.communicate()[0].splitlines()
    click.echo(f"killed {killed} workers; ended with {started.returncode}\n" + "\n".join(log[-3:]))
    judge(table, output / "cohort", [])
    for name in faulty:
        record = json.loads((output / "cohort" / "records" / f"{name}.json").read_text(encoding="utf-8"))
        click.echo(f"{name}: {record['state']}, {record['attempt']} attempts: {record.get('error')}")


def _is_worker(pid: int) -> bool:
    """Return whether a process has the engines loaded, as Dask's workers have and its nannies have not."""
    try:
        return "numba" in Path(f"/proc/{pid}/maps").read_text() or "llvmlite" in Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return False


def _faulty_scans(folder: Path) -> dict[str, Path]:
    """Copy a scan under the two names that the workers' preload makes faulty."""
    return {name: Path(shutil.copy(folder / "m0.nii.gz", folder / f"{name}.nii.gz")) for name in ("hangs", "swells")}


def _preload(output: Path) -> Path:
    """Write a module that makes reading of two scans faulty in every worker that loads it."""
    path = output / "faults.py"
    path.write_text(
        textwrap.dedent(
            """
            import time

            import runtime.registration.reading as reading

            read = getattr(reading, "sound_read_scan", reading.read_scan)  # this module may be loaded twice


            def faulty(source, *more, **named):
                if str(source).endswith("hangs.nii.gz"):
                    time.sleep(10_000)
                if str(source).endswith("swells.nii.gz"):
                    kept = []
                    while True:
                        kept.append(bytearray(50_000_000))
                        time.sleep(0.05)
                return read(source, *more, **named)


            reading.sound_read_scan, reading.read_scan = read, faulty
            """
        ),
        encoding="utf-8",
    )
    return path


@main.command()
@click.option("--fixed", type=click.Path(path_type=Path, exists=True), required=True)
@click.argument("moving", nargs=-1, type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--output", type=click.Path(path_type=Path), required=True)
@click.option("--rounds", default=3, show_default=True)
def throughput(fixed: Path, moving: tuple[Path, ...], output: Path, rounds: int) -> None:
    """Compare pairs per hour of a cohort with those of one command per pair, in turn, with memory and disk."""
    output.mkdir(parents=True, exist_ok=True)
    lines = ["fixed\tmoving", *(f"{fixed.absolute()}\t{path.absolute()}" for path in moving)]
    (output / "pairs.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    found: dict[str, list[float]] = {"cohort": [], "commands": []}
    for _ in range(rounds):
        for way in found:
            place = output / way
            shutil.rmtree(place, ignore_errors=True)
            start = time.perf_counter()
            if way == "cohort":
                subprocess.run(command(output / "pairs.tsv", place, "--quiet"), check=True)
            else:
                for path in moving:
                    words = ["--fixed", fixed, "--moving", path, "--output", place / path.name, "--quiet"]
                    subprocess.run([sys.executable, ROOT / "cli.py", "register", *words], check=True)
            found[way].append(len(moving) / (time.perf_counter() - start) * 3600)
    folders = list((output / "cohort" / "pairs").iterdir())
    sizes = [sum(file.stat().st_size for file in folder.iterdir()) / 1e6 for folder in folders]
    ratios = [one / other for one, other in zip(*found.values(), strict=True)]
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    click.echo(
        f"pairs an hour: cohort {statistics.median(found['cohort']):.0f}, "
        f"commands {statistics.median(found['commands']):.0f}; "
        f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}); "
        f"largest process {peak:.2f} GB; disk {statistics.mean(sizes):.0f} MB a pair"
    )


if __name__ == "__main__":
    main()
