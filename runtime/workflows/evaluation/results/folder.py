"""Folder of an evaluation: a record for each pair, from which an interrupted or larger run continues."""

from pathlib import Path

from ....errors import InputError, explained
from ....host.files.hashes import sha256_of_facts, sha256_of_file
from ....host.files.plain_json import as_json, read_record
from ....host.files.whole_files import write_text
from ....transforms.formats import AUTO
from ....types import Record
from ..engine_sets import EXPORTED
from ..options import EvaluateOptions
from ..pair_list import EvaluationPair

FORMAT, VERSION = "rpnet-evaluated-pair", 2
PAIRS = "pairs"
SCORES, TABLE, LABELS = "scores.json", "scores.csv", "labels.csv"
MARKDOWN, PAGE, BOXES, CURVES, DELTAS = "table.md", "index.html", "boxes.png", "curves.png", "deltas.png"
KEPT = ("engine_sets", "versions", "methods")  # kept from an earlier record of the same inputs and options


class ScoresFolder:
    """Records by name, and the paths of all other results.

    Args:
        options: see `EvaluateOptions`.

    Raises:
        InputError: the folder cannot be made, or an input lies where results go.
    """

    def __init__(self, options: EvaluateOptions) -> None:
        self.path, self._options = options.output, options
        with explained("--output"):
            (self.path / PAIRS).mkdir(parents=True, exist_ok=True)
        names = (PAIRS, EXPORTED, SCORES, TABLE, LABELS, MARKDOWN, PAGE, BOXES, CURVES, DELTAS)
        taken = [(self.path / name).resolve() for name in names]
        for file in (file for pair in options.pairs for file in pair.files().values()):
            if any(file.resolve().is_relative_to(place) for place in taken):
                raise InputError(f"--output: the input {file} lies in the folder of the results; choose another folder")

    def file(self, name: str) -> Path:
        return self.path / PAIRS / f"{name}.json"

    def begin(self, pair: EvaluationPair, label_ids: tuple[int, ...] | None) -> Record:
        """Return a pair's record: that of an earlier run with the same inputs and options, else a new, empty one.

        Raises:
            InputError: an input cannot be read.
        """
        inputs = {}
        for what, file in pair.files().items():
            with explained(f"pair {pair.name}"):
                inputs[what] = {"path": str(file), "sha256": sha256_of_file(file)}
        chain = [link.inverse for link in pair.transform]
        hashes = {what: found["sha256"] for what, found in inputs.items()}
        key = sha256_of_facts((VERSION, hashes, chain, self._options.of_a_pair(label_ids and tuple(label_ids))))
        head: Record = {"format": FORMAT, "version": VERSION, "name": pair.name, "key": key, "inputs": inputs}
        head["choices"] = self._options.of_a_pair(label_ids)
        if pair.convention != AUTO:
            head["choices"]["convention"] = pair.convention  # not in the key: only the given transform depends on it
        earlier = self._earlier(pair.name)
        kept = {name: earlier[name] for name in KEPT if name in earlier} if earlier.get("key") == key else {}
        return {**head, "engine_sets": {}, "methods": {}, **kept}

    def write(self, record: Record) -> None:
        write_text(self.file(record["name"]), as_json(record))

    def _earlier(self, name: str) -> Record:
        record = read_record(self.file(name), FORMAT, VERSION)
        return record if isinstance(record.get("methods"), dict) else {}
