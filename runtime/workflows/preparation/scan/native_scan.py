"""A native scan as read: intensities in [0, 1], its mask applied, its label map beside it."""

from dataclasses import dataclass

import numpy as np

from ....errors import InputError
from ....geometry.grid import Grid
from ....images.intensity import PercentileRule, Rule
from ....images.label_place import label_place_doubts
from ....images.resampling.resample import resample
from ....images.scan_list import Scan
from ....images.volume import Volume, read_labels, read_volume
from ....registration.result import DARK_SHARE
from ....types import Array


@dataclass(frozen=True, eq=False)
class NativeScan:
    """What the files of a scan hold.

    Attributes:
        image: (I, J, K) float32 in [0, 1] on `grid`, background (0) outside the mask.
        grid: of the image, RAS mm.
        labels, mask: as read, each on its own grid, or None.
        sha256: hash of the image file's bytes.
        warnings: doubts about the headers and the intensities, one line each.
    """

    image: Array
    grid: Grid
    labels: Volume | None
    mask: Volume | None
    sha256: str
    warnings: tuple[str, ...]

    @property
    def hashes(self) -> dict[str, str]:
        """Of the files that were read, by column of the list."""
        others = {name: volume.sha256 for name, volume in self._companions.items()}
        return {"image": self.sha256, **others}

    @property
    def _companions(self) -> dict[str, Volume]:
        return {name: it for name, it in (("labels", self.labels), ("mask", self.mask)) if it is not None}


def read_native(scan: Scan, rule: Rule, argument: str = "image", nan: float | None = None) -> NativeScan:
    """Reads the files of a scan. The mask is applied before the rule, so that only what it keeps sets the scale.

    Args:
        scan: from a list.
        rule: intensities to [0, 1].
        argument: what to call the image in messages.
        nan: the intensity that NaN stands for; None: there may be none.

    Raises:
        InputError: a file that cannot be used, labels or mask below 0, a mask that keeps nothing, no contrast.
    """
    volume = read_volume(scan.image, argument, nan)
    mask = read_labels(scan.mask, "mask", lowest=0) if scan.mask else None
    labels = read_labels(scan.labels, "labels", lowest=0) if scan.labels else None
    data = volume.data if mask is None else _kept(volume, mask, rule)
    image = rule.normalise(data, f"{argument}: {scan.image}")
    warnings = [line for it in (volume, labels, mask) if it is not None for line in it.warnings]
    dark = np.count_nonzero(data < 0) / data.size
    if isinstance(rule, PercentileRule) and dark > DARK_SHARE:
        warnings.append(f"{dark:.0%} of the voxels are below 0 and count as 0; is it CT? give --window")
    for it, column, what in ((labels, "labels", "label map"), (mask, "mask", "mask")):
        if it is not None:
            warnings += label_place_doubts(it.grid, volume.grid, f"{column}: {it.path}", "the image", what)
    return NativeScan(image, volume.grid, labels, mask, volume.sha256, tuple(warnings))


def _kept(volume: Volume, mask: Volume, rule: Rule) -> Array:
    """The image's voxels where the mask is not 0, background elsewhere."""
    inside = resample((mask.data != 0).astype(np.uint8), mask.grid, volume.grid, order="nearest")
    if not inside.any():
        raise InputError(f"mask: {mask.path} keeps no voxel of {volume.path}; does it belong to that image?")
    return np.where(inside, volume.data, np.float32(rule.background(volume.data)))


def on_target(native: NativeScan, target: Grid, rule: Rule, matrix: Array | None = None) -> Array:
    """A scan's image on the grid of the results, interpolated once, so that the rule finds nothing left to do in it.

    Interpolation lowers peaks and the crop changes what is counted, so percentiles are taken again on the grid of the
    results: registration, which applies the percentile rule to a scan on its grid, then sees the numbers that training
    takes as they are. A window is absolute and stays.

    Args:
        native: from `read_native` with the same rule.
        target: RAS mm.
        matrix: (4, 4) RAS mm, target -> scan; identity if None.

    Returns:
        (I, J, K) float32 in [0, 1].

    Raises:
        InputError: nothing of the scan lies on the grid.
    """
    image = np.clip(resample(native.image, native.grid, target, matrix), 0, 1)
    if image.max() == image.min():
        raise InputError("image: nothing of it lies on the grid of the results; check the header, or --affine auto")
    return rule.normalise(image) if isinstance(rule, PercentileRule) else image
