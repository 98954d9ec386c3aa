"""Matplotlib figures without a display; Matplotlib's list of fonts lies in the project's cache folder."""

from typing import Any

from ..host.cache_folder import keep_in_cache


def new_figure(width: float, height: float) -> Any:
    """Return an empty figure of `width` x `height` inches.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    keep_in_cache("MPLCONFIGDIR", "matplotlib")
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")
