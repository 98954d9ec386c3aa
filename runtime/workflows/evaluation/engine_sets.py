"""Engine sets to compare: their names in tables, their sizes, and the export of checkpoints."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from ...backends.engine_set import MANIFEST, EngineSet, load_engine_set
from ...errors import InputError
from ...host.files.hashes import sha256_of_file
from ...host.progress import Progress
from ...loop.schedules import LEVELS
from .options import EvaluateOptions, Export

EXPORTED = "engines"  # folder of exported checkpoints, beside the results, so that another run finds them
KERNEL = 27  # weights of a 3x3x3 convolution for one channel in and one out


@dataclass(frozen=True)
class NamedSet:
    """An engine set and its name in tables; empty if there is only one."""

    name: str
    engine_set: EngineSet

    def facts(self) -> dict[str, Any]:
        """Return the facts that tables and readers need, plain types."""
        return {
            "name": self.name,
            "engine_dir": str(self.engine_set.folder),
            "engines": dict(self.engine_set.hashes),
            "res_blocks": int(self.engine_set.manifest["network"]["res_blocks"]),
            "parameters": parameters(self.engine_set),
        }


def open_sets(options: EvaluateOptions, export: Export | None, progress: Progress) -> tuple[NamedSet, ...]:
    """Load and check the sets of all folders and checkpoints; checkpoints are exported unless done already.

    Raises:
        InputError: a set or checkpoint that cannot be used, or checkpoints without `export`.
    """
    folders = [*options.engine_dirs]
    for checkpoint in options.checkpoints:
        folders.append(_exported(checkpoint, options.output / EXPORTED, export, progress))
    names = _names([*options.engine_dirs, *options.checkpoints])
    return tuple(NamedSet(name, load_engine_set(folder)) for name, folder in zip(names, folders, strict=True))


def _exported(checkpoint: Path, folder: Path, export: Export | None, progress: Progress) -> Path:
    place = folder / f"{checkpoint.stem}.{sha256_of_file(checkpoint)[:8]}"
    if (place / MANIFEST).is_file():
        return place
    if export is None:
        raise InputError(f"--checkpoint: {checkpoint} cannot be exported from here; give --engine-dir of its set")
    progress(f"export {checkpoint}")
    export(checkpoint, place)
    return place


def _names(paths: Sequence[Path]) -> list[str]:
    """Return the shortest distinct names of paths: their last parts, with as many parents as needed."""
    if len(paths) == 1:
        return [""]
    parts = [path.absolute().with_suffix("").parts for path in paths]
    for depth in range(1, 1 + max(map(len, parts))):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise InputError("--engine-dir, --checkpoint: one is given twice; give each once")


def parameters(engine_set: EngineSet) -> int:
    """Return the number of weights and biases of a set's network, from the layers its manifest describes."""
    channels, blocks = engine_set.channels, int(engine_set.manifest["network"]["res_blocks"])
    finest_first = [1, *(channels[level] for level in reversed(LEVELS))]
    total = sum(_convolution(a, b) for a, b in pairwise(finest_first))
    for level in LEVELS:
        width = 2 * channels[1] if level == 1 else 4 * channels[1]
        total += _convolution(2 * channels[level], width) + blocks * _convolution(width, width)
        total += _convolution(width, width // 2) + _convolution(width // 2, 3)
    return total


def _convolution(before: int, after: int) -> int:
    return (KERNEL * before + 1) * after
