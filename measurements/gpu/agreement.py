"""Every backend of the GPU compared with ONNX Runtime in fp32 on the CPU: flow, iterations, and Dice with labels."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from measurements.gpu.part import Part
from runtime.backends.engine_set import load_engine_set
from runtime.backends.parity import TOLERANCES, flow_difference
from runtime.backends.registry import BACKENDS
from runtime.errors import InputError, NotAvailableError
from runtime.loop.stop_rules import parse_schedule
from runtime.workflows.benchmark.contenders.contender import EngineContender, RunSettings
from runtime.workflows.benchmark.contenders.process import Worker, call_once
from runtime.workflows.benchmark.contenders.session import Session
from runtime.workflows.benchmark.pairs import GeneratedPair, Shape
from runtime.workflows.benchmark.report.cells import Table, counts

REFERENCE = ("onnxruntime", "fp32")
LARGEST_DICE_DIFFERENCE = 0.002


@dataclass(frozen=True)
class Scans:
    """Two scans, and optionally labels of both for Dice."""

    fixed: Path
    moving: Path
    fixed_labels: Path | None = None
    moving_labels: Path | None = None

    def check(self) -> None:
        """Check that all files exist.

        Raises:
            InputError: labels of one scan only, or a file that does not exist.
        """
        if (self.fixed_labels is None) != (self.moving_labels is None):
            raise InputError("--fixed-labels, --moving-labels: got one, expected both or neither")
        for name, path in vars(self).items():
            if path is not None and not path.is_file():
                raise InputError(f"--{name.replace('_', '-')}: {path} does not exist; check the path")


class Candidate(Session):
    """A contender that may be unavailable on this machine, and that can register scans with their labels."""

    def try_open(self) -> dict[str, Any]:
        """Return ``facts``, or ``not_here`` with the reason; InputError if it is available but does not open."""
        try:
            return {"facts": self.open()}
        except NotAvailableError as error:
            return {"not_here": str(error)}

    def register_scans(self, scans: Scans, flow_path: Path) -> dict[str, Any]:
        """Register and write the flow (.npy); return counts, similarity and, with labels, their mean Dice."""
        import runtime
        from runtime.images.overlap import common_labels, mean_dice
        from runtime.images.volume import read_labels

        result = runtime.register(scans.fixed, scans.moving, self.runner.plain, moving_labels=scans.moving_labels)
        np.save(flow_path, result.transform.flow)
        found = {"counts": result.iterations.counts, "similarity": result.iterations.similarity, "dice": None}
        if scans.fixed_labels:
            truth = read_labels(scans.fixed_labels, "--fixed-labels").data
            labels = common_labels(truth, result.labels.data)
            found["dice"] = mean_dice(truth, result.warped_labels, labels)
        return found


def compare(found: dict, expected: dict, voxels: dict[str, float], precision: str) -> dict[str, Any]:
    """Compare a result with the CPU's: a row of differences, and ``refusal``, the reason it fails, or None."""
    row = {
        "voxels": voxels,
        "counts": found["counts"],
        "expected_counts": expected["counts"],
        "counts_equal": found["counts"] == expected["counts"],
        "similarity": found["similarity"],
        "dice": found.get("dice"),
        "dice_difference": None,
    }
    row["refusal"] = TOLERANCES[precision].refusal(row)
    if row["dice"] is not None:
        row["dice_difference"] = difference = row["dice"] - expected["dice"]
        if row["refusal"] is None and not abs(difference) <= LARGEST_DICE_DIFFERENCE:
            row["refusal"] = f"its Dice differs by {difference:+.4f}, allowed {LARGEST_DICE_DIFFERENCE}"
    return row


class Agreement:
    """Comparison of candidates with the reference on a generated pair and, if given, on scans.

    Args:
        engine_dir: the engine set.
        shape: shape of the generated pair.
        scans: a second pair.
        candidates: contenders to compare with the reference; None: all of the GPU.
        progress: receives the name of each step.
    """

    def __init__(
        self,
        engine_dir: Path,
        shape: Shape,
        scans: Scans | None = None,
        candidates: Sequence[EngineContender] | None = None,
        progress: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._engine_dir, self._shape, self._scans, self._progress = engine_dir, shape, scans, progress
        self._candidates = list(of_the_gpu(engine_dir)) if candidates is None else candidates
        engine_set = load_engine_set(engine_dir)
        schedule = parse_schedule("iterstop", **engine_set.stop)
        self._task = RunSettings(schedule, engine_set.stop["similarity"])
        self.passed: list[EngineContender] = []
        self.failed: list[EngineContender] = []

    def part(self) -> Part:
        """Compare; afterwards `passed` and `failed` hold the candidates that are available on this machine."""
        part = Part("GPU against CPU", record={"rows": [], "not opened": []})
        with tempfile.TemporaryDirectory() as folder:
            self._folder = Path(folder)
            self._images = self._folder / "pair.npz"
            pair = GeneratedPair(self._shape)
            self._progress(f"preparing {pair.words}")
            call_once(pair, "preparing the pair", "make", self._images)
            reference = EngineContender(self._engine_dir, *REFERENCE)
            self._progress(f"the CPU's result, {reference.name}")
            with Worker(Candidate(reference), reference.name) as worker:
                worker.call("open")
                expected = dict(self._results(worker, "expected"))
            for candidate in self._candidates:
                self._add(part, candidate, expected)
        part.lines = _lines(part.record, reference.name)
        if not part.record["rows"]:
            part.wrong.append("no backend of the GPU could be opened")
        return part

    def _results(self, worker: Worker, name: str) -> Iterator[tuple[str, tuple[dict, Path]]]:
        """Yield, for each pair, its name, a contender's result and the file of its flow."""
        worker.call("load", self._images)
        path = self._folder / f"{name}.npy"
        yield GeneratedPair(self._shape).words, (worker.call("check", self._task, path), path)
        if self._scans:
            path = self._folder / f"{name}_scans.npy"
            yield self._scans.moving.name, (worker.call("register_scans", self._scans, path), path)

    def _add(self, part: Part, candidate: EngineContender, expected: dict[str, tuple[dict, Path]]) -> None:
        """Add the rows of one candidate to the part, or the reason why there are none."""
        self._progress(f"{candidate.name} beside the CPU")
        try:
            with Worker(Candidate(candidate), candidate.name) as worker:
                opened = worker.call("try_open")
                if "not_here" in opened:
                    part.record["not opened"].append({"name": candidate.name, "reason": opened["not_here"]})
                    return
                found = dict(self._results(worker, "found"))
        except InputError as error:
            part.wrong.append(f"{candidate.name}: {error}")
            self.failed.append(candidate)
            return
        rows = [
            {
                "name": candidate.name,
                "pair": pair,
                "facts": opened["facts"],
                **compare(result, expected[pair][0], _difference(path, expected[pair][1]), candidate.precision),
            }
            for pair, (result, path) in found.items()
        ]
        part.record["rows"] += rows
        refusals = [f"{candidate.name}, {row['pair']}: {row['refusal']}" for row in rows if row["refusal"]]
        part.wrong += refusals
        (self.failed if refusals else self.passed).append(candidate)


def of_the_gpu(engine_dir: Path) -> Iterator[EngineContender]:
    """Yield every backend of a GPU, in each of the precisions that the set offers for it."""
    engine_set = load_engine_set(engine_dir)
    for name, backend in BACKENDS.items():
        for precision in backend.offered(engine_set) if backend.gpu else ():
            yield EngineContender(engine_dir, name, precision)


def _difference(found: Path, expected: Path) -> dict[str, float]:
    return flow_difference(np.load(found), np.load(expected))


def _lines(record: dict, reference: str) -> list[str]:
    head = ("", "pair", "verdict", "max voxel", "mean voxel", "iterations", "CPU's", "Dice", "difference")
    table = [
        [
            row["name"],
            row["pair"],
            "fails" if row["refusal"] else "passes",
            f"{row['voxels']['max']:.2g}",
            f"{row['voxels']['mean']:.2g}",
            counts(row["counts"]),
            counts(row["expected_counts"]),
            "-" if row["dice"] is None else f"{row['dice']:.4f}",
            "-" if row["dice_difference"] is None else f"{row['dice_difference']:+.4f}",
        ]
        for row in record["rows"]
    ]
    lines = [f"Flows against {reference} on the CPU: length of the difference.", ""] if table else []
    lines += [*Table(head, table).lines(), ""] if table else []
    return lines + [f"- not opened: {entry['name']}: {entry['reason']}" for entry in record["not opened"]]
