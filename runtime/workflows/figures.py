"""Matplotlib's figures, without a display; it keeps its list of fonts in our cache folder."""

from typing import Any

from ..host.cache_folder import keep_in_cache


def new_figure(width: float, height: float) -> Any:
    """An empty figure of a size in inches.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    keep_in_cache("MPLCONFIGDIR", "matplotlib")
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")
