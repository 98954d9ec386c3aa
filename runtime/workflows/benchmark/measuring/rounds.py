"""Speed: contenders take turns, run by run; summaries of their runs."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from ..contenders.contender import RunSettings
from ..contenders.process import Worker
from .statistics import BUSY_SHARE, TRUSTED_SPREAD, ratios, spread, summary

Progress = Callable[[str], None]
Samples = dict[str, list[dict[str, Any]]]
# Stages counted as field operations in the account of a run's time; time in no stage is the loop's own overhead.
FIELD_STAGES: tuple[str, ...] = (
    "warp",
    "compose",
    "upsample",
    "score",
    "score set-up",
    "fill fixed half",
    "zero",
    "warp image",
)
FIELD_STAGES += ("smooth", "smooth set-up")
OUTSIDE_LOOP = ("finish",)


def take_turns(
    workers: list[Worker],
    method: str,
    task: RunSettings,
    runs: int,
    warmup: int,
    progress: Progress,
    between: Callable[[], None] = lambda: None,
) -> Samples:
    """Run contenders in turn (A B C A B C ...) and return their samples.

    Args:
        workers: contenders.
        method: method of `Session` to call.
        task: its argument.
        runs: timed rounds.
        warmup: untimed rounds before them.
        progress: receives the name of each round and contender.
        between: is called after each timed round.
    """
    samples: Samples = {worker.name: [] for worker in workers}
    for number in range(-warmup, runs):
        for worker in workers:
            progress(f"{round_name(number, runs)}: {worker.name}")
            sample = worker.call(method, task)
            if number >= 0:
                samples[worker.name].append(sample)
        if number >= 0:
            between()
    return samples


def round_name(number: int, runs: int) -> str:
    """Return the name of a round for messages; rounds below 0 are warm-up."""
    return f"round {number + 1} of {runs}" if number >= 0 else "round to warm up"


def seconds(samples: list[dict[str, Any]], part: str) -> list[float]:
    """Return the seconds of one part of every run: ``loop``, ``finish`` or ``fixed side``."""
    return [sample["seconds"][part] for sample in samples]


def stage_rows(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per stage and level: calls per run, seconds per call, and share of loop and finish together."""
    calls: dict[tuple[str, int | None], list[float]] = defaultdict(list)
    for sample in samples:
        for stage, level, duration in sample["spans"]:
            calls[stage, level].append(duration)
    whole = sum(seconds(samples, "loop")) + sum(seconds(samples, "finish"))
    rows = [
        {
            "stage": stage,
            "level": level,
            "calls": len(durations) / len(samples),
            "seconds": summary(durations),
            "share": sum(durations) / whole,
        }
        for (stage, level), durations in calls.items()
    ]
    return sorted(rows, key=lambda row: -row["share"])


def speed(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Summarise the runs of one contender: loop, finish, fixed side, stages and the spread of the runs."""
    found = {part.replace(" ", "_"): summary(seconds(samples, part)) for part in ("loop", "finish", "fixed side")}
    return {**found, "stages": stage_rows(samples), "spread": spread(seconds(samples, "loop")), "samples": samples}


def account(samples: list[dict[str, Any]], gflop: dict[str, float], peak: float | None) -> dict[str, Any]:
    """Break down the loop's time, in mean seconds per run, and compare it with the time at peak throughput.

    Args:
        samples: runs of one contender.
        gflop: the work of one run, ``encode``, ``estimator`` and ``total``.
        peak: GFLOP/s its device reaches in matrix products at this precision; None: not measured.

    Returns:
        ``loop``, and its parts ``estimator``, ``encode``, ``fields`` and ``overhead`` (time in no span: on a GPU its
        idle time, at decisions or where the host launches too slowly), which add up to it; the ``floor`` of each engine
        part (the time of its work at the peak); ``gflops`` reached, over the whole loop and while an estimator runs;
        the loop's share of the peak, on average and in the fastest run.
    """
    loop = sum(seconds(samples, "loop")) / len(samples)
    parts = {
        "estimator": _mean(samples, ("estimator",)),
        "encode": _mean(samples, ("encode",)),
        "fields": _mean(samples, FIELD_STAGES),
    }
    found: dict[str, Any] = {
        "loop": loop,
        **parts,
        "overhead": loop - sum(parts.values()),
        "gflop": gflop,
        "gflops": gflop["total"] / loop,
        "estimator_gflops": gflop["estimator"] / parts["estimator"] if parts["estimator"] else None,
        "peak_gflops": peak,
    }
    if peak:
        found["floor"] = {name: gflop[name] / peak for name in ("estimator", "encode", "total")}
        found["share_of_peak"] = found["gflops"] / peak
        found["share_of_peak_fastest"] = gflop["total"] / min(seconds(samples, "loop")) / peak
    return found


def _mean(samples: list[dict[str, Any]], stages: tuple[str, ...]) -> float:
    return sum(span[2] for sample in samples for span in sample["spans"] if span[0] in stages) / len(samples)


def against(samples: Samples, rival: str) -> dict[str, dict[str, float]]:
    """Return the speed of every other contender relative to the rival, round by round."""
    slow = seconds(samples[rival], "loop")
    return {name: ratios(slow, seconds(own, "loop")) for name, own in samples.items() if name != rival}


def run_warnings(name: str, samples: list[dict[str, Any]], found: dict[str, Any] | None = None) -> list[str]:
    """Return warnings, one line each, about the runs of a contender and their account."""
    lines, wide = [], spread(seconds(samples, "loop"))
    if wide > TRUSTED_SPREAD:
        lines.append(
            f"{name}: runs spread by {wide:.0%} ((p90 - min) / median of the loop), reliable up to {TRUSTED_SPREAD:.0%}"
        )
    others = [sample["others"] for sample in samples if sample["others"] is not None]
    if others and (taken := sum(others) / len(others)) > BUSY_SHARE:
        lines.append(f"{name}: other processes used {taken:.0%} of the machine's processor time while it ran")
    if found and found.get("share_of_peak_fastest", 0) > 1:
        lines.append(f"{name}: its fastest run exceeds the measured peak, which was disturbed or is not its limit")
    return lines
