"""Entries of the page of many registrations: verdict, figures, their place among all, and pictures."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...backends.verdict_limits import ABOVE, BELOW, MEANINGS
from ...images.pictures.preview import read_panels
from ..pictures import jpeg_uri

if TYPE_CHECKING:
    from PIL.Image import Image

# The figures that are compared between pairs, and how the page calls them.
COMPARED = {
    "correlation": "correlation inside the brain",
    "local": "local correlation, median",
    "local_low": "local correlation, 10th percentile",
    "overlap": "overlap of the outlines",
    "sd_log_jacobian": "SD of log Jacobian",
    "folded_share": "folded share",
    "flow_high_mm": "flow, 95th percentile, mm",
    "volume_factor": "volume factor of the affine",
    "detail_affine": "correlation of details after the affine",
}
ORDER = {"error": 0, "failed": 1, "look": 2, None: 3, "ok": 4}  # the worst first
TO_SIGMA = 1.4826  # from the median absolute deviation to a standard deviation
FEWEST = 5  # pairs from which on a robust z is stated
CLEAR = 3.0  # robust z from which a figure is marked
PLANES = ("sagittal", "coronal", "axial")
HEIGHT = 96  # of thumbnails in pixels
QUALITY = 70


@dataclass(frozen=True)
class Entry:
    """One registration of the list.

    Attributes:
        name: unique in the list.
        verdict: "ok", "look", "failed"; "error" if there is no result; None if it was made without a verdict.
        reasons: of the verdict, or the error.
        figures: those of `COMPARED`, None where unknown.
        link: of its own page or report, relative to the list's page; None if there is none.
        thumbnails: "fixed" and "warped" -> picture as a URI, and their size; empty without a preview.
        warnings: number of warnings.
        z: robust z of the figures, positive where a figure is worse than the median.
    """

    name: str
    verdict: str | None
    reasons: tuple[str, ...]
    figures: Mapping[str, float | None] = field(default_factory=dict)
    link: str | None = None
    thumbnails: Mapping[str, Any] = field(default_factory=dict)
    warnings: int = 0
    z: Mapping[str, float] = field(default_factory=dict)

    @property
    def worst(self) -> float:
        """The largest robust z."""
        return max(self.z.values(), default=0.0)


def entry_of_report(name: str, report: Mapping[str, Any], link: str | None, preview: Path) -> Entry:
    """Return the entry of a registration.

    Args:
        name: in the list.
        report: content of its report.json.
        link: as in `Entry`.
        preview: its preview.png, from which the thumbnails are cut.
    """
    verdict = report.get("verdict") or {}
    figures = {figure: _number(verdict.get("figures", {}).get(figure)) for figure in COMPARED}
    reasons = tuple(str(reason) for reason in verdict.get("reasons", ()))
    warnings = len(report.get("warnings", ()))
    return Entry(name, verdict.get("verdict"), reasons, figures, link, _thumbnails(preview), warnings)


def entry_of_error(name: str, error: str) -> Entry:
    """Return the entry of a registration that ended with an error."""
    return Entry(name, "error", (error,))


def compared(entries: Sequence[Entry]) -> list[Entry]:
    """Return entries with their robust z, the worst first: by verdict, then by the largest z.

    A robust z is the distance from the median in standard deviations, estimated from the median absolute deviation;
    it is stated for figures that at least five pairs have.
    """
    spreads = {figure: _spread([entry.figures.get(figure) for entry in entries]) for figure in COMPARED}
    found = [replace(entry, z=_z(entry, spreads)) for entry in entries]
    return sorted(found, key=lambda entry: (ORDER.get(entry.verdict, 3), -entry.worst, entry.name))


def _spread(values: Sequence[float | None]) -> tuple[float, float] | None:
    """Return median and robust standard deviation; None for too few values, or without any spread."""
    known = [value for value in values if value is not None]
    if len(known) < FEWEST:
        return None
    median, deviation = robust_spread(known)
    return (median, deviation) if deviation > 0 else None


def robust_spread(values: Sequence[float]) -> tuple[float, float]:
    """Return the median of values and their standard deviation as the median absolute deviation estimates it."""
    median = statistics.median(values)
    return median, TO_SIGMA * statistics.median(abs(value - median) for value in values)


def _z(entry: Entry, spreads: Mapping[str, tuple[float, float] | None]) -> dict[str, float]:
    found = {}
    for figure, spread in spreads.items():
        value = entry.figures.get(figure)
        if spread is None or value is None:
            continue
        z = (value - spread[0]) / spread[1]
        sides = MEANINGS[figure][0]
        found[figure] = z if sides == ABOVE else -z if sides == BELOW else abs(z)
    return found


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _thumbnails(preview: Path) -> dict[str, Any]:
    """Return the three planes of the fixed and of the warped image side by side, each as one small picture."""
    panels = read_panels(preview)
    found: dict[str, Any] = {}
    for kind in ("fixed", "warped"):
        planes = [panels[name] for plane in PLANES if (name := f"{plane} {kind}") in panels]
        if planes:
            strip = _strip(planes)
            found[kind] = jpeg_uri(strip, QUALITY)
            found["size"] = strip.size
    return found if "fixed" in found and "warped" in found else {}


def _strip(panels: "Sequence[Image]") -> "Image":
    from PIL import Image

    small = [panel.convert("L").resize((max(panel.width * HEIGHT // panel.height, 1), HEIGHT)) for panel in panels]
    strip = Image.new("L", (sum(panel.width for panel in small), HEIGHT))
    left = 0
    for panel in small:
        strip.paste(panel, (left, 0))
        left += panel.width
    return strip
