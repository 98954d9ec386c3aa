"""Throughput from host images to host flows, one pair after another and several in flight on the GPU."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from measurements.gpu.part import Part
from runtime.errors import InputError
from runtime.workflows.benchmark.contenders.contender import EngineContender
from runtime.workflows.benchmark.contenders.process import call_once
from runtime.workflows.benchmark.pairs import GeneratedPair, Shape
from runtime.workflows.benchmark.report.cells import Table, ms, number

IN_FLIGHT = (1, 2, 4)
ROUNDS, FILLING = 8, 2  # timed results per lane, and untimed ones before them, while lanes open and fill


@dataclass(frozen=True)
class RepeatedRegistration:
    """Repeated registration of one generated pair, in a process of its own."""

    contender: EngineContender
    shape: Shape

    def measure(self, in_flight: int, folder: Path) -> dict[str, Any]:
        """Return the seconds per pair, over `ROUNDS` results per lane after the first ones."""
        from runtime.registration.batch.concurrent import register_many

        with np.load(folder / "pair.npz") as arrays:
            pair = arrays["fixed"], arrays["moving"]
        filling, count = FILLING * in_flight, (FILLING + ROUNDS) * in_flight
        names = self.contender.engine_dir, self.contender.backend, self.contender.precision
        times = []
        for _ in register_many([pair] * count, *names, in_flight=in_flight):
            times.append(time.perf_counter())
        return {"in_flight": in_flight, "seconds": (times[-1] - times[filling - 1]) / (count - filling)}


def throughput(contenders: Sequence[EngineContender], shape: Shape, folder: Path) -> Part:
    """Measure all contenders and return the table; a number in flight that needs too much memory is noted."""
    GeneratedPair(shape).make(folder / "pair.npz")
    part = Part("Throughput", record=[])
    for contender in contenders:
        for in_flight in IN_FLIGHT:
            try:
                found = call_once(RepeatedRegistration(contender, shape), contender.name, "measure", in_flight, folder)
            except InputError as error:
                part.notes.append(f"{contender.name}, {in_flight} in flight: {error}")
                break
            part.record.append({"name": contender.name, **found})
    part.lines = table(part.record)
    return part


def table(record: Sequence[dict[str, Any]]) -> list[str]:
    """Return the table: ms per pair, pairs per hour, and throughput relative to one in flight."""
    one = {row["name"]: row["seconds"] for row in record if row["in_flight"] == 1}
    rows = [
        [
            row["name"],
            str(row["in_flight"]),
            ms(row["seconds"]),
            f"{3600 / row['seconds']:.0f}",
            number(one[row["name"]] / row["seconds"], 2),
        ]
        for row in record
    ]
    words = "From arrays on the host to a flow there: checked, uploaded, registered, downloaded. With several in flight"
    words += " no CUDA graphs are captured."
    return [words, "", *Table(("", "in flight", "ms per pair", "pairs per hour", "times one"), rows).lines()]
