"""Groups of FreeSurfer's labels, and the conversion of label maps of different protocols to shared labels."""

import numpy as np

Array = np.ndarray
CORTEX = {3: range(1000, 1036), 42: range(2000, 2036)}  # left and right: the joined label and its parcels
# Mindboggle calls the cerebellar cortex its exterior.
JOINED = {parcel: side for side, parcels in CORTEX.items() for parcel in parcels} | {6: 8, 45: 47}
GROUPS = {
    "cortex": (*CORTEX, *(parcel for parcels in CORTEX.values() for parcel in parcels)),
    "deep": (10, 11, 12, 13, 16, 17, 18, 26, 28, 49, 50, 51, 52, 53, 54, 58, 60),
    "ventricles": (4, 5, 14, 15, 24, 31, 43, 44, 63),
    "white matter": (2, 41),
    "cerebellum": (6, 7, 8, 45, 46, 47, 630, 631, 632),
}


def joined(labels: Array) -> Array:
    """Return a label map (any shape) with cortical parcels joined into left (3) and right (42) cortex."""
    table = np.arange(max(int(labels.max()), max(JOINED)) + 1, dtype=labels.dtype)
    table[list(JOINED)] = list(JOINED.values())
    return table[labels]


def mean_by_group(dice: dict[int, float]) -> dict[str, float]:
    """Return the mean Dice of each group of structures with a label in `dice` (label -> Dice), and of "all"."""
    found = {name: [dice[label] for label in labels if label in dice] for name, labels in GROUPS.items()}
    means = {name: float(np.mean(values)) for name, values in found.items() if values}
    return {"all": float(np.mean(list(dice.values()))), **means}
