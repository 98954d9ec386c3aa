"""Engine sets: graphs and the `manifest.json` that describes them, checked before anything is opened.

The manifest defines the set: the graphs' file names contain part of their hash, and replacing the manifest is the one
step that publishes a new set. The runtime takes all facts from the manifest and infers nothing from file names. The
manifest also holds a hash of itself. Graphs are read once, and those bytes are hashed and run: later changes to the
files have no effect.
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
from ..loop.schedules import LEVELS
from ..loop.stop_rules import iterstop_schedule
from .verdict_limits import VerdictLimits, limits_of

FORMAT = "rpnet-engine-set"
VERSION = 2  # version 1, written by earlier exports, has no hash of itself and can be read as well
SEAL = "sha256"  # key of the hash of the rest of the manifest
LARGEST = 1 << 30  # largest graph, bytes
ELSEWHERE = b"location"  # ONNX's key for the external file that holds a graph's weights
MANIFEST = "manifest.json"
EXTRACTOR = "feature_extractor"
IMAGE, FEATURES, RESIDUAL = "image", "features", "residual"
GRAPH_KEYS = {"fp32": "engines", "fp16": "engines_fp16"}  # keys of the manifest by precision; the latter is optional
REMEDY = "export the set again (python cli.py export --checkpoint best.pt --engine-dir DIR) or restore it"


def estimator_name(level: int) -> str:
    """Return the engine name of a level's flow estimator."""
    return f"estimator_level{level}"


def features_name(level: int) -> str:
    """Return the name of the feature extractor's output for a level."""
    return f"features_level{level}"


ENGINES = (EXTRACTOR, *(estimator_name(level) for level in LEVELS))


@dataclass(frozen=True)
class EngineSet:
    """A checked engine set.

    Attributes:
        folder: the set's folder.
        manifest: content of `manifest.json`.
        graphs: content of the ONNX files, by engine and precision.
    """

    folder: Path
    manifest: Mapping[str, Any]
    graphs: Mapping[tuple[str, str], bytes] = field(repr=False)

    @property
    def spacing(self) -> float:
        """The voxel size in mm that the network was trained at and images are resampled to."""
        return float(self.manifest["spacing_mm"])

    @property
    def size_multiple(self) -> int:
        """The number of which image sizes must be multiples."""
        return int(self.manifest["size_multiple"])

    @property
    def channels(self) -> dict[int, int]:
        """The feature channels by level."""
        return {int(entry["level"]): int(entry["channels"]) for entry in self.manifest["levels"]}

    @property
    def convolutions(self) -> int:
        """The number of 3x3x3 convolutions of an estimator, which is also its receptive radius in voxels."""
        return int(self.manifest["network"]["res_blocks"]) + 3

    @property
    def precision(self) -> str:
        return str(self.manifest["precision"])

    @property
    def precisions(self) -> tuple[str, ...]:
        """The precisions of the set's graphs; sets from an earlier `export` have fp32 only."""
        return tuple(name for name, key in GRAPH_KEYS.items() if name == "fp32" or key in self.manifest)

    @property
    def intensity(self) -> Mapping[str, Any]:
        """The intensity rule, in the form that `runtime.images.intensity.rule_from_dict` reads."""
        return self.manifest["intensity"]

    @property
    def stop(self) -> Mapping[str, Any]:
        """The defaults of IterStop: similarity, delta, limit, on_stop."""
        return self.manifest["stop"]

    @property
    def verdict_limits(self) -> VerdictLimits:
        """The limits of plausible registrations: the set's own, or conservative ones."""
        return limits_of(self.manifest)

    @property
    def hashes(self) -> dict[str, str]:
        """The SHA-256 of the fp32 graphs by engine name."""
        return {name: self.graph_hash(name, "fp32") for name in self.manifest["engines"]}

    def graph_hash(self, engine: str, precision: str) -> str:
        """Return the SHA-256 of a graph."""
        return self.manifest[GRAPH_KEYS[precision]][engine]["sha256"]

    def check_channels(self, what: str, found: Mapping[int, int], images: int) -> None:
        """Check the graphs' channels by level against the manifest.

        Args:
            what: "takes" or "gives", for the error message.
            found: channels of the graphs by level.
            images: number of images whose features these channels hold.

        Raises:
            InputError: they differ from the manifest.
        """
        for level, channels in found.items():
            if channels != (stated := images * self.channels[level]):
                raise InputError(
                    f"--engine-dir: a graph in {self.folder} {what} {channels} channels at level {level}, "
                    f"the manifest states {stated}; export the set again"
                )

    def graph(self, engine: str, precision: str = "fp32") -> bytes:
        """Return the content of an ONNX graph; `precision` is one of `precisions`."""
        return self.graphs[engine, precision]

    def path(self, engine: str, precision: str = "fp32") -> Path:
        """Return the path that a graph was read from; `precision` is one of `precisions`."""
        return self.folder / self.manifest[GRAPH_KEYS[precision]][engine]["file"]

    def require(self, precision: str) -> None:
        """Check that the set has graphs of a precision.

        Raises:
            InputError: it has none.
        """
        if precision not in self.precisions:
            raise InputError(
                f"--precision: the engine set in {self.folder} has graphs in {', '.join(self.precisions)}, not in "
                f"{precision}; export the set again or use --precision {self.precisions[0]}"
            )


def sealed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return a manifest with the hash of its content, taken over its JSON with sorted keys and no spaces."""
    rest = {name: value for name, value in manifest.items() if name != SEAL}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return {**rest, SEAL: sha256(text.encode())}


def manifest_text(manifest: Mapping[str, Any]) -> str:
    """Return a manifest, sealed, as it is written to `manifest.json`."""
    return json.dumps(sealed(manifest), indent=2) + "\n"


def load_engine_set(folder: Path | str) -> EngineSet:
    """Read an engine set and check its format, version, completeness and every hash, the manifest's own included.

    Raises:
        InputError: the set is missing, of another format, newer than this program, incomplete or damaged.
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
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"--engine-dir: {path} cannot be read as JSON ({first_line(error)}); {REMEDY}") from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a valid number")


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
    """Read every field that the runtime relies on as the runtime will, so that a manifest cannot fail later."""
    place = engine_set.folder / MANIFEST
    try:
        listed = {precision: _files(engine_set, precision) for precision in engine_set.precisions}
        levels = set(engine_set.channels)
        facts = (engine_set.spacing, engine_set.size_multiple, *engine_set.channels.values())
        iterstop_schedule(**engine_set.stop)
        rule_from_dict(engine_set.intensity)
        _ = engine_set.precision, engine_set.convolutions, engine_set.verdict_limits
    except InputError as error:  # of a stop rule or an intensity rule, which call the field as an option is called
        found = str(error).replace("--", "")
        raise InputError(f"--engine-dir: {place} is incomplete or malformed ({found}); {REMEDY}") from None
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
        raise InputError(f"--engine-dir: {place} is damaged or was edited: its SHA-256 does not match; {REMEDY}")


def _files(engine_set: EngineSet, precision: str) -> dict[str, str]:
    """Return the file names of one precision by engine, after checking that each has a hash beside it."""
    entries = engine_set.manifest[GRAPH_KEYS[precision]]
    if not all(isinstance(entry["file"], str) and isinstance(entry["sha256"], str) for entry in entries.values()):
        raise TypeError("an engine's file name or SHA-256 is not text")
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
