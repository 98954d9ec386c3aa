"""Where a run's pairs come from: generated on the fly, or lists of volumes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from runtime.geometry.errors import InputError
from train.generated import GeneratedPairs, load_template
from train.options import FitOptions
from train.validation import ValidationPair
from train.volumes import Subject, VolumePairs, check_volumes, read_list, validation_pairs

FIRST_VALIDATION_PAIR = 2**40
GENERATED_SHAPE = (80, 96, 80)


@dataclass(frozen=True)
class Sources:
    """pair: (moving, fixed) of a step, the same at every call. description: for the checkpoint's provenance."""

    pair: Callable[[int], tuple[Tensor, Tensor]]
    validation: tuple[ValidationPair, ...]
    description: str
    shape: tuple[int, int, int]


def open_sources(options: FitOptions) -> Sources:
    """Read or make what `options` asks for.

    Raises:
        InputError: lists, volumes or a template that cannot be used.
    """
    return _generated(options) if options.data is None else _volumes(options)


def _generated(options: FitOptions) -> Sources:
    template = None if options.template is None else load_template(options.template)
    pairs = GeneratedPairs(options.shape or GENERATED_SHAPE, options.seed, template)
    # Every second pair is the one before the other way round.
    indices = range(FIRST_VALIDATION_PAIR, FIRST_VALIDATION_PAIR + 2 * options.validation_pairs, 2)
    validation = tuple(ValidationPair(*pairs.pair(index)) for index in indices)
    changes = "" if template is None else f" and random changes of the template {Path(options.template).name}"
    return Sources(pairs.pair, validation, f"pairs generated on the fly: random shapes{changes}", pairs.shape)


def _volumes(options: FitOptions) -> Sources:
    training, validation = _split(options)
    shape = check_volumes((*training, *validation), options.shape)
    pairs = VolumePairs(training, shape, options.seed)
    held = validation_pairs(validation, shape, options.validation_pairs)
    description = f"{len(training)} volumes of {Path(options.data).name}, validated on {len(validation)} others"
    return Sources(pairs.pair, held, description, shape)


def _split(options: FitOptions) -> tuple[tuple[Subject, ...], tuple[Subject, ...]]:
    """Volumes to train on and to validate on: two lists, or the last ones of the first."""
    volumes = read_list("data", options.data)
    if options.validation is not None:
        return volumes, read_list("validation", options.validation)
    last = options.validation_volumes
    if len(volumes) < last + 2:
        raise InputError(
            f"data: got {len(volumes)} volumes, of which the last {last} are for validation; expected {last + 2} or "
            "more, a smaller validation_volumes (2 or more), or a separate validation list"
        )
    return volumes[:-last], volumes[-last:]
