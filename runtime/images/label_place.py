"""Where a label map or a mask lies beside its scan: one judge for every command that takes both."""

import numpy as np

from ..errors import InputError
from ..geometry.grid import Grid


def label_place_doubts(labels: Grid, scan: Grid, name: str, of: str, what: str = "label map") -> tuple[str, ...]:
    """What may be wrong with the place of a map, one line each; nothing where it is on the scan's grid.

    Args:
        labels: the map's grid.
        scan: its scan's.
        name: argument and file, for messages.
        of: whose map it is, such as "the moving scan".
        what: "label map" or "mask".

    Raises:
        InputError: both lie apart, so that the map cannot be the scan's.
    """
    if labels.close(scan):
        return ()
    low = np.maximum(*(grid.corners.min(axis=0) for grid in (labels, scan)))
    high = np.minimum(*(grid.corners.max(axis=0) for grid in (labels, scan)))
    if np.any(low > high):
        raise InputError(
            f"{name} lies apart from {of} in physical space; give the {what} of that scan, with its header"
        )
    return (f"the {what} is not on {of}'s grid; it is used where its header says",)
