"""Matplotlib figures without a display: for files, and as SVG whose colours follow the page's."""

import io
import re
from typing import Any

from ..host.cache_folder import keep_in_cache

# Colours that a figure of a page may use; the page's style sheet says what they are in light and in dark.
INK, FAINT, RULE, BAND = "#010101", "#020202", "#030303", "#040404"
SERIES = ("#010201", "#010202", "#010203", "#010204", "#010205", "#010206")
VARIABLES = {INK: "--ink", FAINT: "--faint", RULE: "--rule", BAND: "--band"}
# Colours of figures that are also written as pictures on white.
VARIABLES |= {"#222222": "--ink", "#000000": "--ink", "#8a8a8a": "--faint", "#ececec": "--rule", "#e4e4e4": "--rule"}
VARIABLES |= {"#f6f6f6": "--band", "#b9b9b9": "--faint"}
VARIABLES |= {colour: f"--series-{number}" for number, colour in enumerate(SERIES, start=1)}
FONT_SIZE = 10


def new_figure(width: float, height: float) -> Any:
    """Return an empty figure of `width` x `height` inches.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    keep_in_cache("MPLCONFIGDIR", "matplotlib")
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def as_svg(figure: Any, label: str) -> str:
    """Return a figure as an SVG element for a page.

    Its text stays text in the page's font. The colours above become the page's variables.

    Args:
        figure: from `new_figure`.
        label: what the figure shows, for those who cannot see it.
    """
    import matplotlib
    from markupsafe import Markup, escape

    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": label, "font.size": FONT_SIZE}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    svg = text[text.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r"font: ([^;\"']*?)(\d+(?:\.\d+)?px) [^;\"']*", r"font-size: \2", svg)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    head, _, body = svg.partition(">")
    return Markup(f'{head} role="img" aria-label="{escape(label)}">{body}')


def style_axes(axes: Any) -> None:
    """Give axes of a page's figure its colours, and leave only what is needed."""
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(RULE)
    axes.tick_params(colors=FAINT, labelcolor=FAINT)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    axes.title.set_color(INK)
    axes.yaxis.grid(True, color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
