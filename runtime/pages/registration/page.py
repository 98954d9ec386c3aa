"""The page of one registration, report.html."""

import base64
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...backends.verdict_limits import ABOVE, MEANINGS
from ..page import asset, write_page
from .images import PageImages
from .maps import Map, draw_maps
from .slices import PlaneSlices, draw_slices
from .trace import draw_trace, steps_of
from .volumes import PageVolume, pack_volumes

ROOM = 1_820_000  # characters for pictures and volumes, so that a page stays below 3 MB with everything else
VIEWER = "niivue-0.69.0.umd.js.gz"


@dataclass(frozen=True)
class Drawn:
    """What the page shows of images and loop, drawn before the report is complete.

    Attributes:
        slices, maps, volumes: of the images.
        trace: plot of the loop, SVG; None if it took no similarity.
        full: True if the volumes have the working grid's resolution.
    """

    slices: list[PlaneSlices]
    maps: list[Map]
    volumes: list[PageVolume]
    trace: str | None
    full: bool


@dataclass(frozen=True)
class FigureRow:
    """A figure of the verdict: its value, what is usual, its part in the score, its limits, the verdict of these."""

    name: str
    meaning: str
    value: float | None
    usual: float | None
    part: float | None
    limits: str
    verdict: str


def draw(images: PageImages, iterations: Mapping[str, Any], full: bool = False) -> Drawn:
    """Draw everything that the page shows of a registration's images and loop.

    Args:
        images: on the working grid.
        iterations: of its report.json.
        full: True to keep the viewer's volumes at the working grid's resolution; otherwise at half of it.
    """
    shown = images.cropped()
    slices, maps = draw_slices(shown), draw_maps(shown)
    room = None if full else ROOM - _characters(slices, maps)
    return Drawn(slices, maps, pack_volumes(shown, room), draw_trace(iterations), full)


def _characters(slices: list[PlaneSlices], maps: list[Map]) -> int:
    """Return the number of characters that pictures and contours take."""
    stacks = [one for plane in slices for one in plane.slices]
    count = sum(len(one.fixed) + len(one.moving) + len(one.warped) + sum(map(len, one.contours)) for one in stacks)
    return count + sum(len(uri) for one in maps for panels in one.planes.values() for uri, _ in panels)


def write_report_page(path: Path, drawn: Drawn, report: Mapping[str, Any]) -> None:
    """Write the page of a registration.

    Args:
        path: of the file.
        drawn: from `draw`.
        report: the content of its report.json.
    """
    verdict = report.get("verdict") or {}
    names = {name: Path(facts["path"]).name if facts.get("path") else name for name, facts in report["inputs"].items()}
    write_page(
        path,
        "registration.html",
        title=f"{names['moving']} to {names['fixed']}",
        names=names,
        verdict=verdict.get("verdict"),
        reasons=verdict.get("reasons", ()),
        calibrated=bool(verdict.get("calibration")),
        rows=figure_rows(verdict),
        score=verdict.get("score"),
        pictures=drawn,
        steps=steps_of(report["iterations"]),
        report=report,
        viewer=base64.b64encode(asset(VIEWER)).decode("ascii"),
    )


def figure_rows(verdict: Mapping[str, Any]) -> list[FigureRow]:
    """Return the figures of a verdict: those beyond their limits first, then by their part in the score."""
    limits = {(limit["figure"], limit["side"]): limit for limit in verdict.get("limits", ())}
    score = verdict.get("score") or {}
    usual = {term["figure"]: term["usual"] for term in score.get("terms", ())}
    rows = []
    for name, value in verdict.get("figures", {}).items():
        own = [limits[name, side] for side in ("below", "above") if (name, side) in limits]
        found = max((_verdict_of(value, limit) for limit in own), default=0)
        words = ", ".join(
            f"look {limit['side']} {limit['look']:.4g}, failed {limit['side']} {limit['failed']:.4g}" for limit in own
        )
        meaning = MEANINGS[name][1] if name in MEANINGS else ""
        part = score.get("parts", {}).get(name)
        row = FigureRow(name, meaning, value, usual.get(name), part, words, ("ok", "look", "failed")[found])
        rows.append((-found, math.inf if part is None else -part, not own, row))
    return [row for *_, row in sorted(rows, key=lambda entry: entry[:3])]


def _verdict_of(value: float | None, limit: Mapping[str, Any]) -> int:
    """Return 0, 1 or 2 for a figure within its limit, worth a look, or failed."""
    if value is None:
        return 0
    sign = 1 if limit["side"] == ABOVE else -1
    return sum(sign * value > sign * limit[name] for name in ("look", "failed"))
