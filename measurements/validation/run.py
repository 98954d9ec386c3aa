"""Registration of the couples in both directions by every method; recorded results are not computed again."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from measurements.validation.greedy import Greedy
from measurements.validation.methods import GREEDY, Method
from measurements.validation.scans import Couple
from measurements.validation.scores import Scorer, inconsistency
from measurements.validation.template import write_warped_labels
from runtime.backends.engines import OpenEngines
from runtime.errors import InputError
from runtime.geometry.transform import Transform
from runtime.host.files.hashes import sha256_of_facts
from runtime.host.files.plain_json import as_json
from runtime.host.files.whole_files import write_text
from runtime.registration.options import Options
from runtime.registration.scans import FixedScan, ReadyPair
from runtime.transforms.conventions.plain_affine import write_affine
from runtime.workflows.evaluation.scoring.memoised_pair import MemoisedPair, ResultMemory, TimeAccount

DIRECTIONS = ("forward", "backward")


@dataclass(frozen=True)
class Folder:
    """Output folder: ``records/``, ``carried/`` (template group), ``affine/`` (the matrices used), ``greedy/``."""

    path: Path

    def record(self, couple: Couple, key: str) -> Path:
        return self.path / "records" / couple.name / f"{key}.json"

    def warped_labels(self, couple: Couple, key: str) -> Path:
        return self.path / "carried" / key / f"{couple.other.name}.npz"

    def affine(self, couple: Couple, direction: str) -> Path:
        return self.path / "affine" / f"{couple.name}.{direction}.txt"


def key_of(method: Method, hashes: dict[str, str], affine: str) -> str:
    """Return the name of a record: a hash of method, engines and affine initialisation."""
    options = method.options and {k: v for k, v in vars(method.options).items() if k != "affine" and v is not None}
    return sha256_of_facts([method.name if options is None else options, hashes, affine])[:16]


class ReadyCouple:
    """Both directions of a couple, read, aligned and encoded on first use.

    Args:
        couple: the two scans.
        engines: open engines.
        affine: "auto", "none", or a folder of matrices that an earlier run wrote (`Folder.affine`).
        folder: output folder of this run.
    """

    def __init__(self, couple: Couple, engines: OpenEngines, affine: str, folder: Folder) -> None:
        self._couple, self._engines, self._affine, self._folder = couple, engines, affine, folder
        self._memories = {direction: ResultMemory() for direction in DIRECTIONS}

    @cached_property
    def pairs(self) -> dict[str, ReadyPair]:
        """Pairs by direction; "forward" has `couple.one` as its fixed scan."""
        one, other = self._couple.one.image, self._couple.other.image
        found = {}
        for direction, (fixed, moving) in zip(DIRECTIONS, ((one, other), (other, one)), strict=True):
            choice = self._affine
            if choice not in ("auto", "none"):
                choice = str(Folder(Path(choice)).affine(self._couple, direction))
            found[direction] = FixedScan(fixed, self._engines, Options(affine=choice)).align(moving)
            path = self._folder.affine(self._couple, direction)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_affine(path, found[direction].ready.affine)
        return found

    @cached_property
    def scorers(self) -> dict[str, Scorer]:
        """Scorers by direction."""
        scans = self._couple.one, self._couple.other
        ends = dict(zip(DIRECTIONS, (scans, scans[::-1]), strict=True))
        return {name: Scorer(self.pairs[name], *ends[name], self._couple.labels) for name in DIRECTIONS}

    def register(self, direction: str, options: Options) -> tuple[Transform, dict[str, Any]]:
        """Return the transform that a method finds, and the iterations and seconds of its loop."""
        account, memory = TimeAccount(), self._memories[direction]
        key = options.resolved(self._engines.engine_set).similarity, options.smooth
        result = self.pairs[direction].register(options, through=lambda pair: MemoisedPair(pair, memory, *key, account))
        return result.transform, {"iterations": list(result.iterations.counts[0]), "seconds": account.seconds}


def run(
    couples: list[Couple],
    methods: list[Method],
    engines: OpenEngines,
    affine: str,
    folder: Folder,
    progress: Callable[[str], None],
) -> None:
    """Run and record the missing results of some methods, all of one engine set (greedy's belong to any set)."""
    hashes = dict(engines.engine_set.hashes)
    for number, couple in enumerate(couples, start=1):
        ready = ReadyCouple(couple, engines, affine, folder)
        for method in methods:
            key = key_of(method, hashes if method.options else {}, affine if method.options else "")
            if folder.record(couple, key).exists():
                continue
            try:
                record = _run_one(ready, couple, method, folder, key)
            except InputError as error:  # a failure of one couple must not stop the others
                progress(f"{couple.name}, {method.title}: failed: {error}")
                continue
            write_record(folder.record(couple, key), record)
            progress(f"{number} of {len(couples)}, {couple.name}, {method.title}: {_dice_text(record)}")


def _run_one(ready: ReadyCouple, couple: Couple, method: Method, folder: Folder, key: str) -> dict[str, Any]:
    transforms, record = {}, {"couple": couple.name, "method": method.title}
    for direction, scorer in ready.scorers.items():
        if method.options is None:
            fixed, moving = (couple.one, couple.other)[:: 1 if direction == "forward" else -1]
            greedy, name = Greedy(folder.path / "greedy"), f"{couple.name}.{direction}"
            transforms[direction] = greedy.register(fixed.image, moving.image, name, method.name == GREEDY)
            facts: dict[str, Any] = {}
        else:
            transforms[direction], facts = ready.register(direction, method.options)
        record[direction] = {**scorer.score(transforms[direction]), **facts}
    for direction, reverse in zip(DIRECTIONS, DIRECTIONS[::-1], strict=True):
        points = ready.scorers[direction].points
        record[direction] |= {"inconsistency": inconsistency(transforms[direction], transforms[reverse], points)}
    if couple.one.labels is None:
        path = folder.warped_labels(couple, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        grid = ready.pairs["forward"].fixed.grid
        onto, back_from = ready.scorers.values()
        write_warped_labels(path, onto, transforms["forward"], back_from, transforms["backward"], grid)
    return record


def write_record(path: Path, record: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, as_json(record))


def read_record(path: Path) -> dict[str, Any]:
    """Read a record; its labels, strings in JSON, become numbers again."""
    record = json.loads(path.read_text())
    for direction in DIRECTIONS:
        if "dice" in record[direction]:
            record[direction]["dice"] = {int(label): dice for label, dice in record[direction]["dice"].items()}
    return record


def _dice_text(record: dict[str, Any]) -> str:
    means = []
    for direction in DIRECTIONS:
        dice = record[direction].get("dice")
        means.append(f"{sum(dice.values()) / len(dice):.3f}" if dice else "-")
    return f"Dice {', '.join(means)}"
