"""What a training run is told, checked before it starts."""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from runtime.geometry.errors import InputError
from train.losses import FORMS
from train.network import SIZE_MULTIPLE, NetworkConfig

PRECISIONS = ("auto", "fp32", "bf16")
DEVICES = ("auto", "cpu", "cuda")
SCHEDULES = ("constant", "cosine")
# Options that may differ between a run and its continuation: they say how and how long, not what is computed.
FREE_ON_RESUME = ("output", "steps", "minutes", "resume", "start", "threads", "workers", "save_minutes", "licence")


def _is_window(shape: tuple) -> bool:
    return len(shape) == 3 and all(size >= SIZE_MULTIPLE and size % SIZE_MULTIPLE == 0 for size in shape)


def _computes_bf16() -> bool:
    """Whether this processor has bf16 instructions; elsewhere bf16 is emulated and slower than fp32."""
    probes = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(probe is not None and probe() for probe in probes)


@dataclass(frozen=True)
class FitOptions:
    """One training run.

    output: folder for last.pt, best.pt and log.csv, made if absent.
    data: folder, glob or CSV of volumes (see `train.volumes`), or None for generated pairs.
    validation: a second list, or None: the last `validation_volumes` of `data`, or generated pairs never trained on.
    template: for generated pairs, None, "mni152" (ships with nilearn) or a skull-stripped volume.
    shape: multiples of 8: the window of generated pairs (None: 80, 96, 80), or the size that volumes are cropped or
        padded to (None: their own, which must be multiples of 8). seed: of the weights and of the pairs.
    loss: "plain" or "squared" local NCC; smooth: lambda, the weight of the flow's smoothness.
    schedule: "constant", or "cosine" from `learning_rate` down to 3 % of it over `steps`; warmup: steps of linear rise.
    minutes: end after this much training time if `steps` are not done before; the cosine then follows the clock, and
        the run is no longer repeatable bit for bit.
    coarse: weight of the same loss on the flows of levels 4, 3 and 2, which fades to 0 over the run: the coarse levels
        learn sooner. 0 is the paper's loss throughout.
    clip: largest gradient norm, 0 for none. average: decay of the running mean of the weights, 0 for none; with it
        best.pt holds the mean.
    precision: "bf16" is autocast with channels-last memory; "auto" takes it where the processor or GPU computes in
        bf16, else "fp32".
    threads: CPU threads, None for torch's choice. workers: processes that prepare pairs beside training.
    resume: continue last.pt of `output` exactly. start: checkpoint whose weights to start from.
    licence: of the weights, written into the checkpoints.
    """

    output: Path
    data: str | None = None
    validation: str | None = None
    template: str | None = None
    shape: tuple[int, int, int] | None = None
    res_blocks: int = 2
    loss: str = "plain"
    smooth: float = 1.0
    steps: int = 100_000
    minutes: float | None = None
    learning_rate: float = 1e-4
    schedule: str = "constant"
    warmup: int = 0
    coarse: float = 0.0
    clip: float = 0.0
    average: float = 0.0
    seed: int = 0
    precision: str = "auto"
    device: str = "auto"
    validate_every: int = 200
    validation_volumes: int = 4
    validation_pairs: int = 8
    save_minutes: float = 5.0
    threads: int | None = None
    workers: int = 0
    resume: bool = False
    start: Path | None = None
    licence: str = "not stated"

    def __post_init__(self) -> None:
        NetworkConfig(res_blocks=self.res_blocks)
        for name, choices in (("loss", FORMS), ("schedule", SCHEDULES), ("precision", PRECISIONS), ("device", DEVICES)):
            if getattr(self, name) not in choices:
                raise InputError(f"{name}: got {getattr(self, name)}, expected one of {', '.join(choices)}")
        for name in ("steps", "validate_every", "validation_volumes", "validation_pairs"):
            self._require(name, getattr(self, name) >= 1, "1 or more")
        for name in ("smooth", "coarse", "warmup", "clip", "workers", "seed", "save_minutes"):
            self._require(name, getattr(self, name) >= 0, "0 or more")
        self._require("learning_rate", 0 < self.learning_rate <= 1, "above 0, at most 1")
        self._require("average", 0 <= self.average < 1, "0 or more and below 1")
        self._require("minutes", self.minutes is None or self.minutes > 0, "above 0")
        self._require("threads", self.threads is None or self.threads >= 1, "1 or more")
        self._require("shape", self.shape is None or _is_window(self.shape), "three multiples of 8")
        if self.data is not None and self.template is not None:
            raise InputError("template: is for generated pairs; give either data or template")
        if self.data is None and self.validation is not None:
            raise InputError("validation: a list of volumes needs data, a list to train on; give both or neither")
        if self.resume and self.start is not None:
            raise InputError("start: resume continues last.pt with its own weights; give one of the two")
        if self.start is not None and not Path(self.start).is_file():
            raise InputError(f"start: {self.start} does not exist, expected a checkpoint; check the path")

    def _require(self, name: str, good: bool, expected: str) -> None:
        if not good:
            raise InputError(f"{name}: got {getattr(self, name)}, expected {expected}")

    def chosen_device(self) -> torch.device:
        """Raises InputError where CUDA is asked for and absent."""
        if self.device == "cuda" and not torch.cuda.is_available():
            raise InputError("device: got cuda, but torch sees no CUDA device; use cpu or auto")
        return torch.device("cuda" if self.device != "cpu" and torch.cuda.is_available() else "cpu")

    def chosen_precision(self, device: torch.device) -> str:
        if self.precision != "auto":
            return self.precision
        if device.type == "cuda":
            return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
        return "bf16" if _computes_bf16() else "fp32"

    def as_dict(self) -> dict:
        """Plain types only."""
        plain = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}
        return plain | {"shape": self.shape and list(self.shape)}

    def differences(self, other: dict) -> list[str]:
        """Names of the options that keep `other` (an `as_dict`) from being a continuation of this run."""
        mine = self.as_dict()
        return [name for name in mine if name not in FREE_ON_RESUME and mine[name] != other.get(name)]
