"""Lists of real volumes on one common grid: checked, read once, normalised, cached, and drawn in pairs."""

import hashlib
import math
import os
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from runtime.errors import InputError
from runtime.geometry.grid import SIZE_MULTIPLE, Grid, closest_ras, fit_to, reorient, reorient_array
from runtime.images import volume as files
from runtime.images.formats.image_file import read_header
from runtime.images.intensity import PercentileRule
from runtime.images.scan_list import Scan
from runtime.types import Array, Shape
from train.data.augment import Augmentation, augment
from train.data.image_pair import ImagePair

_READERS = 8  # threads that read at the same time; decompression, most of the work, scales well with threads
_WHOLE = 65535  # intensity 1 in the 16-bit numbers that images are stored in: [0, 1] in steps of 0.000015


@dataclass(frozen=True, eq=False)
class StoredScan:
    """A cached scan, (I, J, K) in RAS order.

    Attributes:
        stored: the image, [0, 1] as uint16.
        stored_labels: the label map in the smallest integer type that holds it, or None.
    """

    stored: Array
    stored_labels: Array | None

    @property
    def digest(self) -> str:
        """The hash of image and label map."""
        arrays = (self.stored,) if self.stored_labels is None else (self.stored, self.stored_labels)
        return content_digest(arrays)

    @property
    def bytes(self) -> int:
        return self.stored.nbytes + (0 if self.stored_labels is None else self.stored_labels.nbytes)

    def image(self) -> Tensor:
        """Return the image as a new float32 tensor in [0, 1]."""
        return torch.from_numpy(np.divide(self.stored, _WHOLE, dtype=np.float32))

    def labels(self) -> Tensor | None:
        """Return the label map as a new int32 tensor, or None."""
        return None if self.stored_labels is None else torch.from_numpy(self.stored_labels.astype(np.int32))


class VolumeCache:
    """A cache of the first scans that fit into `megabytes`; all others are read again each time.

    Nothing is evicted: pairs are drawn at random, so any volume is as useful as another. A forked worker shares the
    memory of the scans read before the fork; a spawned worker begins with an empty cache.
    """

    def __init__(self, megabytes: float) -> None:
        self.megabytes, self.bytes = megabytes, 0
        self._kept: dict[tuple[Scan, Shape], StoredScan] = {}
        self._digests: dict[tuple[Scan, Shape], str] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple:
        return VolumeCache, (self.megabytes,)

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, scan: Scan, shape: Shape) -> StoredScan:
        """Return the scan, cropped or padded to `shape`.

        Raises:
            InputError: a file cannot be used, or labels or mask are not on the image's grid.
        """
        kept = self._kept.get((scan, shape))
        if kept is None:
            kept = read_scan(scan, shape)
            self._digests.setdefault((scan, shape), kept.digest)
            self._keep((scan, shape), kept)
        return kept

    def digest(self, scan: Scan, shape: Shape) -> str:
        """Return `StoredScan.digest` of a scan; digests are cached even for scans that do not fit."""
        return self._digests.get((scan, shape)) or self.get(scan, shape).digest

    def _keep(self, key: tuple[Scan, Shape], scan: StoredScan) -> None:
        with self._lock:
            if key not in self._kept and self.bytes + scan.bytes <= self.megabytes * 1e6:
                self._kept[key] = scan
                self.bytes += scan.bytes


def content_digest(arrays: Iterable[Array]) -> str:
    """Return a hash of the content, data types and shapes of arrays."""
    found = hashlib.blake2b(digest_size=16)
    for array in arrays:
        found.update(f"{array.dtype.str}{array.shape}".encode())
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


def read_scan(scan: Scan, shape: Shape) -> StoredScan:
    """Read a scan in the axis order closest to RAS, zero outside its mask, cropped or padded to `shape`.

    Intensities within [0, 1] are taken as they are. Any others are clipped at 0 and divided by the 99.9th percentile of
    the positive ones, as for MRI; CT must be windowed beforehand.

    Raises:
        InputError: see `VolumeCache.get`.
    """
    image, grid = _to_ras(files.read_volume(scan.image, "image"))
    if scan.mask is not None:
        image = np.where(_companion(scan.mask, "mask", scan, grid) != 0, image, 0)
    if image.min() < 0 or image.max() > 1:  # otherwise they are normalised already, perhaps by a window
        image = PercentileRule().normalise(np.clip(image, 0, None), f"image: {scan.image}")
    labels = None if scan.labels is None else _companion(scan.labels, "labels", scan, grid)
    stored = _fitted(np.rint(image * np.float32(_WHOLE)).astype(np.uint16), shape)
    if stored.min() == stored.max():
        where = f"{shape} inside its mask" if scan.mask else f"{shape}"
        raise InputError(f"image: {scan.image} shows nothing on {where}: all voxels are equal; correct the list")
    return StoredScan(stored, None if labels is None else _fitted(labels, shape))


def _fitted(array: Array, shape: Shape) -> Array:
    return np.ascontiguousarray(fit_to(array, shape))


def _to_ras(volume: files.Volume) -> tuple[Array, Grid]:
    """Return voxels and grid with the axes in the order and direction closest to RAS."""
    axes, signs = closest_ras(volume.grid.affine)
    return reorient_array(volume.data, axes, signs), reorient(volume.grid, axes, signs)


def _companion(file: Path, name: str, scan: Scan, grid: Grid) -> Array:
    """Read a label map or mask and check that it is on its image's grid."""
    array, own = _to_ras(files.read_labels(file, name, lowest=0))
    _require_grid(own, grid, f"{name}: {file}", scan.image, "give the map of this image, or resample it onto its grid")
    return array


def _require_grid(grid: Grid, expected: Grid, what: str, other: Path, remedy: str) -> None:
    if not grid.close(expected):
        raise InputError(f"{what} {grid.shape} is not on the grid of {other} {expected.shape}; {remedy}")


def check_volumes(scans: Sequence[Scan], shape: Shape | None, cache: VolumeCache, pad: bool = False) -> Shape:
    """Check volumes and return the shape to train at.

    Checks the headers of all files first, which is fast, then reads each volume once; `cache` keeps what fits.

    Args:
        scans: the volumes.
        shape: the shape to train at; None: the volumes' own.
        cache: where the volumes are kept.
        pad: whether the volumes' own shape is rounded up to multiples of 8.

    Raises:
        InputError: a volume cannot be used, the volumes are not on one grid, a label map or mask is not on its image's
            grid, or the volumes' own shape is not a multiple of 8 and `pad` is false.
    """
    first = _check_headers(scans)
    pool = ThreadPoolExecutor(min(_READERS, os.cpu_count() or 1))
    try:
        # If no header could be read, any shape will do: `read_scan` raises the error that says what is wrong.
        fitted = shape or (_own_size(first.shape, pad) if first else (SIZE_MULTIPLE,) * 3)
        for _ in pool.map(lambda scan: cache.get(scan, fitted), scans):
            pass
    finally:
        pool.shutdown(cancel_futures=True)
    return fitted


def _check_headers(scans: Sequence[Scan]) -> Grid | None:
    """Return the grid that all scans share according to their headers, or None if no header can be read."""
    first = None
    remedy = "align all volumes affinely and resample them onto one grid first, as `prepare` does"
    for scan in scans:
        grid = _header(scan.image)
        if grid is None:
            continue
        first = first or (grid, scan.image)
        _require_grid(grid, first[0], f"data: {scan.image}", first[1], remedy)
        for name, file in (("labels", scan.labels), ("mask", scan.mask)):
            own = None if file is None else _header(file)
            if own is not None:
                _require_grid(own, grid, f"{name}: {file}", scan.image, "give the map of this image")
    return first and first[0]


def _header(file: Path) -> Grid | None:
    """Return a volume's grid in RAS order from its header alone.

    None means that the header cannot be used; reading the file will raise the error that says why.
    """
    try:
        header = read_header(file, "image")
        if math.prod(header.shape[3:]) != 1:
            return None
        grid = files.grid_of(header, "image")
        return reorient(grid, *closest_ras(grid.affine))
    except InputError:
        return None


def _own_size(shape: Shape, pad: bool) -> Shape:
    i, j, k = (-(-size // SIZE_MULTIPLE) * SIZE_MULTIPLE for size in shape)
    padded = i, j, k
    if padded != shape and not pad:
        up = ",".join(map(str, padded))
        raise InputError(
            f"shape: got volumes of {shape}, expected multiples of 8; give shape {up} to pad, or a smaller one to crop"
        )
    return padded


def _pair(moving: StoredScan, fixed: StoredScan) -> ImagePair:
    """Return a pair with both label maps, or with none if either scan lacks one."""
    labelled = moving.stored_labels is not None and fixed.stored_labels is not None
    return ImagePair(moving.image(), fixed.image(), *((moving.labels(), fixed.labels()) if labelled else ()))


@dataclass(frozen=True)
class VolumePairs:
    """Random ordered pairs of different scans; a pair depends only on the seed and its index.

    Attributes:
        scans: two or more scans.
        shape: shape that scans are cropped or padded to.
        seed: seed of the run.
        cache: where scans are read from.
        augmentation: random changes of both images; None: none.
    """

    scans: tuple[Scan, ...]
    shape: Shape
    seed: int
    cache: VolumeCache = field(repr=False, compare=False)
    augmentation: Augmentation | None = None

    def __post_init__(self) -> None:
        if len(self.scans) < 2:
            raise InputError(f"data: got {len(self.scans)} volume to train on, expected 2 or more; add volumes")

    def pair(self, index: int) -> ImagePair:
        """Return the pair of an index, images (I, J, K), with label maps if both scans have one."""
        chosen = np.random.default_rng([self.seed, index]).choice(len(self.scans), 2, replace=False)
        pair = _pair(*(self.cache.get(self.scans[n], self.shape) for n in chosen))
        return pair if self.augmentation is None else augment(pair, self.augmentation, self.seed, index)


def validation_pairs(scans: Sequence[Scan], shape: Shape, limit: int, cache: VolumeCache) -> tuple[ImagePair, ...]:
    """Return at most `limit` ordered pairs, with labels if known.

    Each scan is moved onto the next in the list, then each onto the one after that, and so on; the list is cyclic.
    """
    count = len(scans)
    if count < 2:
        raise InputError(f"validation: got {count} volume, expected 2 or more; add volumes or name another list")
    order = [(n, (n + distance) % count) for distance in range(1, count) for n in range(count)][:limit]
    read = {n: cache.get(scans[n], shape) for n in {n for pair in order for n in pair}}
    return tuple(_pair(read[moving], read[fixed]) for moving, fixed in order)
