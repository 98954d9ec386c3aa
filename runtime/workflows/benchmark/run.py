"""The benchmark from options to record: open the contenders, check accuracy, then measure what the options ask for."""

import datetime
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from ...backends.engine_set import ENGINES, EngineSet, load_engine_set
from ...host.files.whole_files import write_text
from ...host.machine import cores
from ...host.progress import silent
from ...loop.schedules import Schedule
from ...registration.options import Options
from ...types import Record
from .contenders.arithmetic import NetworkWork
from .contenders.contender import EngineContender, Others, RunSettings
from .contenders.line_up import LineUp, Peaks
from .contenders.process import call_once
from .machine.gpu import gpu_warnings
from .machine.host import machine_facts
from .measuring.accuracy_gate import check_all
from .measuring.end_to_end import end_to_end, start_up
from .measuring.rounds import Progress, account, against, run_warnings, seconds, speed, take_turns
from .measuring.statistics import BUSY_LOAD, line_fit, summary
from .options import SHAPE, BenchmarkOptions, Shape
from .pairs import GeneratedPair, RealPair
from .report import text as table

FORMAT, VERSION = "rpnet-benchmark", 1
WHOLE_RUNS = 3  # most rounds of whole registrations, and of many moving images to one fixed
SWEEP_SCHEDULE = "1,1,1,1"
Pair = GeneratedPair | RealPair


def run_benchmark(
    options: BenchmarkOptions,
    others: Callable[[bool], Others] = lambda on_gpu: Others(),
    command: Sequence[str] | None = None,
    echo: Callable[[str], None] = lambda text: None,
    progress: Progress = silent,
) -> Record:
    """Measure what the options ask for; nothing is timed before all contenders have passed the accuracy gate.

    Args:
        options: options, already checked.
        others: returns contenders from outside the runtime, such as PyTorch, and the references; its argument says
            whether any engine runs on a GPU. Speed is given as a ratio to each.
        command: command line that starts the program, such as (python, cli.py); None: the command is not measured.
        echo: receives each part of the result, as text, when it is known.
        progress: receives the name of each step.

    Returns:
        The record: plain types, everything that was echoed and every raw sample. `table.render` renders it again.

    Raises:
        InputError: anything that makes the benchmark impossible.
        GateError: the flow of a contender differs too much from the reference.
    """
    engine_set = load_engine_set(options.engine_dir)
    record = _head(options, engine_set)
    with LineUp(options, others, progress) as line_up, tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, engine_set, line_up, command, Path(folder), record, echo, progress)
        try:
            bench.sweep() if options.shapes else bench.one_pair()
        finally:  # measurements so far are kept if a later part fails
            _save(record, options)
    return record


def _save(record: Record, options: BenchmarkOptions) -> None:
    """Write the record, its picture and its page, once there are times in it."""
    if not {"against", "fits"} & record.keys():
        return
    if options.json:
        write_text(options.json, json.dumps(record, indent=1, default=str) + "\n")
    if options.plot:
        from .report.plot import draw

        draw(record, options.plot)
    if options.html:
        from .report.page import write_benchmark_page

        write_benchmark_page(options.html, [record])


class Bench:
    """A running benchmark, which fills a record part by part."""

    def __init__(
        self,
        options: BenchmarkOptions,
        engine_set: EngineSet,
        line_up: LineUp,
        command: Sequence[str] | None,
        folder: Path,
        record: Record,
        echo: Callable[[str], None],
        progress: Progress,
    ) -> None:
        self._options, self._set, self._field, self._command = options, engine_set, line_up, command
        self._folder, self._record, self._echo, self._progress = folder, record, echo, progress
        self._task = RunSettings(_schedule(options, engine_set), engine_set.stop["similarity"])
        self._images = folder / "pair.npz"
        self._rounds = record["runs"], record["warmup"] = options.rounds(all(entry.on_gpu for entry in line_up.entries))
        record["contenders"] = [{"name": entry.name, **entry.facts} for entry in line_up.entries]
        record["left_out"] = line_up.left_out

    def _echo_part(self, part: str) -> None:
        if text := table.section(part, self._record):
            self._echo(text)

    def _make(self, pair: Pair) -> Shape:
        """Write the pair to disk and load it into every contender; return its shape."""
        self._progress(f"preparing {pair.words}")
        shape = tuple(call_once(pair, "preparing the pair", "make", self._images))
        for worker in self._field.workers:
            worker.call("load", self._images)
        return shape

    def _gate(self) -> Record:
        with self._field.reference() as (reference, words):
            self._progress(f"accuracy, against {words}")
            if reference not in self._field.workers:
                reference.call("load", self._images)
            contenders = [(entry.worker, entry.facts["precision"]) for entry in self._field.entries]
            rows = check_all(reference, contenders, self._task, self._set.spacing, self._folder)
        return {"reference": words, "rows": rows}

    def one_pair(self) -> None:
        """Measure accuracy, speed, throughput, whole registrations and start-up on one pair."""
        options = self._options
        pair: Pair = GeneratedPair(options.shape or SHAPE)
        if options.fixed is not None and options.moving is not None:
            pair = RealPair(options.fixed, options.moving, options.engine_dir, options.crop_to)
        shape = self._make(pair)
        self._record["pair"] = {"words": pair.words, "shape": shape, "spacing_mm": self._set.spacing}
        self._echo_part("head")
        self._record["gate"] = self._gate()
        self._echo_part("gate")
        self._speed(shape)
        self._throughput()
        if options.files:
            self._whole(pair)
        if options.start_up:
            contenders = [entry.contender for entry in self._field.entries if entry.ours]
            self._record["start_up"] = start_up(contenders, self._images, self._task, self._progress)
            self._echo_part("start_up")
        self._record["doubts"] = self._warnings()
        self._echo_part("doubts")

    def _speed(self, shape: Shape) -> None:
        line_up, options = self._field, self._options
        with Peaks(line_up, options.threads or cores()) as peaks:
            samples = take_turns(line_up.workers, "run", self._task, *self._rounds, self._progress, peaks.measure)
        work = NetworkWork.of(self._set)
        for entry, row in zip(line_up.entries, self._record["contenders"], strict=True):
            own = samples[entry.name]
            gflop = work.registration(shape, own[0]["executed"])
            row |= speed(own)
            row["account"] = account(own, gflop, peaks.best(entry.facts))
            row["peak_bytes"] = entry.worker.call("peak_bytes")
            row["card_memory"] = entry.worker.call("gpu_memory")
            row["doubts"] = run_warnings(entry.name, own, row["account"])
        self._record["peaks"] = peaks.values
        self._record["against"] = {rival: against(samples, rival) for rival in line_up.rivals}
        for part in ("speed", "stages", "account", "against"):
            self._echo_part(part)

    def _throughput(self) -> None:
        """Measure the throughput of many moving images to one fixed image, which is encoded once."""
        runs, workers = min(self._rounds[0], WHOLE_RUNS), self._field.workers
        samples = take_turns(workers, "run_on_same_fixed", self._task, runs, 1, self._progress)
        self._record["throughput"] = {name: _per_image(own) for name, own in samples.items()}
        for worker in workers:
            worker.call("drop_fixed_side")
        self._echo_part("throughput")

    def _whole(self, pair: Pair) -> None:
        scans = pair.scans(self._images, self._folder)
        ours = [
            (entry.worker, entry.contender)
            for entry in self._field.entries
            if isinstance(entry.contender, EngineContender)
        ]
        runs, text = min(self._rounds[0], WHOLE_RUNS), _schedule_text(self._options)
        self._record["whole"] = end_to_end(ours, self._command, scans, text, runs, self._progress)
        self._echo_part("whole")

    def sweep(self) -> None:
        """Measure time against volume, each shape after its own accuracy gate."""
        self._echo_part("head")
        rows = self._record["shapes"] = [self._one_shape(shape) for shape in self._options.shapes]
        volumes = [row["megavoxels"] for row in rows]
        self._record["fits"] = {
            entry.name: line_fit(volumes, [row["loops"][entry.name]["median"] for row in rows])
            for entry in self._field.entries
        }
        self._record["doubts"] = self._warnings() + [line for row in rows for line in row["doubts"]]
        for part in ("shapes", "doubts"):
            self._echo_part(part)

    def _one_shape(self, shape: Shape) -> Record:
        self._make(GeneratedPair(shape))
        gate = self._gate()
        samples = take_turns(self._field.workers, "run", self._task, *self._rounds, self._progress)
        return {
            "shape": shape,
            "megavoxels": shape[0] * shape[1] * shape[2] / 1e6,
            "gate": gate,
            "loops": {name: summary(seconds(own, "loop")) for name, own in samples.items()},
            "samples": samples,
            "doubts": [f"{shape}: {line}" for name, own in samples.items() for line in run_warnings(name, own)],
        }

    def _warnings(self) -> list[str]:
        """Return the warnings about these figures, one line each."""
        machine, lines = self._record["machine"], []
        if (load := machine["load_average"]) is not None and load > BUSY_LOAD * machine["cores"]:
            lines.append(f"the load average was {load:.1f} before the start; other processes are busy on this machine")
        if self._field.on_gpu:
            lines += gpu_warnings(machine["card"])
        for row in self._record.get("gate", {}).get("rows", ()):
            if not row.get("counts_equal", True):
                lines.append(f"{row['name']}: iterations {row['counts']}, the reference's {row['expected_counts']}")
        return lines + [line for row in self._record["contenders"] for line in row.get("doubts", ())]


def _per_image(samples: list[Record]) -> Record:
    both = [loop + finish for loop, finish in zip(seconds(samples, "loop"), seconds(samples, "finish"), strict=True)]
    found = summary(both)
    return {"seconds": found, "per_hour": 3600 / found["median"], "samples": samples}


def _schedule_text(options: BenchmarkOptions) -> str:
    return options.schedule or (SWEEP_SCHEDULE if options.shapes else "iterstop")


def _schedule(options: BenchmarkOptions, engine_set: EngineSet) -> Schedule:
    return Options(schedule=_schedule_text(options)).resolved(engine_set).build_schedule()


def _head(options: BenchmarkOptions, engine_set: EngineSet) -> Record:
    from ...registration.output.report import versions

    schedule = _schedule(options, engine_set)
    hashes = {
        precision: {name: engine_set.graph_hash(name, precision) for name in ENGINES}
        for precision in engine_set.precisions
    }
    return {
        "format": FORMAT,
        "version": VERSION,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine_facts(),
        "versions": versions(),
        "engine_set": {"folder": str(engine_set.folder), "sha256": hashes},
        "schedule": schedule.as_dict(),
        "stop": dict(engine_set.stop) if schedule.name == "iterstop" else None,
        "threads": options.threads or cores(),
    }
