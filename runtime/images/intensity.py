"""Intensity rules, which map a scan to [0, 1] as an engine set requires, and the foreground that results."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, cast

import numpy as np

from ..errors import InputError
from ..types import Array

FOREGROUND = 0.05  # normalised intensity above which a voxel counts as foreground
BLOCK = 4  # edge, in voxels, of the blocks that distinguish structure from specks
MASKED = 0.1  # least share of voxels that are exactly 0 outside a mask
STANDARD = 0.35  # largest distance of mean and standard deviation from 0 and 1 in z-scores
DARKEST = 0.1  # percentile of z-scores that counts as their lowest
LIFT = 0.06  # of the range of z-scores, the lowest of them after the shift: just above the foreground threshold
BLOCK_SHARE = 0.25  # a block holds structure if at least this share of it is foreground


@dataclass(frozen=True)
class PercentileRule:
    """The rule for MRI: 0 -> 0 and the `upper` percentile of the voxels above 0 -> 1, clipped.

    Attributes:
        upper: percentile in (0, 100].
    """

    upper: float = 99.9

    fields: ClassVar[str] = "upper, above 0 and at most 100"

    def __post_init__(self) -> None:
        if not 0 < self.upper <= 100:
            raise InputError(f"--percentile: got {self.upper:g}, expected above 0 and at most 100, such as 99.9")

    def as_dict(self) -> dict[str, Any]:
        return {"rule": "percentile", **asdict(self)}

    def normalise(self, data: Array, argument: str = "image") -> Array:
        """Map intensities (I, J, K) to float32 in [0, 1]; InputError if none is above 0 or all voxels become equal.

        Standardised intensities (`is_standardised`) are shifted above 0 first.
        """
        if is_standardised(data):
            data = _shifted_above_zero(data)
        positive = data[data > 0]
        if not positive.size:
            raise InputError(f"{argument}: no voxel is above 0, expected an image with its background at 0")
        top = np.percentile(positive, self.upper)
        return _clipped(data * np.float32(1 / top), argument)

    def background(self, data: Array) -> float:
        """Return the intensity outside the image: 0."""
        return 0.0

    def foreground(self, normalised: Array) -> Array:
        """Return the (I, J, K) bool mask to crop to; see `foreground_mask`."""
        return foreground_mask(normalised)


@dataclass(frozen=True)
class WindowRule:
    """The rule for CT (Hounsfield units): `low` -> 0 and `high` -> 1, clipped.

    Attributes:
        low, high: in the unit of the image, low < high.
    """

    low: float
    high: float

    fields: ClassVar[str] = "low and high, finite, low below high"

    def __post_init__(self) -> None:
        if not (np.isfinite([self.low, self.high]).all() and self.low < self.high):
            got = f"{self.low:g},{self.high:g}"
            raise InputError(f"--window: got {got}, expected two finite numbers, the lower one first, such as -160,240")

    def as_dict(self) -> dict[str, Any]:
        return {"rule": "window", **asdict(self)}

    def normalise(self, data: Array, argument: str = "image") -> Array:
        """Map intensities (I, J, K) to float32 in [0, 1]; InputError if all voxels become equal."""
        scaled = data - np.float32(self.low)
        return _clipped(np.multiply(scaled, np.float32(1 / (self.high - self.low)), out=scaled), argument)

    def background(self, data: Array) -> float:
        """Return the intensity outside the image: the lowest in `data` (air), at most `low`."""
        return min(float(data.min()), self.low)

    def foreground(self, normalised: Array) -> Array:
        """Return the (I, J, K) bool mask to crop to; see `foreground_mask`."""
        return foreground_mask(normalised)


Rule = PercentileRule | WindowRule
RULES: dict[str, type[Rule]] = {"percentile": PercentileRule, "window": WindowRule}


def rule_from_dict(fields: Mapping[str, Any]) -> Rule:
    """Return the rule that `as_dict` wrote, the field `intensity` of an engine set's manifest.

    Raises:
        InputError: an unknown rule or field, a missing field, or a value that the rule refuses.
    """
    fields = dict(fields)
    name = fields.pop("rule", None)
    if name not in RULES:
        raise InputError(f"intensity: got rule {name!r}, expected {' or '.join(RULES)}")
    try:
        return RULES[name](**{key: float(value) for key, value in fields.items()})
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"intensity: got rule {name} with {fields}, expected {RULES[name].fields}") from None


def is_standardised(data: Array) -> bool:
    """Return whether the intensities inside a mask are z-scores: mean 0, standard deviation 1, and exactly 0 outside.

    Args:
        data: (I, J, K), as in the file.
    """
    if data.min() >= 0 or np.mean(data == 0) < MASKED:
        return False
    inside = data[data != 0]
    return bool(abs(inside.mean(dtype=np.float64)) < STANDARD and abs(inside.std(dtype=np.float64) - 1) < STANDARD)


def _shifted_above_zero(data: Array) -> Array:
    """Return standardised intensities with the darkest voxels of the mask just above 0, and 0 outside."""
    low, high = np.percentile(data[data != 0], (DARKEST, 100 - DARKEST))
    least = np.float32(LIFT * (high - low))
    return np.where(data != 0, np.maximum(data - np.float32(low), 0) + least, np.float32(0))


def foreground_mask(normalised: Array) -> Array:
    """Return the voxels above 0.05, without isolated specks.

    A voxel counts if a quarter of the voxels in its block of 4^3, or in a neighbouring block, are above the threshold.
    Where there is no such block (a tiny or very thin object) every voxel above the threshold counts.

    Args:
        normalised: (I, J, K) in [0, 1].

    Returns:
        (I, J, K) bool.
    """
    mask = normalised > FOREGROUND
    filled = _filled_blocks(mask)
    if not filled.any():
        return mask
    for axis in range(3):
        filled = _grown(filled, axis)
    for axis in range(3):
        filled = np.repeat(filled, BLOCK, axis=axis)
    i, j, k = mask.shape
    return mask & filled[:i, :j, :k]


def _filled_blocks(mask: Array) -> Array:
    padded = np.zeros([-(-size // BLOCK) * BLOCK for size in mask.shape], np.uint8)
    padded[tuple(slice(size) for size in mask.shape)] = mask
    # A sum of uint32 adds the four bytes of a block's edge at once; sums of 16 do not overflow a byte.
    counts: Array = padded.view(np.uint32)
    counts = cast(Array, sum(counts[start::BLOCK] for start in range(BLOCK)))
    counts = cast(Array, sum(counts[:, start::BLOCK] for start in range(BLOCK)))
    counts = counts.view(np.uint8).reshape(*counts.shape, BLOCK).sum(axis=-1)
    return counts >= BLOCK_SHARE * BLOCK**3


def _grown(blocks: Array, axis: int) -> Array:
    """Return a mask of blocks, dilated by one block along one axis."""
    grown = blocks.copy()
    ahead, behind = [slice(None)] * 3, [slice(None)] * 3
    ahead[axis], behind[axis] = slice(1, None), slice(None, -1)
    grown[tuple(ahead)] |= blocks[tuple(behind)]
    grown[tuple(behind)] |= blocks[tuple(ahead)]
    return grown


def _clipped(scaled: Array, argument: str) -> Array:
    """Clip to [0, 1] in place and return as float32; InputError if all voxels become equal."""
    normalised = np.clip(scaled, 0, 1, out=scaled).astype(np.float32, copy=False)
    if normalised.min() == normalised.max():
        raise InputError(
            f"{argument}: every voxel is {normalised.flat[0]:g} after intensity scaling, expected an image with "
            "contrast; check the file and --window"
        )
    return normalised
