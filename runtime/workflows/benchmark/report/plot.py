"""Picture of a record: time against volume if that was measured, else each contender's time by stage."""

from pathlib import Path
from typing import Any

import numpy as np

from ....host.files.whole_files import atomic_path
from ....pages.plots import new_figure
from ....types import Record

SIZE = (8, 4.5)  # inches
# Finest level first; the rest of a run's time is "other".
COLOURS = {
    "estimator 1": "#08519c",
    "estimator 2": "#3182bd",
    "estimator 3": "#6baed6",
    "estimator 4": "#c6dbef",
    "encode": "#e6550d",
    "warp": "#31a354",
    "compose": "#74c476",
    "upsample": "#c7e9c0",
    "score": "#756bb1",
    "finish": "#969696",
    "other": "#d9d9d9",
}


def draw(record: Record, path: Path) -> None:
    """Draw a record into a file, complete or not at all; the extension (.png, .svg, .pdf) sets the format.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    figure = new_figure(*SIZE)
    (draw_volumes if "shapes" in record else draw_stages)(record, figure.subplots())
    figure.suptitle(place_of(record), fontsize=9, color="0.3")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=Path(path).suffix.lstrip(".").lower(), dpi=150)


def place_of(record: Record) -> str:
    """Return the devices of the contenders, in words."""
    host = f"{record['machine']['cpu']}, {record['threads']} threads"
    return "; ".join(dict.fromkeys(host if row["device"] == "cpu" else row["device"] for row in record["contenders"]))


def draw_volumes(record: Record, axes: Any) -> None:
    """Draw the median loop with its range, and the line fitted to the medians."""
    volumes = np.array([row["megavoxels"] for row in record["shapes"]])
    for number, (name, fit) in enumerate(record["fits"].items()):
        loops = [row["loops"][name] for row in record["shapes"]]
        low, middle, high = (np.array([loop[part] for loop in loops]) for part in ("min", "median", "max"))
        label = f"{name}: {1000 * fit['slope']:.0f} ms per megavoxel"
        reach = np.array([0, volumes.max()])
        axes.plot(reach, fit["slope"] * reach + fit["intercept"], color=f"C{number}", linewidth=0.8)
        errors = np.stack((middle - low, high - middle))
        axes.errorbar(volumes, middle, errors, color=f"C{number}", marker="o", linestyle="none", label=label)
    axes.set(xlabel="megavoxels", ylabel=f"loop, s ({record['schedule']['name']})", xlim=(0, None), ylim=(0, None))
    axes.legend()
    axes.grid(alpha=0.3)


def draw_stages(record: Record, axes: Any) -> None:
    """Draw one bar per contender: mean seconds of a run by stage."""
    rows = [row for row in record["contenders"] if "stages" in row]
    parts = [parts_of(row) for row in rows]
    names, left = [row["name"] for row in rows], np.zeros(len(rows))
    for part, colour in COLOURS.items():
        widths = np.array([found[part] for found in parts])
        if widths.any():
            axes.barh(names, widths, left=left, color=colour, label=part)
            left += widths
    axes.set(xlabel=f"s per run ({record['pair']['words']}, {record['schedule']['name']})")
    axes.invert_yaxis()
    axes.figure.legend(loc="outside lower center", fontsize=8, ncols=6)


def parts_of(row: Record) -> dict[str, float]:
    """Return the mean seconds of a contender's run by coloured part; their sum is loop and finish."""
    parts = dict.fromkeys(COLOURS, 0.0)
    for stage in row["stages"]:
        name = f"estimator {stage['level']}" if stage["stage"] == "estimator" else stage["stage"]
        parts[name if name in parts else "other"] += stage["calls"] * stage["seconds"]["mean"]
    parts["other"] += row["loop"]["mean"] + row["finish"]["mean"] - sum(parts.values())
    return parts
