"""Results of an evaluation: scores by method and pair, their means and standard deviations."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from ....types import Record
from ..methods import Method
from .folder import BOXES, CURVES, DELTAS, MARKDOWN, PAGE

# Scores of a method, in the order of tables; `iterations` come in addition.
FIGURES = (
    "dice",
    "hd95_mm",
    "asd_mm",
    "labels_lost",
    "landmark_error_mm",
    "folded_share",
    "folded_inside",
    "sd_log_jacobian",
    "mse",
    "ncc",
    "seconds_loop",
    "seconds",
)


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (0 of a single value) of a score over pairs."""

    mean: float
    sd: float
    count: int


@dataclass(frozen=True)
class Evaluation:
    """Result of a run.

    Attributes:
        folder: folder of the results.
        methods: methods in the order of tables.
        records: records of the pairs, in the list's order, as in ``pairs/``.
        sets: facts about the engine sets.
    """

    folder: Path
    methods: tuple[Method, ...]
    records: tuple[Record, ...]
    sets: tuple[dict[str, Any], ...]

    def entries(self, method: Method) -> list[tuple[str, dict[str, Any]]]:
        """Return name and scores of each pair that this method scored."""
        found = [(record["name"], record["methods"].get(method.title, {"error": ""})) for record in self.records]
        return [(name, entry) for name, entry in found if "error" not in entry]

    def values(self, method: Method, figure: str) -> list[float]:
        """Return one score of every pair that has it."""
        values = [entry.get(figure) for _, entry in self.entries(method)]
        return [value for value in values if value is not None and math.isfinite(value)]

    def spread(self, method: Method, figure: str) -> Spread | None:
        """Return the spread of a score over pairs; None if no pair has it."""
        return spread(self.values(method, figure))

    def iterations(self, method: Method) -> list[float]:
        """Return the mean iterations at levels 4 to 1, summed over passes."""
        counts = [
            [sum(levels) for levels in zip(*entry["iterations"], strict=True)]
            for _, entry in self.entries(method)
            if entry.get("iterations")
        ]
        return [fmean(level) for level in zip(*counts, strict=True)]

    @property
    def failures(self) -> list[tuple[str, str]]:
        """Failures: pair, with engine sets or method where the failure is theirs, and the error."""
        found = []
        for record in self.records:
            reasons: dict[str, list[str]] = {}
            for trouble in record.get("errors", ()):
                reasons.setdefault(trouble["error"], [record["name"]]).append(trouble["engines"])
            found += [(", ".join(filter(None, names)), error) for error, names in reasons.items()]
        for record in self.records:
            for method in self.methods:
                if "error" in (entry := record["methods"].get(method.title, {})):
                    found.append((f"{record['name']}, {method.title}", entry["error"]))
        return found

    @property
    def only_scarcity(self) -> bool:
        """True if every failure was for lack of resources, so that another run may succeed."""
        parts = []
        for record in self.records:
            parts += [*record.get("errors", ()), *(record["methods"].get(method.title, {}) for method in self.methods)]
        return all(part["scarce"] for part in parts if "error" in part)

    @property
    def warnings(self) -> list[tuple[str, str]]:
        """Warnings about headers, positions and results, each once: pair, line."""
        found: dict[tuple[str, str], None] = {}
        for record in self.records:
            entries = (record["methods"].get(method.title, {}) for method in self.methods)
            parts = (*record["engine_sets"].values(), *entries)
            found |= {(record["name"], line): None for part in parts for line in part.get("warnings", ())}
        return list(found)

    @property
    def to_read(self) -> list[str]:
        """Names of the written files meant for readers, the page first."""
        return [name for name in (PAGE, MARKDOWN, BOXES, CURVES, DELTAS) if (self.folder / name).is_file()]


def spread(values: Sequence[float]) -> Spread | None:
    """Return mean, standard deviation and count of values; None if there are none."""
    if not values:
        return None
    return Spread(fmean(values), stdev(values) if len(values) > 1 else 0.0, len(values))


def so_many_pairs(count: int) -> str:
    """Return a count of pairs in words, such as "1 pair" or "4 pairs"."""
    return f"{count} {'pair' if count == 1 else 'pairs'}"
