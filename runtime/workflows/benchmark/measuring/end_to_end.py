"""End-to-end timing: `register` through the Python API and as a command, and the start-up time."""

import contextlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....errors import InputError
from ....host.cache_folder import VARIABLE
from ..contenders.contender import Contender, EngineContender, RunSettings
from ..contenders.process import Worker
from ..contenders.session import Session
from .rounds import Progress, round_name
from .statistics import summary

STEADY_RUNS = 2
LOOP_STAGES = ("encode", "iterate")


@dataclass(frozen=True)
class RegisterCommand:
    """The command `register`, run as a user runs it.

    Runs in a small process of its own: Linux counts a child's peak memory from its parent's size on.

    Attributes:
        command: command line that starts the program, such as (python, cli.py).
    """

    command: tuple[str, ...]

    def run(self, contender: EngineContender, fixed: Path, moving: Path, schedule: str) -> dict[str, Any]:
        """Run one registration into a temporary folder; return wall seconds, peak memory and its report's stages."""
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "out"
            start = time.perf_counter()
            code, peak, errors = _run(self._arguments(contender, fixed, moving, schedule, output))
            seconds = time.perf_counter() - start
            if code:
                raise InputError(
                    f"benchmark: register with {contender.name} failed: {errors.strip().rpartition(chr(10))[2]}"
                )
            report = json.loads((output / "report.json").read_text(encoding="utf-8"))
        stages = {name: value for name, value in report["seconds"].items() if name != "total"}
        shape = tuple(report["working_grid"]["shape"])
        return {"total": seconds, "stages": stages, "peak_bytes": peak, "working_shape": shape}

    def _arguments(
        self, contender: EngineContender, fixed: Path, moving: Path, schedule: str, output: Path
    ) -> list[str]:
        options: dict[str, object] = {
            "engine-dir": contender.engine_dir,
            "fixed": fixed,
            "moving": moving,
            "output": output,
        }
        options |= {"backend": contender.backend, "precision": contender.precision, "schedule": schedule}
        if contender.threads:
            options["threads"] = contender.threads
        given = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        return [*self.command, "register", *given, "--quiet"]


def _run(arguments: list[str]) -> tuple[int, int | None, str]:
    """Run a command; return exit code, peak memory in bytes (None if unknown) and its error output."""
    with tempfile.TemporaryFile("w+") as errors:
        with subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=errors) as child:
            if not hasattr(os, "wait4"):
                child.wait()
                return child.returncode, None, ""
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
        errors.seek(0)
        unit = 1 if os.uname().sysname == "Darwin" else 1024  # of ru_maxrss: bytes on macOS, KiB on Linux
        return child.returncode, usage.ru_maxrss * unit, errors.read()


def end_to_end(
    workers: Sequence[tuple[Worker, EngineContender]],
    command: Sequence[str] | None,
    scans: tuple[Path, Path],
    schedule: str,
    runs: int,
    progress: Progress,
) -> dict[str, Any]:
    """Time whole registrations, in turn: as `api` (scans already read, nothing written) and as `command` with files."""
    with contextlib.ExitStack() as stack:
        shell = stack.enter_context(Worker(RegisterCommand(tuple(command)), "register")) if command else None
        samples: dict[str, dict[str, list]] = {worker.name: {"api": [], "command": []} for worker, _ in workers}
        for number in range(-1, runs):  # the first round fills caches
            for worker, contender in workers:
                progress(f"{round_name(number, runs)}, whole registration: {worker.name}")
                found = {"api": worker.call("register", *scans, schedule)}
                if shell:
                    found["command"] = shell.call("run", contender, *scans, schedule)
                if number >= 0:
                    for way, sample in found.items():
                        samples[worker.name][way].append(sample)
    return {name: {way: whole(found) for way, found in ways.items() if found} for name, ways in samples.items()}


def whole(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Summarise whole registrations: seconds in total, of the loop and by stage (means), start-up, peak memory."""
    stages: dict[str, float] = {}
    for sample in samples:
        for stage, duration in sample["stages"].items():
            stages[stage] = stages.get(stage, 0.0) + duration / len(samples)
    loops = [sum(sample["stages"].get(stage, 0.0) for stage in LOOP_STAGES) for sample in samples]
    outside = [sample["total"] - sum(sample["stages"].values()) for sample in samples]
    peaks = [sample["peak_bytes"] for sample in samples if sample.get("peak_bytes")]
    return {
        "seconds": summary([sample["total"] for sample in samples]),
        "loop": summary(loops),
        "times_the_loop": summary([sample["total"] / loop for sample, loop in zip(samples, loops, strict=True)]),
        "stages": stages,
        "outside_stages": sum(outside) / len(outside),
        "peak_bytes": max(peaks, default=None),
        "working_shape": samples[0]["working_shape"],
        "samples": samples,
    }


@dataclass(frozen=True)
class Kernels:
    """The field operations of the CPU, which are compiled once per machine."""

    def compile(self) -> float:
        """Compile the kernels and return the seconds taken; 0 if they were compiled before."""
        from ....registration.warmup import is_cold, warm_up

        start = time.perf_counter()
        if is_cold():
            warm_up()
            return time.perf_counter() - start
        return 0.0


def start_up(contenders: Sequence[Contender], images: Path, task: RunSettings, progress: Progress) -> dict[str, Any]:
    """Measure start-up in seconds: with an empty cache, then with the cache that this filled.

    ``kernels`` is needed once per machine. For each contender, ``cold`` and ``warm``: ``start`` is the time until a new
    process answers, ``open`` that of opening the engines with all imports, ``first`` that of the first loop, which
    compiles or loads engines for the image size, and ``steady`` the fastest of the loops after it.
    """
    with tempfile.TemporaryDirectory() as folder:
        environment = {VARIABLE: folder}
        progress("compiling kernels in an empty cache")
        with Worker(Kernels(), "the kernels", environment) as worker:
            found: dict[str, Any] = {"kernels": worker.call("compile"), "contenders": {}}
        for contender in contenders:
            found["contenders"][contender.name] = times = {}
            for state in ("cold", "warm"):
                progress(f"{contender.name}, {state} start")
                times[state] = _start(contender, images, task, environment)
    return found


def _start(contender: Contender, images: Path, task: RunSettings, environment: dict[str, str]) -> dict[str, float]:
    begun = time.perf_counter()
    with Worker(Session(contender), contender.name, environment) as worker:
        worker.call("load", images)
        started = time.perf_counter() - begun
        opened = worker.call("open")["open_seconds"]
        first, *steady = (worker.call("run", task)["seconds"]["loop"] for _ in range(1 + STEADY_RUNS))
        return {"start": started, "open": opened, "first": first, "steady": min(steady)}
