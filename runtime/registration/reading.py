"""Reading and normalisation of scans in background threads, before an engine is needed."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

from ..host.background import Job, Jobs
from ..host.machine import check_fits
from ..images.formats.image_file import read_header
from ..images.intensity import PercentileRule, Rule, is_standardised
from ..images.label_position import label_position_warnings
from ..images.masks import mask_of, read_mask
from ..images.volume import Source, Volume, read_labels, read_volume
from .preprocessing import Normalised, normalised

Scan = Path | str | Volume
STANDARDISED = "the intensities are standardised (z-scores); they were shifted above 0 for the network"


@dataclass(frozen=True, eq=False)
class ReadScan:
    """A scan as read and with normalised intensities, and the source of its mask, if it has one."""

    volume: Volume
    normalised: Normalised
    mask: Source | None = None


class Reading:
    """Reader of scans in background threads, which also normalises them; no engine is needed."""

    def __init__(self, jobs: Jobs, rule: Rule, nan: float | None = None) -> None:
        self._jobs, self._rule, self._nan = jobs, rule, nan

    def scan(self, source: Scan, argument: str, mask: Scan | None = None) -> Job[ReadScan]:
        return self._jobs.start(read_scan, source, argument, self._rule, mask, self._nan)

    def moving(self, moving: Scan, labels: Scan | None, mask: Scan | None = None) -> "ReadMoving":
        scan = self.scan(moving, "--moving", mask)
        return ReadMoving(scan, None if labels is None else self._jobs.start(_read_labels, labels))


@dataclass(frozen=True)
class ReadMoving:
    """A moving scan and its labels, being read."""

    scan: Job[ReadScan]
    labels: Job[Volume] | None

    def take(self) -> tuple[ReadScan, Volume | None]:
        """Wait for both; InputError for files that cannot be read, or labels that lie apart from the scan."""
        scan = self.scan.take()
        labels = None if self.labels is None else self.labels.take()
        if labels is not None:
            name = f"--moving-labels: {labels.path or 'the label map'}"
            label_position_warnings(labels.grid, scan.volume.grid, name, "the moving scan")
        return scan, labels


def read_scan(source: Scan, argument: str, rule: Rule, mask: Scan | None = None, nan: float | None = None) -> ReadScan:
    """Read a scan and its mask, unless they are already read, and normalise it; messages call it `argument`."""
    volume = source if isinstance(source, Volume) else read_volume(Path(source), argument, nan)
    if isinstance(rule, PercentileRule) and is_standardised(volume.data):
        name = volume.path.name if volume.path else argument.strip("-")
        volume = replace(volume, warnings=(*volume.warnings, f"{name}: {STANDARDISED}"))
    if mask is None:
        return ReadScan(volume, normalised(volume, rule, argument))
    name = f"{argument}-mask"
    read = read_mask(mask, name)
    path = read.path or "the mask"
    label_position_warnings(read.grid, volume.grid, f"{name}: {path}", f"the {argument.strip('-')} scan", "mask")
    return ReadScan(volume, normalised(volume, rule, argument, mask_of(read, volume.grid, name)), read.source)


def _read_labels(source: Scan) -> Volume:
    return source if isinstance(source, Volume) else read_labels(Path(source), "--moving-labels")


def check_scans_fit(fixed: Scan, *moving: Scan) -> None:
    """Refuse scans that do not fit into memory together, by their headers, before a voxel is read.

    Raises:
        InputError: too little memory, or a header that cannot be read.
    """
    voxels = [_voxels(scan, name) for scan, name in ((fixed, "--fixed"), *((scan, "--moving") for scan in moving))]
    check_fits((0, 0, 0), voxels[0], max(voxels[1:], default=0))


def _voxels(scan: Scan, argument: str) -> int:
    return scan.data.size if isinstance(scan, Volume) else math.prod(read_header(scan, argument).shape)
