"""The check of a label map's or mask's position against its scan, shared by every command that takes both."""

import numpy as np

from ..errors import InputError
from ..geometry.grid import Grid


def label_position_warnings(labels: Grid, scan: Grid, name: str, of: str, what: str = "label map") -> tuple[str, ...]:
    """Return warnings about the position of a map, one line each; none if it is on the scan's grid.

    Args:
        labels: the map's grid.
        scan: its scan's grid.
        name: argument and file, for messages.
        of: the scan the map belongs to, such as "the moving scan".
        what: "label map" or "mask".

    Raises:
        InputError: the two do not overlap, so the map cannot belong to the scan.
    """
    if labels.close(scan):
        return ()
    low = np.maximum(*(grid.corners.min(axis=0) for grid in (labels, scan)))
    high = np.minimum(*(grid.corners.max(axis=0) for grid in (labels, scan)))
    if np.any(low > high):
        raise InputError(
            f"{name} does not overlap {of} in physical space; give the {what} of that scan, with its header"
        )
    return (f"the {what} is not on {of}'s grid; its position is taken from its header",)
