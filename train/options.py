"""What a training run is told, checked before it starts."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path

from runtime.errors import InputError
from runtime.geometry.grid import is_network_shape
from runtime.host.files.regular_files import require_file
from train.data.synthetic.population import POPULATIONS
from train.loss.terms import FORMS
from train.model.network import NetworkConfig

CHOICES = {
    "generator": tuple(POPULATIONS),
    "loss": FORMS,
    "dice_labels": ("all", "deep"),
    "schedule": ("constant", "cosine"),
    "precision": ("auto", "fp32", "bf16", "fp16"),
    "channels_last": ("auto", "on", "off"),
    "device": ("auto", "cpu", "cuda"),
}
MOST_ITERATIONS = 20
HELD_OUT = 4
# Options that may differ between a run and its continuation: they say how and how long, not what is computed.
# `accumulate` may where the number of processes makes up for it: the pairs of a step must stay as many. Of device,
# precision and memory layout the run compares what they come to (`Run`), which `auto` leaves open, and of the lists of
# scans and the template their content, not their names. What is validated on changes no weight; on other pairs than
# before, the best score begins anew.
FREE_ON_RESUME = (
    "output", "steps", "minutes", "resume", "resume_from", "start", "threads", "workers", "cache", "accumulate",
    "save_minutes", "tensorboard", "pictures", "licence", "device", "precision", "channels_last", "validate_every",
    "validation_pairs", "validation", "validation_volumes", "data", "template",
)  # fmt: skip


@dataclass(frozen=True)
class FitOptions:
    """One training run.

    output: folder for last.pt, best.pt, log.csv and what else is asked for, made if absent.

    Data:
    data: folder, glob or CSV of volumes (see `train.data.volumes`), or None for generated pairs.
    validation: a list to validate on, of volumes or (see `train.data.validation_list`) of pairs, or None: the last
        `validation_volumes` (None: 4) of `data`, or generated pairs never trained on. At most `validation_pairs` pairs,
        every `validate_every` steps.
    template: for generated pairs, None, "mni152" (ships with nilearn) or a skull-stripped volume.
    generator: what the images of a generated pair have in common: "alike" is as papers have pairs, of one data set and
        scanner; "varied" is as users have them (see `train.data.synthetic.population`).
    shape: multiples of 8: the window of generated pairs (None: 80, 96, 80), or the size that volumes are cropped or
        padded to (None: their own, which must be multiples of 8).
    augment: strength of the random changes of listed volumes: 1 is as `Augmentation` says, 0 none. cache: MB of memory
        for volumes read.
    seed: of the first weights, the pairs and all that is drawn.

    Network and loss:
    res_blocks: residual blocks per estimator, 0 to 4.
    loss: "plain" or "squared" local NCC; smooth: lambda, the weight of the flow's smoothness.
    dice: weight of the soft Dice loss of warped labels at level 1; 0 for none. Needs label maps.
    dice_labels: which count for it: "all", or of generated pairs "deep", ventricles and deep structures.
    coarse: weight of the same similarity and smoothness on the flows of levels 4, 3 and 2 (deep supervision), which
        fades to 0 over the run. 0 is the paper's loss throughout.
    bending, log_jacobian: weights of what keeps flows from being rough (`train.loss.terms`), at level 1; 0 for none.
    both_directions: a step takes each pair both ways round, features of each image computed once; loss is the mean.
        Of generated pairs, half of which are the one before the other way round, it takes the others.
    inverse_consistency: weight of what both flows of a pair, one after the other, leave; needs both_directions.
    iterations: most iterations at levels 4, 3, 2, 1; every step draws numbers from 1 to these. 1, 1, 1, 1 is the paper.
    half_size: share of the run, from its start, on images averaged down to half their size.

    Optimiser:
    steps, minutes: end after so many steps, or this much training time if it comes first; the cosine then follows the
        clock, and the run is no longer repeatable bit for bit.
    accumulate: pairs of a step in this process (gradient accumulation); a step takes the mean gradient over those of
        all processes.
    finish: 0, or the steps in which a run with last.pt comes to its end: from the rate it has reached down to 3 % of it
        by a cosine, whatever `steps` says. Begins with resume_from, in a folder of its own, so that the run itself can
        still go on; there, resume continues.
    schedule: "constant", or "cosine" from `learning_rate` down to 3 % of it over `steps`; warmup: steps of linear rise.
    clip: largest gradient norm, 0 for none. average: decay of the running mean of the weights (exponential moving
        average, EMA), 0 for none; with it best.pt holds the mean, and validation uses it.

    Computing:
    precision: "bf16" and "fp16" are autocast, "fp16" with scaled gradients and on CUDA devices alone; "auto" takes bf16
        where the processor or GPU computes in it, else "fp32". channels_last: memory layout; "auto": with autocast.
    compile: torch.compile of the convolutions. device: "cuda", "cpu" or "auto", the GPU where there is one.
    threads: CPU threads, None for torch's choice. workers: processes that make pairs beside training; 0 where pairs
        are generated on a GPU.

    Files:
    save_minutes: from one last.pt to the next. tensorboard: also log for TensorBoard, into tensorboard/. pictures: one
        of a validation pair at every so many validations, into pictures/; 0 for none.
    resume: continue last.pt of `output` exactly. resume_from: continue the last.pt of another folder, or a copy, in
        `output`, where best.pt and log.csv begin anew. start: checkpoint whose weights a new run starts from; one that
        is continued has its own.
    licence: of the weights, written into the checkpoints.
    """

    output: Path
    data: str | None = None
    validation: str | None = None
    template: str | None = None
    generator: str = "alike"
    shape: tuple[int, int, int] | None = None
    augment: float = 0.0
    cache: int = 4096
    seed: int = 0
    res_blocks: int = 2
    loss: str = "plain"
    smooth: float = 1.0
    dice: float = 0.0
    dice_labels: str = "all"
    coarse: float = 0.0
    bending: float = 0.0
    log_jacobian: float = 0.0
    both_directions: bool = False
    inverse_consistency: float = 0.0
    iterations: tuple[int, int, int, int] = (1, 1, 1, 1)
    half_size: float = 0.0
    steps: int = 100_000
    minutes: float | None = None
    finish: int = 0
    accumulate: int = 1
    learning_rate: float = 1e-4
    schedule: str = "constant"
    warmup: int = 0
    clip: float = 0.0
    average: float = 0.0
    precision: str = "auto"
    channels_last: str = "auto"
    compile: bool = False
    device: str = "auto"
    threads: int | None = None
    workers: int = 0
    validate_every: int = 200
    validation_volumes: int | None = None
    validation_pairs: int = 8
    pictures: int = 0
    tensorboard: bool = False
    save_minutes: float = 5.0
    resume: bool = False
    resume_from: Path | None = None
    start: Path | None = None
    licence: str = "not stated"

    def __post_init__(self) -> None:
        NetworkConfig(res_blocks=self.res_blocks)
        for name, choices in CHOICES.items():
            self._require(name, getattr(self, name) in choices, f"one of {', '.join(choices)}")
        self._check_numbers()
        self._check_sources()
        if self.inverse_consistency and not self.both_directions:
            raise InputError("inverse_consistency: needs the flows of both ways round; give both_directions too")
        self._check_beginning()

    def _check_numbers(self) -> None:
        for name in ("steps", "validate_every", "validation_pairs", "accumulate", "validation_volumes", "threads"):
            self._require(name, getattr(self, name) is None or getattr(self, name) >= 1, "1 or more")
        for name in ("smooth", "dice", "coarse", "bending", "log_jacobian", "inverse_consistency", "warmup", "clip",
                     "augment", "cache", "pictures", "workers", "seed", "save_minutes", "finish"):  # fmt: skip
            self._require(name, getattr(self, name) >= 0, "0 or more")
        self._require("seed", self.seed < 2**63, "below 2^63")
        self._require("learning_rate", 0 < self.learning_rate <= 1, "above 0, at most 1")
        self._require("average", 0 <= self.average < 1, "0 or more and below 1")
        self._require("half_size", 0 <= self.half_size <= 1, "0 to 1")
        self._require("minutes", self.minutes is None or self.minutes > 0, "above 0")
        self._require("shape", self.shape is None or is_network_shape(self.shape), "three multiples of 8")
        allowed = len(self.iterations) == 4 and all(1 <= count <= MOST_ITERATIONS for count in self.iterations)
        self._require("iterations", allowed, f"four numbers, 1 to {MOST_ITERATIONS}, for levels 4,3,2,1")

    def _check_beginning(self) -> None:
        if self.resume and self.resume_from is not None:
            raise InputError("resume_from: begins in a new folder, resume goes on in an old one; give one of the two")
        if self.finish and not self.continues:
            raise InputError("finish: ends a run that has begun; give its last.pt as resume_from")
        if self.finish and self.minutes is not None:
            raise InputError("minutes: finish says after how many steps the run ends; give one of the two")
        name = "start" if self.resume_from is None else "resume_from"
        path = getattr(self, name)
        if path is not None and not self.resume:
            require_file(path, name)

    def _check_sources(self) -> None:
        """Refuse what would be ignored."""
        if self.data is not None and self.template is not None:
            raise InputError("template: is for generated pairs; give either data or template")
        if self.data is not None and self.generator != "alike":
            raise InputError("generator: is for generated pairs; give either data or generator")
        if self.validation_volumes is not None and (self.data is None or self.validation is not None):
            raise InputError("validation_volumes: are kept from data where no validation list is given; leave it out")
        if self.dice_labels != "all" and (self.data is not None or not self.dice):
            raise InputError("dice_labels: which labels are deep is known of generated pairs, with dice; leave it out")
        if self.data is None and self.augment:
            raise InputError("augment: is for listed volumes, generated pairs are random already; leave it out")

    def _require(self, name: str, good: bool, expected: str) -> None:
        if not good:
            raise InputError(f"{name}: got {getattr(self, name)}, expected {expected}")

    @property
    def continues(self) -> Path | None:
        """The checkpoint that is continued, None for a new run."""
        return self.output / "last.pt" if self.resume else self.resume_from

    @property
    def held_out(self) -> int:
        """Volumes of `data` that are kept for validation."""
        return HELD_OUT if self.validation_volumes is None else self.validation_volumes

    def as_dict(self) -> dict:
        """Plain types only."""
        plain = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}
        shape = self.shape and list(self.shape)
        return plain | {"shape": shape, "iterations": list(self.iterations), "validation_volumes": self.held_out}

    def differences(self, other: dict) -> list[str]:
        """Names of the options that keep `other` (an `as_dict`) from being a continuation of this run.

        What a checkpoint of an earlier version does not name was as the defaults are. `resume_from` may
        begin to finish.
        """
        mine, usual = self.as_dict(), {field.name: field.default for field in fields(self)}
        usual["iterations"] = list(usual["iterations"])
        other = usual | other
        free = {*FREE_ON_RESUME}
        if self.resume_from is not None and not other["finish"]:
            free.add("finish")
        return [name for name in mine if name not in free and mine[name] != other[name]]
