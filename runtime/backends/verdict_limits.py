"""The rule by which a registration is judged, which belongs to an engine set: a score of several figures, and limits.

How rough a sound flow is and how similar it makes two images depends on the network. The score, a logistic model of a
few figures, is therefore fitted to an engine set on cases with a known outcome (`python cli.py calibrate`) and stated
in its manifest. Besides, every set has limits of single figures, which only find the worst; a set without a score has
nothing else.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

KEY = "verdict"  # of the manifest
SMALLEST = 1e-4  # value below which a logarithm is not taken
ABOVE, BELOW = "above", "below"
BOTH = (ABOVE, BELOW)

# Every figure that can have limits: the sides on which a value is implausible, and what that means
# (`runtime.registration.quality.figures`).
MEANINGS = {
    "correlation_affine": (BELOW, "after the affine the images hardly correlate inside the brain"),
    "correlation": (BELOW, "after registration the images hardly correlate inside the brain"),
    "local_affine": (BELOW, "after the affine the images hardly correlate locally"),
    "local": (BELOW, "after registration the images hardly correlate locally"),
    "local_low": (BELOW, "after registration some regions hardly correlate"),
    "unlike_share": (ABOVE, "many regions do not correlate after registration"),
    "detail_affine": (BELOW, "the affine aligns outlines, but no details"),
    "overlap_affine": (BELOW, "after the affine the outlines do not overlap"),
    "overlap": (BELOW, "after registration the outlines differ"),
    "sd_log_jacobian": (ABOVE, "the flow is rough (standard deviation of its log Jacobian)"),
    "sd_log_volume": (ABOVE, "the flow changes the volumes of regions (standard deviation of the logarithm)"),
    "folded_share": (ABOVE, "the flow folds"),
    "flow_mm": (ABOVE, "the flow is long, mean mm beyond the affine"),
    "flow_high_mm": (ABOVE, "the flow is long, 95th percentile mm beyond the affine"),
    "volume_factor": (BOTH, "the affine changes the volume"),
    "stretch": (ABOVE, "the affine stretches one direction more than another"),
    "unseen_share": (ABOVE, "little of the fixed scan is in the moving scan's field of view"),
    "fixed_size": (BOTH, "the fixed scan's body is of an unusual size, thousands of the network's voxels"),
    "moving_size": (BOTH, "the moving scan's body is of an unusual size, thousands of the network's voxels"),
    "fixed_fine": (BOTH, "the fixed scan's fine structure is unusual (noise, smoothing, another body part)"),
    "moving_fine": (BOTH, "the moving scan's fine structure is unusual (noise, smoothing, another body part)"),
    "fixed_saturated": (ABOVE, "much of the fixed scan is saturated"),
    "moving_saturated": (ABOVE, "much of the moving scan is saturated"),
}


@dataclass(frozen=True)
class Limit:
    """Limits of one figure.

    Attributes:
        figure: key of `MEANINGS`.
        side: "above" or "below", where values are implausible.
        look, failed: values beyond which a result should be looked at, or counts as failed.

    Raises:
        ValueError: unknown figure, a side that is never implausible, limits that are not finite or in wrong order.
    """

    figure: str
    side: str
    look: float
    failed: float

    def __post_init__(self) -> None:
        if self.figure not in MEANINGS or self.side not in BOTH or self.side not in MEANINGS[self.figure][0]:
            raise ValueError(f"limit of {self.figure!r} {self.side!r}")
        if not (math.isfinite(self.look) and math.isfinite(self.failed)):
            raise ValueError(f"limits of {self.figure} are not finite")
        if self.failed != self.look and (self.failed > self.look) != (self.side == ABOVE):
            raise ValueError(f"limits of {self.figure} in the wrong order")

    def excess(self, value: float) -> float:
        """Return how far a value is beyond the limits, in distances between them: 0 at `look`, 1 at `failed`."""
        between = self.failed - self.look or (1e-9 if self.side == ABOVE else -1e-9)
        return (value - self.look) / between

    def as_dict(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass(frozen=True)
class Term:
    """A figure's part in the score: weight times its distance from the centre, in scales.

    Attributes:
        figure: key of `MEANINGS`.
        logarithm: True to take the figure's logarithm first; below `SMALLEST` the logarithm of `SMALLEST`.
        centre, scale: of the (logarithm of the) figure, over the cases of the fit.
        weight: positive where larger values speak against a result.
        usual: median of the figure over sound results, for the reasons.

    Raises:
        ValueError: unknown figure, or numbers that are not finite.
    """

    figure: str
    logarithm: bool
    centre: float
    scale: float
    weight: float
    usual: float

    def __post_init__(self) -> None:
        numbers = self.centre, self.scale, self.weight, self.usual
        if self.figure not in MEANINGS or not all(map(math.isfinite, numbers)) or not self.scale > 0:
            raise ValueError(f"term of {self.figure!r}")

    def part(self, value: float) -> float:
        """Return the figure's part in the score; 0 if it could not be computed, as if it were at the centre."""
        if not math.isfinite(value):
            return 0.0
        found = math.log(max(value, SMALLEST)) if self.logarithm else value
        return self.weight * (found - self.centre) / self.scale

    def as_dict(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass(frozen=True)
class Score:
    """A logistic model: the score is the logarithm of the odds that a result failed, if half of all results did.

    Attributes:
        bias: the score of a result whose figures are all at their centres.
        terms: figures that count.
        look, failed: scores from which on a result should be looked at, or counts as failed.

    Raises:
        ValueError: numbers that are not finite, or in the wrong order.
    """

    bias: float
    terms: tuple[Term, ...]
    look: float = 0.0
    failed: float = 1.0

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, (self.bias, self.look, self.failed))) or self.failed < self.look:
            raise ValueError("score: numbers that are not finite, or in the wrong order")

    def parts(self, values: Mapping[str, float]) -> dict[str, float]:
        """Return the part of each figure, given all figures by name."""
        return {term.figure: term.part(values[term.figure]) for term in self.terms}

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "terms": [term.as_dict() for term in self.terms]}


@dataclass(frozen=True)
class VerdictLimits:
    """The rule by which registrations are judged.

    Attributes:
        limits: of single figures, at most one for each side of a figure.
        score: of several figures; None for a set without one.
        calibration: facts on the cases the score was fitted on; empty without one.
    """

    limits: tuple[Limit, ...]
    score: Score | None = None
    calibration: Mapping[str, Any] = field(default_factory=dict)

    @property
    def calibrated(self) -> bool:
        """True if the rule was fitted to the engine set."""
        return bool(self.calibration)

    def as_dict(self) -> dict[str, Any]:
        limits = [limit.as_dict() for limit in self.limits]
        score = None if self.score is None else self.score.as_dict()
        return {"limits": limits, "score": score, "calibration": dict(self.calibration)}


CONSERVATIVE = VerdictLimits(
    (
        Limit("correlation", BELOW, look=0.75, failed=0.5),
        Limit("unlike_share", ABOVE, look=0.15, failed=0.3),
        Limit("sd_log_jacobian", ABOVE, look=1.2, failed=1.6),
        Limit("folded_share", ABOVE, look=0.02, failed=0.05),
        Limit("overlap", BELOW, look=0.85, failed=0.7),
        Limit("fixed_size", BELOW, look=100.0, failed=2.0),
    )
)


def limits_of(manifest: Mapping[str, Any]) -> VerdictLimits:
    """Return the rule that an engine set's manifest states, else the conservative limits alone.

    Raises:
        KeyError, TypeError, ValueError: the manifest's rule cannot be read.
    """
    if KEY not in manifest:
        return CONSERVATIVE
    stated = manifest[KEY]
    limits = tuple(
        Limit(entry["figure"], entry["side"], float(entry["look"]), float(entry["failed"]))
        for entry in stated["limits"]
    )
    score = None
    if (found := stated.get("score")) is not None:
        numbers = ("centre", "scale", "weight", "usual")
        terms = tuple(
            Term(entry["figure"], bool(entry["logarithm"]), *(float(entry[name]) for name in numbers))
            for entry in found["terms"]
        )
        score = Score(float(found["bias"]), terms, float(found["look"]), float(found["failed"]))
    return VerdictLimits(limits, score, dict(stated["calibration"]))
