"""What an engine set says of itself: `manifest.json` beside the graphs, checked before anything is opened.

The manifest is the set: graphs carry a part of their hash in their names, and replacing the manifest is the one step
that publishes a new set. The runtime learns everything from it and guesses nothing from file names. It holds a hash of
itself too. Graphs are read once, and those bytes are hashed and run: what happens to the files later changes nothing.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import InputError, explained, first_line
from ..host.files.hashes import sha256
from ..images.intensity import rule_from_dict
from ..loop.schedules import LEVELS, iterstop_schedule

FORMAT = "rpnet-engine-set"
VERSION = 2  # 1, which earlier exports wrote, has no hash of itself and is read as well
SEAL = "sha256"  # of the rest of the manifest
LARGEST = 1 << 30  # bytes of a graph
ELSEWHERE = b"location"  # how ONNX names the other file in which a graph keeps weights
MANIFEST = "manifest.json"
EXTRACTOR = "feature_extractor"
IMAGE, FEATURES, RESIDUAL = "image", "features", "residual"
GRAPH_KEYS = {"fp32": "engines", "fp16": "engines_fp16"}  # in the manifest; the latter is optional
REMEDY = "export the set again (python cli.py export --checkpoint best.pt --engine-dir DIR) or restore it"


def estimator_name(level: int) -> str:
    """The engine's name of one level's flow estimator."""
    return f"estimator_level{level}"


def features_name(level: int) -> str:
    """The feature extractor's output of one level."""
    return f"features_level{level}"


ENGINES = (EXTRACTOR, *(estimator_name(level) for level in LEVELS))


@dataclass(frozen=True)
class EngineSet:
    """A checked engine set.

    Attributes:
        folder: where it lies.
        manifest: the whole of `manifest.json`.
        graphs: what was read of its files, ONNX, by engine and precision.
    """

    folder: Path
    manifest: Mapping[str, Any]
    graphs: Mapping[tuple[str, str], bytes] = field(repr=False)

    @property
    def spacing(self) -> float:
        """Voxel size in mm the network was trained at; images are resampled to it."""
        return float(self.manifest["spacing_mm"])

    @property
    def size_multiple(self) -> int:
        """Image sizes must be multiples of this."""
        return int(self.manifest["size_multiple"])

    @property
    def channels(self) -> dict[int, int]:
        """Feature channels by level."""
        return {int(entry["level"]): int(entry["channels"]) for entry in self.manifest["levels"]}

    @property
    def convolutions(self) -> int:
        """Convolutions of an estimator, 3x3x3 each, so that a residual depends on features as many voxels away."""
        return int(self.manifest["network"]["res_blocks"]) + 3

    @property
    def precision(self) -> str:
        return str(self.manifest["precision"])

    @property
    def precisions(self) -> tuple[str, ...]:
        """Those the set has graphs of; sets of an earlier `export` have fp32 only."""
        return tuple(name for name, key in GRAPH_KEYS.items() if name == "fp32" or key in self.manifest)

    @property
    def intensity(self) -> Mapping[str, Any]:
        """The intensity rule as `runtime.images.intensity.rule_from_dict` reads it."""
        return self.manifest["intensity"]

    @property
    def stop(self) -> Mapping[str, Any]:
        """Defaults of IterStop: similarity, delta, limit, on_stop."""
        return self.manifest["stop"]

    @property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of the fp32 graphs by engine name."""
        return {name: self.graph_hash(name, "fp32") for name in self.manifest["engines"]}

    def graph_hash(self, engine: str, precision: str) -> str:
        """SHA-256 of one graph."""
        return self.manifest[GRAPH_KEYS[precision]][engine]["sha256"]

    def check_channels(self, what: str, found: Mapping[int, int], images: int) -> None:
        """Holds channels by level that graphs have for the features of so many images against the manifest's.

        Raises:
            InputError: they differ; `what` the graphs do with them, "takes" or "gives", is in the line.
        """
        for level, channels in found.items():
            if channels != (stated := images * self.channels[level]):
                raise InputError(
                    f"--engine-dir: a graph in {self.folder} {what} {channels} channels at level {level}, "
                    f"the manifest says {stated}; export the set again"
                )

    def graph(self, engine: str, precision: str = "fp32") -> bytes:
        """One graph, ONNX; `precision` is one of `precisions`."""
        return self.graphs[engine, precision]

    def path(self, engine: str, precision: str = "fp32") -> Path:
        """Where a graph was read from; `precision` is one of `precisions`."""
        return self.folder / self.manifest[GRAPH_KEYS[precision]][engine]["file"]

    def require(self, precision: str) -> None:
        """
        Raises:
            InputError: the set has no graphs of this precision.
        """
        if precision not in self.precisions:
            raise InputError(
                f"--precision: the engine set in {self.folder} has graphs in {', '.join(self.precisions)}, not in "
                f"{precision}; export the set again or use --precision {self.precisions[0]}"
            )


def sealed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest with the hash of all that is in it: of its JSON with sorted keys and no spaces."""
    rest = {name: value for name, value in manifest.items() if name != SEAL}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return {**rest, SEAL: sha256(text.encode())}


def load_engine_set(folder: Path | str) -> EngineSet:
    """Reads and checks an engine set: format, version, completeness, and every hash, the manifest's own too.

    Raises:
        InputError: the set is missing, foreign, newer than this program, incomplete or damaged.
    """
    folder = Path(folder)
    manifest = _read_manifest(folder)
    _check_format(folder, manifest)
    engine_set = EngineSet(folder, manifest, {})
    _check_content(engine_set)
    _check_seal(folder, manifest)
    names = [(engine, precision) for precision in engine_set.precisions for engine in ENGINES]
    return replace(engine_set, graphs={name: _read_graph(engine_set, *name) for name in names})


@explained("--engine-dir")
def _read_manifest(folder: Path) -> Any:
    if folder.is_file():
        raise InputError(f"--engine-dir: {folder} is a file, expected the folder of an engine set; {REMEDY}")
    if not folder.is_dir():
        raise InputError(f"--engine-dir: no folder {folder}; expected an engine set; {REMEDY}")
    path = folder / MANIFEST
    if not path.is_file():
        raise InputError(f"--engine-dir: {folder} has no {MANIFEST}; expected an engine set; {REMEDY}")
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"--engine-dir: {path} cannot be read as JSON ({first_line(error)}); {REMEDY}") from None


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _check_format(folder: Path, manifest: Any) -> None:
    kind = manifest.get("format") if isinstance(manifest, dict) else None
    if kind != FORMAT:
        raise InputError(f"--engine-dir: {folder / MANIFEST} has format {kind!r}, expected {FORMAT!r}; {REMEDY}")
    version = manifest.get("version")
    if not isinstance(version, int) or version < 1:
        raise InputError(f"--engine-dir: {folder / MANIFEST} has version {version!r}, expected {VERSION}; {REMEDY}")
    if version > VERSION:
        raise InputError(
            f"--engine-dir: {folder / MANIFEST} has version {version}, this program reads up to {VERSION}; "
            "update this program or export the set with it"
        )


def _check_content(engine_set: EngineSet) -> None:
    """Uses every field the runtime relies on as the runtime will, so that a manifest cannot fail later."""
    place = engine_set.folder / MANIFEST
    try:
        listed = {precision: _files(engine_set, precision) for precision in engine_set.precisions}
        levels = set(engine_set.channels)
        facts = (engine_set.spacing, engine_set.size_multiple, *engine_set.channels.values())
        iterstop_schedule(**engine_set.stop)
        rule_from_dict(engine_set.intensity)
        _ = engine_set.precision, engine_set.convolutions
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(f"--engine-dir: {place} is incomplete or malformed ({error!r}); {REMEDY}") from None
    if levels != set(LEVELS) or not all(0 < fact < math.inf for fact in facts) or facts[1] % 8:
        raise InputError(
            f"--engine-dir: {place} lists levels {sorted(levels)} and sizes {facts}, expected levels 1 to 4, positive "
            f"sizes and a multiple of 8; {REMEDY}"
        )
    for precision, files in listed.items():
        if set(files) != set(ENGINES):
            raise InputError(
                f"--engine-dir: {place} lists {precision} engines {sorted(files)}, expected {sorted(ENGINES)}; {REMEDY}"
            )
        if any(Path(name).name != name or not name.isprintable() for name in files.values()):
            raise InputError(f"--engine-dir: {place} names files outside its folder; {REMEDY}")


def _check_seal(folder: Path, manifest: Mapping[str, Any]) -> None:
    if manifest["version"] > 1 and manifest.get(SEAL) != sealed(manifest)[SEAL]:
        place = folder / MANIFEST
        raise InputError(f"--engine-dir: {place} is damaged or was edited: its SHA-256 is another; {REMEDY}")


def _files(engine_set: EngineSet, precision: str) -> dict[str, str]:
    """File names by engine of one precision, each of which has a hash beside it."""
    entries = engine_set.manifest[GRAPH_KEYS[precision]]
    if not all(isinstance(entry["file"], str) and isinstance(entry["sha256"], str) for entry in entries.values()):
        raise TypeError("an engine's file name or SHA-256 is no text")
    return {engine: entry["file"] for engine, entry in entries.items()}


def _read_graph(engine_set: EngineSet, engine: str, precision: str) -> bytes:
    path = engine_set.path(engine, precision)
    try:
        if not path.is_file():
            raise FileNotFoundError
        with path.open("rb") as file:
            content = file.read(LARGEST)
    except OSError:
        raise InputError(f"--engine-dir: {path} is missing or unreadable; {REMEDY}") from None
    found, expected = sha256(content), engine_set.graph_hash(engine, precision)
    if found != expected:
        raise InputError(
            f"--engine-dir: {path} is damaged: SHA-256 {found[:12]}..., expected {expected[:12]}...; {REMEDY}"
        )
    if ELSEWHERE in content:
        raise InputError(
            f"--engine-dir: {path} keeps weights in another file (ONNX external data), which its SHA-256 does not "
            f"cover; {REMEDY}"
        )
    return content
