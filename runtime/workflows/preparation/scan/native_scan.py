"""A native scan as read: intensities in [0, 1] with the mask applied, and the label map."""

from dataclasses import dataclass
from typing import cast

import numpy as np

from ....errors import InputError
from ....geometry.grid import Grid
from ....images.intensity import PercentileRule, Rule
from ....images.label_position import label_position_warnings
from ....images.resampling.resample import resample
from ....images.scan_list import Scan
from ....images.volume import Volume, read_labels, read_volume
from ....registration.result import DARK_SHARE
from ....types import Array


@dataclass(frozen=True, eq=False)
class NativeScan:
    """Contents of the files of a scan.

    Attributes:
        image: (I, J, K) float32 in [0, 1] on `grid`, background (0) outside the mask.
        grid: grid of the image, RAS mm.
        labels, mask: as read, each on its own grid, or None.
        sha256: hash of the image file's bytes.
        warnings: about the headers and the intensities, one line each.
    """

    image: Array
    grid: Grid
    labels: Volume | None
    mask: Volume | None
    sha256: str
    warnings: tuple[str, ...]

    @property
    def hashes(self) -> dict[str, str]:
        """Hashes of the files that were read, by column of the list."""
        others = {name: cast(str, volume.sha256) for name, volume in self._companions.items()}
        return {"image": self.sha256, **others}

    @property
    def _companions(self) -> dict[str, Volume]:
        return {name: it for name, it in (("labels", self.labels), ("mask", self.mask)) if it is not None}


def read_native(scan: Scan, rule: Rule, argument: str = "image", nan: float | None = None) -> NativeScan:
    """Read the files of a scan; the mask is applied before the rule, so that only voxels inside it set the scale.

    Args:
        scan: entry of a list of scans.
        rule: maps intensities to [0, 1].
        argument: name of the image in messages.
        nan: the intensity that replaces NaN; None: NaN is refused.

    Raises:
        InputError: a file that cannot be used, labels or mask below 0, a mask that keeps no voxel, or no contrast.
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
            warnings += label_position_warnings(it.grid, volume.grid, f"{column}: {it.path}", "the image", what)
    assert volume.sha256 is not None
    return NativeScan(image, volume.grid, labels, mask, volume.sha256, tuple(warnings))


def _kept(volume: Volume, mask: Volume, rule: Rule) -> Array:
    """Return the image where the mask is not 0, background elsewhere."""
    inside = resample((mask.data != 0).astype(np.uint8), mask.grid, volume.grid, order="nearest")
    if not inside.any():
        raise InputError(f"mask: {mask.path} keeps no voxel of {volume.path}; does it belong to that image?")
    return np.where(inside, volume.data, np.float32(rule.background(volume.data)))


def on_target(native: NativeScan, target: Grid, rule: Rule, matrix: Array | None = None) -> Array:
    """Resample a scan's image onto the grid of the results, once, so that applying the rule again changes nothing.

    Interpolation lowers peaks and cropping changes which voxels are counted, so percentiles are taken again on the grid
    of the results: registration, which applies the percentile rule to a scan on its grid, then gets the same numbers as
    training, which applies no rule. A window is absolute and needs no second pass.

    Args:
        native: from `read_native` with the same rule.
        target: grid of the results, RAS mm.
        rule: maps intensities to [0, 1].
        matrix: (4, 4) RAS mm, target -> scan; identity if None.

    Returns:
        (I, J, K) float32 in [0, 1].

    Raises:
        InputError: nothing of the scan lies on the grid.
    """
    image = np.clip(resample(native.image, native.grid, target, matrix), 0, 1)
    if image.max() == image.min():
        raise InputError("image: lies outside the grid of the results; check its header, or use --affine auto")
    return rule.normalise(image) if isinstance(rule, PercentileRule) else image
