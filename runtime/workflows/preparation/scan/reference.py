"""The reference of a preparation: the grid of the results around its foreground, and its image on that grid."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ....errors import InputError
from ....geometry.grid import Grid, plan_working_grid
from ....images.mni152 import NAME as MNI152
from ....images.mni152 import mni152_file
from ....images.scan_list import Scan
from ....types import Array
from ..options import FIRST, PrepareOptions, Shape
from .alignment import Aligner
from .native_scan import on_target, read_native

ALIGNED, MNI = 2, 4  # NIfTI codes: coordinates of another scan, and of the MNI152 template


@dataclass(frozen=True, eq=False)
class Reference:
    """The image that scans are aligned with.

    Attributes:
        image: (I, J, K) float32 in [0, 1] on `target`.
        foreground: (I, J, K) bool, foreground of `image`.
        target: grid of the results, RAS mm of the reference.
        aligner: aligns scans with the reference.
        name: "mni152" or the file.
        hashes: hashes of its files; the reference depends only on these and the options.
        code: NIfTI code of coordinates in its space.
    """

    image: Array
    foreground: Array
    target: Grid
    aligner: Aligner
    name: str
    hashes: dict[str, str]
    code: int


def open_reference(options: PrepareOptions, first: Scan) -> Reference:
    """Read the reference and plan the grid of the results.

    Args:
        options: reference, shape, spacing, intensity rule and kind of alignment.
        first: first scan of the list; with its mask it is the reference if the options say "first".

    Raises:
        InputError: it cannot be read, nothing in it is foreground, or it is constant.
    """
    scan = _reference_scan(options.reference, first)
    native = read_native(scan, options.rule, "--reference", options.nan)
    foreground = options.rule.foreground(native.image)
    if not foreground.any():
        raise InputError(f"--reference: {scan.image} has no foreground after intensity scaling; check --window")
    target = target_grid(native.grid, foreground, options.shape, options.spacing)
    image = on_target(native, target, options.rule)
    aligner = Aligner(options.affine, native.image, native.grid)
    name, code = (MNI152, MNI) if options.reference == MNI152 else (str(scan.image), ALIGNED)
    return Reference(image, options.rule.foreground(image), target, aligner, name, native.hashes, code)


def _reference_scan(reference: str, first: Scan) -> Scan:
    if reference == MNI152:
        return Scan(mni152_file())
    return Scan(first.image, mask=first.mask) if reference == FIRST else Scan(Path(reference))


def target_grid(grid: Grid, foreground: Array, shape: Shape, spacing: float) -> Grid:
    """Return the grid of the results: `shape` at `spacing` mm, centred on the foreground, axes closest to RAS+.

    It is the working grid that registration would choose, without a margin, grown or cropped to `shape`: if the
    reference has this spacing already, its own voxels are used and it is not interpolated.
    """
    tight = plan_working_grid(grid, foreground, spacing, multiple=1, minimum=1, margin_mm=0, argument="--reference")
    try:
        return tight.crop((np.array(tight.shape) - shape) // 2, shape)
    except InputError as error:
        raise InputError(f"--shape, --spacing: got {shape} of {spacing:g} mm; {error}") from None
