"""The sources of a run's pairs: generated on the fly, or read from lists of volumes."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from runtime.errors import InputError
from runtime.images.scan_list import Scan, read_scan_list
from train.data.augment import Augmentation
from train.data.image_pair import ImagePair
from train.data.synthetic import POPULATIONS, GeneratedPairs, load_template
from train.data.validation_list import lists_pairs, read_pair_list
from train.data.volumes import Shape, VolumeCache, VolumePairs, check_volumes, content_digest, validation_pairs
from train.options import FitOptions

FIRST_VALIDATION_PAIR = 2**40
GENERATED_SHAPE = (80, 96, 80)


@dataclass(frozen=True)
class Sources:
    """The training and validation pairs of a run.

    Attributes:
        pair: returns the pair of an index, the same at every call.
        validation: pairs that are never trained on.
        description: text for the checkpoint's provenance.
        shape: shape of the training pairs.
        on_device: whether `pair` works on the training device and so must be called in the process that owns it.
        groups: group name of each validation pair; empty if there are no groups.
        content: name and hash of each volume that pairs are made of.
    """

    pair: Callable[[int], ImagePair]
    validation: tuple[ImagePair, ...]
    description: str
    shape: tuple[int, int, int]
    on_device: bool = False
    groups: tuple[str, ...] = ()
    content: tuple[tuple[str, str], ...] = ()

    @cached_property
    def validation_digest(self) -> str:
        """The hash of the validation pairs in order: scores are comparable between runs of the same hash."""
        return content_digest(tensor.numpy() for pair in self.validation for tensor in pair.tensors())


@dataclass(frozen=True)
class EverySecond:
    """Every second generated pair, for steps that register both directions themselves.

    Of two consecutive generated pairs, one is the other with its images exchanged.
    """

    pairs: GeneratedPairs

    def pair(self, index: int) -> ImagePair:
        return self.pairs.pair(2 * index)


def open_sources(options: FitOptions, device: torch.device | str = "cpu") -> Sources:
    """Read or make the pairs that `options` asks for.

    Args:
        options: the options of the run.
        device: the device on which pairs are generated.

    Raises:
        InputError: lists, volumes or the template cannot be used, or do not suit the loss or the validation.
    """
    device = torch.device(device)
    sources = _generated(options, device) if options.data is None else _volumes(options)
    if sources.on_device and options.workers:
        raise InputError(f"workers: got {options.workers}, but generated pairs are made on the GPU; give 0")
    if options.half_size and any(size % 16 for size in sources.shape):
        raise InputError(f"half_size: {sources.shape} halved is not a multiple of 8; give a shape of multiples of 16")
    for number, pair in enumerate(sources.validation, start=1):
        if pair.moving_labels is not None and pair.fixed_labels is not None:
            moving, fixed = _held(pair.moving_labels), _held(pair.fixed_labels)
            whose = f"validation: the label maps of pair {number}, of {len(sources.validation)},"
            _require_shared(moving, fixed, whose)
    return sources


def _generated(options: FitOptions, device: torch.device) -> Sources:
    template = None if options.template is None else load_template(options.template, device)
    population = POPULATIONS[options.generator]
    pairs = GeneratedPairs(options.shape or GENERATED_SHAPE, options.seed, template, device, population)
    name = "" if options.template is None else Path(options.template).name
    changes = "" if template is None else f" and random changes of the template {name}"
    description = f"pairs generated on the fly, {options.generator}: random shapes{changes}"
    groups: tuple[str, ...] = ()
    if options.validation is None:
        # Every second pair is the one before with its images exchanged.
        indices = range(FIRST_VALIDATION_PAIR, FIRST_VALIDATION_PAIR + 2 * options.validation_pairs, 2)
        held = tuple(pairs.pair(index).map(torch.Tensor.cpu) for index in indices)
    else:
        held, groups, words = _listed(options, VolumeCache(options.cache))
        description += f", validated on {words}"
    training = EverySecond(pairs) if options.both_directions else pairs
    content = () if template is None else ((name, template.digest),)
    return Sources(training.pair, held, description, pairs.shape, device.type != "cpu", groups, content)


def _listed(options: FitOptions, cache: VolumeCache) -> tuple[tuple[ImagePair, ...], tuple[str, ...], str]:
    """Read the validation pairs of a list of pairs, or of volumes on any grid.

    Returns:
        The pairs, their groups, and a description of them.
    """
    assert options.validation is not None
    path, most = Path(options.validation), options.validation_pairs
    if lists_pairs(options.validation):
        listed = read_pair_list(path)[:most]
        pairs = tuple(one.read(cache) for one in listed)
        return pairs, tuple(one.group for one in listed), f"{len(listed)} pairs of {path.name}"
    scans = read_scan_list("validation", options.validation)
    shape = check_volumes(scans, None, cache, pad=True)
    return validation_pairs(scans, shape, most, cache), (), f"{len(scans)} volumes of {path.name}"


def _volumes(options: FitOptions) -> Sources:
    assert options.data is not None
    apart = options.validation is not None and lists_pairs(options.validation)
    training, validation = (read_scan_list("data", options.data), ()) if apart else _split(options)
    _check_labelled(options, training)
    cache = VolumeCache(options.cache)
    shape = check_volumes((*training, *validation), options.shape, cache)
    change = Augmentation().scaled(options.augment) if options.augment else None
    pairs = VolumePairs(training, shape, options.seed, cache, change)
    if options.dice:
        _check_labels_shared(training, shape, cache)
    if apart:
        held, groups, words = _listed(options, cache)
    else:
        held, groups = validation_pairs(validation, shape, options.validation_pairs, cache), ()
        words = f"{len(validation)} others"
    description = f"{len(training)} volumes of {Path(options.data).name}, validated on {words}"
    content = tuple((scan.image.name, cache.digest(scan, shape)) for scan in training)
    return Sources(pairs.pair, held, description, shape, groups=groups, content=content)


def _split(options: FitOptions) -> tuple[tuple[Scan, ...], tuple[Scan, ...]]:
    """Return the volumes to train on and to validate on: two lists, or one list whose last volumes are held out."""
    assert options.data is not None
    volumes = read_scan_list("data", options.data)
    if options.validation is not None:
        return volumes, read_scan_list("validation", options.validation)
    last = options.held_out
    if len(volumes) < last + 2:
        raise InputError(
            f"data: got {len(volumes)} volumes, of which the last {last} are for validation; expected {last + 2} or "
            "more; add volumes, lower validation_volumes (2 or more), or give a separate validation list"
        )
    return volumes[:-last], volumes[-last:]


def _check_labelled(options: FitOptions, scans: tuple[Scan, ...]) -> None:
    bare = [scan.image for scan in scans if scan.labels is None]
    if options.dice and bare:
        raise InputError(
            f"dice: {len(bare)} of {len(scans)} volumes have no label map, {bare[0].name} first; give a CSV with the "
            "columns image and labels, or dice 0"
        )


def _check_labels_shared(scans: tuple[Scan, ...], shape: Shape, cache: VolumeCache) -> None:
    """Check that any two label maps share a label, since any two may be drawn; equal sets are compared only once."""
    named: dict[frozenset[int], str] = {}
    for scan in scans:
        labels = cache.get(scan, shape).labels()
        assert labels is not None and scan.labels is not None  # as `_check_labelled` found
        named.setdefault(_held(labels), scan.labels.name)
    if frozenset() in named:
        raise InputError(f"dice: {named[frozenset()]} holds no label above 0 at {shape}; correct the list")
    for one, other in itertools.combinations(named, 2):
        _require_shared(one, other, f"dice: {named[one]} and {named[other]}")


def _held(labels: Tensor) -> frozenset[int]:
    """Return the labels above 0 of a label map."""
    return frozenset(labels.unique().tolist()) - {0}


def _require_shared(moving: frozenset[int], fixed: frozenset[int], whose: str) -> None:
    """Refuse label maps without a common label, whose Dice would be undefined."""
    if not moving & fixed:
        found = " and ".join(str(sorted(held)[:6]) for held in (moving, fixed))
        raise InputError(f"{whose} share no label above 0; their labels begin with {found}; correct the list")
