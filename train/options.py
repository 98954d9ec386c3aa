"""The options of a training run, checked before it starts."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

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
# Options that may differ between a run and its continuation: they affect how and how long it computes, not what.
# `accumulate` may differ if the number of processes compensates for it, so that a step has as many pairs as before.
# `Run` compares the device, precision and memory layout that were chosen, which `auto` leaves open, and the content of
# scans and template instead of their names. Validation pairs do not affect the weights; if they differ from those
# before, the best score starts anew.
FREE_ON_RESUME = (
    "output", "steps", "minutes", "resume", "resume_from", "start", "threads", "workers", "cache", "accumulate",
    "save_minutes", "tensorboard", "pictures", "licence", "device", "precision", "channels_last", "validate_every",
    "validation_pairs", "validation", "validation_volumes", "data", "template",
)  # fmt: skip


@dataclass(frozen=True)
class FitOptions:
    """The options of one training run.

    Attributes:
        output: folder for last.pt, best.pt, log.csv and other requested files, created if absent.

        data: folder, glob or CSV of volumes (see `train.data.volumes`), or None for generated pairs.
        validation: list of volumes, or of pairs (see `train.data.validation_list`), to validate on; None: the last
            `validation_volumes` of `data`, or generated pairs that are never trained on.
        template: template of generated pairs: None, "mni152" (ships with nilearn) or a skull-stripped volume.
        generator: population of generated pairs: "alike" as in papers, from one data set and scanner; "varied" as users
            have them (see `train.data.synthetic.population`).
        shape: shape of generated pairs (None: 80, 96, 80), or the shape that volumes are cropped or padded to (None:
            their own); multiples of 8.
        augment: strength of the random changes of listed volumes: 1 as in `Augmentation`, 0 for none.
        cache: memory for volumes, MB.
        seed: seed of the initial weights, the pairs and all other random numbers.

        res_blocks: residual blocks per estimator, 0 to 4.
        loss: "plain" or "squared" local NCC.
        smooth: lambda, the weight of the flow's smoothness.
        dice: weight of the soft Dice loss of warped labels at level 1, 0 for none; needs label maps.
        dice_labels: labels in the Dice loss: "all", or for generated pairs "deep": ventricles and deep structures.
        coarse: weight of similarity and smoothness of the flows of levels 4, 3 and 2 (deep supervision), which fades to
            0 over the run; 0 is the paper's loss throughout.
        bending, log_jacobian: weights of the terms against rough flows at level 1 (`train.loss.terms`), 0 for none.
        both_directions: whether a step registers each pair in both directions and takes the mean loss; the features of
            each image are computed once. Generated pairs that are the one before with exchanged images are skipped.
        inverse_consistency: weight of the residual of a pair's two flows composed; needs `both_directions`.
        iterations: largest numbers of iterations at levels 4, 3, 2, 1; every step draws numbers from 1 to these.
            1, 1, 1, 1 is the paper.
        half_size: share of the run, from its start, on images averaged down to half their size.

        steps: number of steps after which the run ends.
        minutes: training time after which it ends if that comes first, or None; the cosine then follows the clock, and
            the run is no longer repeatable bit for bit.
        finish: 0, or the number of steps that end a run with a last.pt, whatever `steps` says: the learning rate falls
            from its current value to 3 % of it by a cosine. It begins with `resume_from`, in a new folder, so that the
            original run can still go on; `resume` continues it there.
        accumulate: pairs per step in this process (gradient accumulation); a step takes the mean gradient over the
            pairs of all processes.
        learning_rate: learning rate of Adam.
        schedule: "constant", or "cosine" from `learning_rate` down to 3 % of it over `steps`.
        warmup: steps of linear rise of the learning rate.
        clip: largest gradient norm, 0 for no limit.
        average: decay of the running mean of the weights (exponential moving average, EMA), 0 for none; otherwise
            best.pt holds the mean and validation uses it.

        precision: "fp32"; "bf16" or "fp16" for autocast ("fp16" with scaled gradients, only on CUDA devices); or
            "auto": bf16 if the processor or GPU supports it, else fp32.
        channels_last: memory layout; "auto": "on" with autocast.
        compile: whether the convolutions are compiled by torch.compile.
        device: "cuda", "cpu" or "auto", a GPU if there is one.
        threads: CPU threads, None for torch's choice.
        workers: processes that make pairs during training; 0 for pairs that are generated on a GPU.

        validate_every: steps between validations.
        validation_volumes: volumes of `data` held out for validation, None for 4.
        validation_pairs: largest number of validation pairs.
        pictures: number of validations per picture of a validation pair in pictures/, 0 for none.
        tensorboard: whether TensorBoard logs are written into tensorboard/.
        save_minutes: minutes between two writes of last.pt.
        resume: whether last.pt of `output` is continued exactly.
        resume_from: a last.pt elsewhere to continue in `output`, where best.pt and log.csv begin anew.
        start: checkpoint whose weights a new run starts from; ignored by a run that is continued.
        licence: licence of the weights, written into the checkpoints.
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
            raise InputError("inverse_consistency: needs the flows of both directions; give both_directions too")
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
            raise InputError("resume_from: begins in a new folder, resume continues in an old one; give one of the two")
        if self.finish and not self.continues:
            raise InputError("finish: ends an existing run; give its last.pt as resume_from")
        if self.finish and self.minutes is not None:
            raise InputError("minutes: the run ends after the steps given by finish; give only one of the two")
        name = "start" if self.resume_from is None else "resume_from"
        path = getattr(self, name)
        if path is not None and not self.resume:
            require_file(path, name)

    def _check_sources(self) -> None:
        """Refuse options that would be ignored."""
        if self.data is not None and self.template is not None:
            raise InputError("template: is only for generated pairs; give either data or template")
        if self.data is not None and self.generator != "alike":
            raise InputError("generator: is only for generated pairs; give either data or generator")
        if self.validation_volumes is not None and (self.data is None or self.validation is not None):
            raise InputError("validation_volumes: is only for data without a validation list; leave it out")
        if self.dice_labels != "all" and (self.data is not None or not self.dice):
            raise InputError("dice_labels: deep labels are known only for generated pairs, with dice; leave it out")
        if self.data is None and self.augment:
            raise InputError("augment: is only for listed volumes, generated pairs are random already; leave it out")

    def _require(self, name: str, good: bool, expected: str) -> None:
        if not good:
            raise InputError(f"{name}: got {getattr(self, name)}, expected {expected}")

    @property
    def continues(self) -> Path | None:
        """The checkpoint that is continued, or None for a new run."""
        return self.output / "last.pt" if self.resume else self.resume_from

    @property
    def held_out(self) -> int:
        """The number of volumes of `data` that are held out for validation."""
        return HELD_OUT if self.validation_volumes is None else self.validation_volumes

    def as_dict(self) -> dict:
        """Return the options by name, in plain types only."""
        plain = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}
        shape = self.shape and list(self.shape)
        return plain | {"shape": shape, "iterations": list(self.iterations), "validation_volumes": self.held_out}

    def differences(self, other: dict) -> list[str]:
        """Return the names of the options because of which this run cannot continue `other` (an `as_dict`).

        Options missing from `other`, from a checkpoint of an earlier version, had today's default values. `finish` may
        differ if `resume_from` begins it.
        """
        mine = self.as_dict()
        usual: dict[str, Any] = {field.name: field.default for field in fields(self)}
        usual["iterations"] = list(usual["iterations"])
        other = usual | other
        free = {*FREE_ON_RESUME}
        if self.resume_from is not None and not other["finish"]:
            free.add("finish")
        return [name for name in mine if name not in free and mine[name] != other[name]]
