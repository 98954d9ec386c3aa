"""Plans that TensorRT builds from an engine set's graphs: their specifications, files and the checks before opening.

A plan is native code, so `plans.json` beside the plans lists them with their SHA-256, and a file that is not listed, or
differs from its listing, is never given to the library. Plans are stored in `plans/` of the set's folder, or in the
cache folder if that is not writable. They can be deleted at any time.
"""

import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ....errors import InputError, system_reason
from ....host.cache_folder import cache_folder, keep_latest
from ....host.files.hashes import sha256
from ....host.files.whole_files import write_bytes, write_text
from ....loop.schedules import LEVELS
from ....types import Shape
from ...engine_set import ENGINES, EXTRACTOR, FEATURES, IMAGE, RESIDUAL, EngineSet, features_name

FORMAT, VERSION = "rpnet-plans", 1
FOLDER, LISTING, LOCK = "plans", "plans.json", "plans.lock"
CACHED, MOST_CACHED = "rpnet-plans", 20  # subfolder of the cache folder; number of sets whose plans it keeps
AGAIN = "built again"
CHANNELS_LAST = {"fp16": "DHWC8", "fp32": "DHWC"}
DTYPES = {"fp16": "float16", "fp32": "float32"}


@dataclass(frozen=True)
class Profile:
    """The sizes (I, J, K) that a plan serves, of the image or of a level.

    Attributes:
        smallest, largest: the limits, both included.
        usual: the size that the plan is tuned for.
    """

    smallest: Shape
    usual: Shape
    largest: Shape

    @classmethod
    def only(cls, shape: Shape) -> "Profile":
        return cls(shape, shape, shape)

    def holds(self, shape: Shape) -> bool:
        return all(a <= n <= b for a, n, b in zip(self.smallest, shape, self.largest, strict=True))

    def at(self, scale: int) -> "Profile":
        """Return the profile for a grid that is coarser by the factor `scale`."""
        return Profile(*(cast(Shape, tuple(n // scale for n in shape)) for shape in dataclasses.astuple(self)))

    def __str__(self) -> str:
        return " to ".join(",".join(map(str, shape)) for shape in dict.fromkeys((self.smallest, self.largest)))


# From the smallest possible grid to FreeSurfer's 256 cubed, which holds any brain at 1 mm, tuned for the size to which
# affinely aligned brains are cropped. Memory depends on the actual size, not on the largest.
ORDINARY = Profile((16, 16, 16), (160, 192, 160), (256, 256, 256))


@dataclass(frozen=True)
class PlanSpec:
    """The specification of a plan.

    Attributes:
        engine: name of the engine in the set.
        graph: SHA-256 of the ONNX graph.
        precision: "fp32" or "fp16".
        target, version: the library that the plan is for.
        sms: compute capabilities, 89 for 8.9.
        gpu: the GPU model that the plan is tied to; empty for a portable plan.
        profile: image sizes that it serves.
    """

    engine: str
    graph: str
    precision: str
    target: str
    version: str
    sms: tuple[int, ...]
    gpu: str
    profile: Profile

    @property
    def scale(self) -> int:
        """The number of image voxels per voxel of the engine's input, along an axis."""
        return 1 if self.engine == EXTRACTOR else 2 ** (int(self.engine[-1]) - 1)

    @property
    def formats(self) -> dict[str, tuple[str, str]]:
        """The type and layout of each input and output, by name."""
        return tensor_formats(self.engine, self.precision)

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"formats": self.formats}

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> "PlanSpec":
        """Read an entry of a listing; raise KeyError, TypeError or ValueError if it is malformed."""
        entry = {"gpu": entry["card"], **entry} if "card" in entry else entry  # the key's earlier name
        words = {name: str(entry[name]) for name in ("engine", "graph", "precision", "target", "version", "gpu")}
        names = ("smallest", "usual", "largest")
        shapes = (cast(Shape, tuple(map(int, entry["profile"][name]))) for name in names)
        return cls(**words, sms=tuple(map(int, entry["sms"])), profile=Profile(*shapes))


def plan_specs(
    engine_set: EngineSet, precision: str, library: Any, sms: tuple[int, ...], gpu: str, profile: Profile
) -> dict[str, PlanSpec]:
    """Return the specifications of an engine set's plans, by engine; `library` has `target` and `version`."""
    facts = precision, library.target, library.version, sms, gpu, profile
    return {engine: PlanSpec(engine, engine_set.graph_hash(engine, precision), *facts) for engine in ENGINES}


def tensor_formats(engine: str, precision: str) -> dict[str, tuple[str, str]]:
    """Return type and layout by name; features are channels-last, so that a voxel's channels are read in one piece."""
    between = DTYPES[precision], CHANNELS_LAST[precision]
    planar = "float32", "LINEAR"
    if engine == EXTRACTOR:
        return {IMAGE: planar} | {features_name(level): between for level in LEVELS}
    return {FEATURES: between, RESIDUAL: planar}


@dataclass(frozen=True)
class EnginePlan:
    """A plan on disk, as it is listed."""

    path: Path
    sha256: str
    spec: PlanSpec
    formats: Mapping[str, tuple[str, str]]

    def read(self) -> bytes | None:
        """Return the content; None if the file is missing or differs from its listing."""
        with contextlib.suppress(OSError):
            content = self.path.read_bytes()
            return content if sha256(content) == self.sha256 else None
        return None

    def as_dict(self) -> dict[str, Any]:
        return {"file": self.path.name, "sha256": self.sha256, **self.spec.as_dict()}


class PlanStore:
    """The plans of one engine set.

    Args:
        engine_dir: the set's folder.
    """

    def __init__(self, engine_dir: Path) -> None:
        place = sha256(str(engine_dir.resolve()).encode())[:16]
        self._folders = engine_dir / FOLDER, cache_folder(CACHED) / CACHED / place

    def find(self, wanted: PlanSpec, shape: Shape | None = None) -> tuple[EnginePlan, bytes] | str:
        """Return a plan that fits and its content, or the reason why there is none.

        Args:
            wanted: the specification, whose `sms` holds the GPU's; its profile is ignored.
            shape: image size that the plan must serve; None: any.
        """
        plans = [plan for folder in self._folders for plan in _listed(folder)]
        fits, reason = _fitting(plans, wanted, shape)
        for plan in sorted(fits, key=lambda plan: plan.spec.profile.usual != shape):
            if (content := plan.read()) is not None:
                return plan, content
            reason = f"{plan.path.name} is missing or damaged"
        return reason

    def keep(self, built: Sequence[tuple[PlanSpec, bytes]]) -> tuple[Path, list[str]]:
        """Write plans that belong together and list all of them or none.

        Returns:
            The folder, and a text for each outdated plan that was replaced, with the reason.

        Raises:
            InputError: no folder is writable.
        """
        for folder in self._folders:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with _locked(folder):
                    replaced = _replace(folder, built)
            except OSError as error:
                reason = system_reason(error)
                continue
            if folder == self._folders[1]:
                keep_latest(folder.parent.iterdir(), MOST_CACHED)
            return folder, replaced
        raise InputError(
            f"--engine-dir: no folder for built engines can be written ({reason}); set RPNET_CACHE to a writable one"
        )


def _fitting(plans: list[EnginePlan], wanted: PlanSpec, shape: Shape | None) -> tuple[list[EnginePlan], str]:
    """Return the plans that fit, and the reason if none does: the first criterion that all remaining plans fail."""
    sm, reason = wanted.sms[0], "none built yet"
    criteria: tuple[tuple[Callable[[EnginePlan], bool], Callable[[EnginePlan], str] | None], ...] = (
        (lambda plan: _same_kind(plan.spec, wanted), None),
        (lambda plan: not outdated(plan, wanted), lambda plan: outdated(plan, wanted)),
        (lambda plan: sm in plan.spec.sms, lambda plan: f"built for SM {_words(plan.spec.sms)}, not {sm}"),
        (lambda plan: not shape or plan.spec.profile.holds(shape), lambda plan: f"built for {plan.spec.profile}"),
    )
    for does, lack in criteria:
        left = [plan for plan in plans if does(plan)]
        if plans and not left and lack:
            reason = lack(plans[-1])
        plans = left
    return plans, reason


def outdated(plan: EnginePlan, wanted: PlanSpec) -> str:
    """Return the reason why a plan of the same kind can no longer be used; empty if it can."""
    if plan.spec.graph != wanted.graph:
        return "built from another graph"
    if plan.spec.version != wanted.version:
        return f"built by {plan.spec.target} {plan.spec.version}, installed is {wanted.version}"
    if plan.formats != wanted.formats:
        return "built for another memory layout"
    return ""


def _same_kind(spec: PlanSpec, other: PlanSpec) -> bool:
    names = ("engine", "precision", "target", "gpu")
    return all(getattr(spec, name) == getattr(other, name) for name in names)


def _words(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _listed(folder: Path) -> list[EnginePlan]:
    """Return the listed plans; none if the listing is missing, of another format or malformed."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        listing = json.loads((folder / LISTING).read_text(encoding="utf-8"))
        if (listing["format"], listing["version"]) == (FORMAT, VERSION):
            return [_plan(folder, entry) for entry in listing["plans"]]
    return []


def _plan(folder: Path, entry: Mapping[str, Any]) -> EnginePlan:
    formats = {str(name): tuple(value) for name, value in entry["formats"].items()}
    return EnginePlan(folder / Path(entry["file"]).name, str(entry["sha256"]), PlanSpec.from_dict(entry), formats)


def _replace(folder: Path, built: Sequence[tuple[PlanSpec, bytes]]) -> list[str]:
    """Write the plans, then the listing, then remove files that are no longer listed."""
    new = [_written(folder, spec, content) for spec, content in built]
    kept, gone = [], {}
    for plan in _listed(folder):
        reason = next(filter(None, (_superseded(plan, spec) for spec, _ in built)), None)
        if reason:
            gone[plan.path] = reason
        else:
            kept.append(plan)
    listing = {"format": FORMAT, "version": VERSION, "plans": [plan.as_dict() for plan in (*kept, *new)]}
    write_text(folder / LISTING, json.dumps(listing, indent=2) + "\n")
    for path in set(gone) - {plan.path for plan in (*kept, *new)}:
        with contextlib.suppress(OSError):  # open in another process, on Windows
            path.unlink(missing_ok=True)
    return [f"{path.name} ({reason})" for path, reason in gone.items() if reason != AGAIN]


def _written(folder: Path, spec: PlanSpec, content: bytes) -> EnginePlan:
    digest = sha256(content)
    path = folder / f"{spec.engine}.{spec.precision}.{spec.target}.{digest[:8]}.plan"
    write_bytes(path, content)
    return EnginePlan(path, digest, spec, spec.formats)


def _superseded(plan: EnginePlan, spec: PlanSpec) -> str:
    """Return the reason why a new plan replaces a listed one; empty if both stay."""
    if not _same_kind(plan.spec, spec):
        return ""
    same = plan.spec.profile == spec.profile and set(plan.spec.sms) <= set(spec.sms)
    return outdated(plan, spec) or (AGAIN if same else "")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock the folder for one process at a time; the system releases the lock of a process that ends."""
    with open(folder / LOCK, "ab") as stream:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(stream.fileno(), msvcrt.LK_LOCK, 1)
        else:
            import fcntl

            fcntl.flock(stream, fcntl.LOCK_EX)
        yield
