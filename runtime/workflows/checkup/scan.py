"""What can be said about one scan before it is registered: header, intensities, foreground and field of view."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np

from ...geometry.grid import Grid, bounding_box
from ...images.intensity import FOREGROUND, PercentileRule, Rule, is_standardised
from ...registration.affine.rotations import ENDS
from ...registration.reading import ReadScan
from ...registration.result import DARK_SHARE, USUAL
from ...types import Array

AIR = -500.0  # Hounsfield units below which only air lies, so that the scan is CT
FULL = 0.9  # share of foreground above which a scan has no background
SATURATED = 0.05  # share of the foreground at the largest value from which a scan is saturated
LARGE_ML = 2300.0  # more than any brain; heads have 3000 and more
COARSE_MM = 3.0  # voxel size from which details are lost


@dataclass(frozen=True)
class Finding:
    """Something to know before registering.

    Attributes:
        about: "fixed", "moving", "both" or "machine".
        text: what was found.
        remedy: what to do; "" if nothing has to be done.
    """

    about: str
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.about}: {self.text}" + (f"; {self.remedy}" if self.remedy else "")


@dataclass(frozen=True, eq=False)
class ExaminedScan:
    """A scan and what was found.

    Attributes:
        name: "fixed" or "moving".
        read: the scan as read and normalised.
        facts: shape, spacing, orientation, foreground and intensities, plain types.
        findings: what to know about it.
    """

    name: str
    read: ReadScan
    facts: dict[str, Any]
    findings: tuple[Finding, ...]

    @property
    def grid(self) -> Grid:
        return self.read.volume.grid

    @property
    def millilitres(self) -> float:
        return float(self.facts["foreground_ml"])


def examine_scan(name: str, read: ReadScan, rule: Rule, spacing: float) -> ExaminedScan:
    """Examine one scan.

    Args:
        name: "fixed" or "moving".
        read: the scan.
        rule: rule that maps intensities to [0, 1].
        spacing: voxel size of the network's images, mm.
    """
    volume, body = read.volume, read.normalised.foreground
    grid = volume.grid
    voxel_ml = abs(float(np.linalg.det(grid.affine[:3, :3]))) / 1000
    extent = _extent_mm(body, grid)
    facts = {
        "path": str(volume.path) if volume.path else None,
        "shape": grid.shape,
        "spacing_mm": grid.spacing,
        "orientation": "".join(nib.orientations.aff2axcodes(grid.affine)),
        "foreground_ml": float(np.count_nonzero(body)) * voxel_ml,
        "foreground_mm": extent,
        "foreground_share": float(body.mean()),
        "cut_off": cut_sides(read),
        "intensities": _intensities(volume.data),
    }
    found = [Finding(name, warning.removeprefix(f"{name}: ")) for warning in volume.warnings]
    found += _intensity_findings(name, read, rule, facts)
    found += _extent_findings(name, facts, spacing)
    return ExaminedScan(name, read, facts, tuple(found))


def cut_sides(read: ReadScan) -> list[str]:
    """Return the sides on which the scan ends although the body goes on, in words."""
    view, sides = read.normalised.view, []
    for axis, side in np.argwhere(view.sides):
        direction = view.grid.directions[:, axis] * (1 if side else -1)
        along = int(np.argmax(np.abs(direction)))
        sides.append(ENDS[along][int(direction[along] > 0)])
    return sorted(sides)


def _extent_mm(body: Array, grid: Grid) -> list[float]:
    if not body.any():
        return [0.0, 0.0, 0.0]
    first, last = bounding_box(body)
    return [float(size) for size in (last - first + 1) * np.array(grid.spacing)]


def _intensities(data: Array) -> dict[str, float]:
    low, middle, high = (float(value) for value in np.percentile(data, (1, 50, 99)))
    shares = {"zero": float(np.mean(data == 0)), "negative": float(np.mean(data < 0))}
    extremes = {"min": float(data.min()), "max": float(data.max())}
    return {**extremes, "percentile_1": low, "median": middle, "percentile_99": high, **shares}


def _intensity_findings(name: str, read: ReadScan, rule: Rule, facts: dict[str, Any]) -> Iterator[Finding]:
    seen = facts["intensities"]
    if isinstance(rule, PercentileRule) and seen["negative"] > DARK_SHARE and not is_standardised(read.volume.data):
        share = f"{seen['negative']:.0%} of the voxels are below 0 and count as 0"
        if seen["min"] < AIR:
            yield Finding(name, f"{share}; it looks like CT", "give --window, such as -200,300, and engines for CT")
        else:
            yield Finding(name, share, "add a constant so that the background is 0 and the brain above it")
    if facts["foreground_share"] > FULL:
        yield Finding(
            name, "has no dark background; is it inverted, or all noise?", "set the background to 0, or give a mask"
        )
    image, body = read.normalised.image, read.normalised.foreground
    top = float(np.mean(image[body] >= image.max())) if body.any() else 0.0
    if top > SATURATED:
        yield Finding(
            name, f"{top:.0%} of its foreground has the largest value: it is saturated", "use the original scan"
        )
    if not np.any(image > FOREGROUND):
        yield Finding(name, "is dark but for a few voxels", "remove outliers")


def _extent_findings(name: str, facts: dict[str, Any], spacing: float) -> Iterator[Finding]:
    millilitres, unit = facts["foreground_ml"], spacing**3
    if millilitres > LARGE_ML * unit:
        yield Finding(
            name,
            f"its foreground has {millilitres:.0f} ml, more than a brain; is the skull still there?",
            "remove it (skull-stripping), or give a mask",
        )
    longest = max(facts["foreground_mm"]) / spacing
    if 0 < longest < 60:
        yield Finding(
            name,
            f"its foreground spans {longest:.0f} voxels of the network's {spacing:g} mm grid, a head about {USUAL}",
            f"multiply the voxel sizes of both headers by {max(round(USUAL / longest), 2)}, or export engines with a "
            "smaller --spacing",
        )
    if max(facts["spacing_mm"]) > COARSE_MM * spacing:
        yield Finding(name, f"has voxels of {max(facts['spacing_mm']):.3g} mm: details cannot be aligned along them")
    if facts["cut_off"]:
        yield Finding(name, f"ends in the body at its {', '.join(facts['cut_off'])} side: nothing is known beyond")
