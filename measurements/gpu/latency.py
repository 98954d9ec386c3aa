"""Latency table of the command `benchmark` on the GPU, with PyTorch in turn, and the loop's time by stage."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measurements.gpu.agreement import Scans
from measurements.gpu.part import Part
from runtime.workflows.benchmark.contenders.contender import EngineContender
from runtime.workflows.benchmark.pairs import Shape
from runtime.workflows.benchmark.report.cells import Table, ms

ROOT = Path(__file__).resolve().parent.parent.parent
SECONDS = 3600
TORCH_ON_GPU = "import sys, torch; sys.exit(not torch.cuda.is_available())"
LEAST_SPEED_UP = 5.0  # over eager PyTorch in fp32 on the same GPU
RIVAL = "torch fp32 cuda"


def torch_sees_gpu() -> bool:
    """Return True if PyTorch can use the GPU; asked in a separate process, which leaves nothing on the GPU."""
    return subprocess.run([sys.executable, "-c", TORCH_ON_GPU], capture_output=True).returncode == 0


def arguments(
    engine_dir: Path, contenders: Sequence[EngineContender], shape: Shape, scans: Scans | None, torch: bool, quick: bool
) -> list[str]:
    """Return the arguments of `benchmark`, with the backends and precisions of the contenders that passed."""
    names = [list(dict.fromkeys(getattr(each, part) for each in contenders)) for part in ("backend", "precision")]
    found = ["benchmark", "--engine-dir", engine_dir, "--backend", ",".join(names[0])]
    found += ["--precision", ",".join(names[1])]
    if scans:
        found += ["--fixed", scans.fixed, "--moving", scans.moving, "--crop-to", ",".join(map(str, shape))]
    else:
        found += ["--shape", ",".join(map(str, shape))]
    found += ["--against", "torch"] if torch else []
    found += ["--runs", 10, "--warmup", 2, "--no-files", "--no-start-up"] if quick else []
    return list(map(str, found))


def clean(passed: Sequence[EngineContender], failed: Sequence[EngineContender]) -> list[EngineContender]:
    """Return the contenders that passed on backends without failures: `benchmark` times nothing if one is wrong."""
    backends = {each.backend for each in failed}
    return [each for each in passed if each.backend not in backends]


def latency(command: Sequence[str], torch: bool) -> tuple[Part, dict[str, Any] | None]:
    """Run `benchmark`; return its output as a part, and its record if there is one."""
    part = Part("Latency")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "benchmark.json"
        program = [sys.executable, str(ROOT / "cli.py"), *command, "--json", str(path)]
        try:
            done = subprocess.run(program, cwd=Path.cwd(), capture_output=True, text=True, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            part.wrong.append(f"benchmark took more than {SECONDS / 60:.0f} minutes")
            return part, None
        record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    part.lines = ["    cli.py " + " ".join(command), "", *_one_level_down(done.stdout)]
    part.record = record
    if done.returncode:
        part.wrong.append(done.stderr.strip().rpartition("\n")[2] or f"benchmark ended with {done.returncode}")
    if not torch:
        part.notes.append("PyTorch is not installed or sees no GPU: it is not timed")
    part.notes += _slow(record or {})
    return part, record


def _one_level_down(text: str) -> list[str]:
    """Demote the headings of a Markdown text to place it in a section of another document."""
    return [f"##{line}" if line.startswith("#") else line for line in text.strip().splitlines()]


def _slow(record: dict[str, Any]) -> list[str]:
    """Return notes on engines whose speed-up over eager PyTorch misses the target."""
    found = record.get("against", {}).get(RIVAL, {})
    return [
        f"{name} is {ratio['median']:.1f} times as fast as {RIVAL}, target {LEAST_SPEED_UP:g}"
        for name, ratio in found.items()
        if not name.startswith("torch") and ratio["median"] < LEAST_SPEED_UP
    ]


def stages(record: dict[str, Any]) -> Part:
    """Return the loop's time on the GPU by stage, and its idle time."""
    rows = [share_of(row) for row in record["contenders"] if row.get("card_memory") and "account" in row]
    parts = ("encode", "estimator", "fields", "idle")
    head = ("mean ms per run", "loop", *parts, "idle %", "decisions", "idle per decision", "images per hour")
    table = [
        [
            row["name"],
            *(ms(row[part]) for part in ("loop", *parts)),
            f"{100 * row['idle'] / row['loop']:.1f}",
            str(row["decisions"]),
            ms(row["idle"] / row["decisions"]),
            f"{record['throughput'][row['name']]['per_hour']:.0f}" if "throughput" in record else "-",
        ]
        for row in rows
    ]
    words = "Idle is the time in no stage: the GPU waits for the host, at decisions or for the next kernel."
    words += " PyTorch's waits are in its scores. Images per hour: one after another, to the same fixed image."
    return Part("Where time goes on the GPU", [words, "", *Table(head, table).lines()], rows)


def share_of(row: dict[str, Any]) -> dict[str, Any]:
    """Return a contender's mean seconds by part, which add up to the loop, and its decisions, one per iteration."""
    account = row["account"]
    decisions = max(sum(sum(counts) for counts in row["samples"][0]["executed"]), 1)
    found = {name: account[name] for name in ("loop", "encode", "estimator", "fields")}
    return {"name": row["name"], **found, "idle": account["overhead"], "decisions": decisions}
