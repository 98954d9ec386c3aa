"""Operations on a chain of transforms: compose it into one file, invert it, map its Jacobian determinant."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..geometry.jacobian import folded_share, jacobian_of_displacement, sd_log_jacobian
from ..host.files.output_path import writing
from ..host.progress import Progress, silent
from ..images.formats.nifti_bytes import CODES_NOT_KNOWN
from ..images.formats.nifti_writer import write_volume
from ..images.volume import read_source
from . import needs_start, write_verified
from .chain import Route, read_route, space_of

if TYPE_CHECKING:
    from ..geometry.inverse import Inversion

LOWEST, HIGHEST = 1e-9, 1e9  # determinants are clipped to this range before the logarithm


def compose(route: Route, output: Path, convention: str = "itk", progress: Progress = silent) -> str:
    """Write a chain as one file, which gets its name only after it was read back and found to be the same.

    Args:
        route: from the start to the end of the new transform. A field is sampled on the grid of its reference; an
            affine stays one where the format can hold it.
        output: its suffix and the convention determine the format, see `runtime.transforms.write_transform`.
        convention: one of `runtime.transforms.CONVENTIONS`, or "ras".
        progress: called with the name of each stage as it begins.

    Returns:
        A summary to print, a few lines.

    Raises:
        InputError: invalid input, in one line.
    """
    progress("read")
    read = read_route(route)
    displacement, codes = None, CODES_NOT_KNOWN
    if read.transform.matrix is None or needs_start(output, convention):
        codes = read.require_target().codes
    sides = read.start, read.require_end() if convention == "fsl" else read.end
    if read.transform.matrix is None:
        progress("compose")
        displacement = read.displacement()
    progress("write")
    with writing(output):
        error = write_verified(output, read.transform, convention, *sides, codes, displacement=displacement)
    return with_warnings(_summary(output, convention, error), read.warnings)


def invert(route: Route, output: Path, convention: str = "itk", progress: Progress = silent) -> str:
    """Write the inverse of a chain, on the grid where the chain ends or on the route's reference.

    Arguments, return value and errors are those of `compose`.
    """
    from ..geometry.inverse import invert_displacement

    progress("read")
    read = read_route(replace(route, reference=None))
    target = None if route.reference is None else read_source(route.reference, "--reference")
    start, codes = (read.end, CODES_NOT_KNOWN) if target is None else (space_of(target), target.codes)
    if read.transform.matrix is None or needs_start(output, convention):
        start = start or read.require_end()
    back_to = read.require_start() if convention == "fsl" else read.start
    displacement, misses = None, ""
    if read.transform.matrix is None:
        progress("invert")
        assert start is not None  # required above
        found = invert_displacement(read.transform, start.grid)
        displacement, misses = found.displacement, _inverse_summary(found)
    progress("write")
    back = read.transform.inverse()
    with writing(output):
        error = write_verified(output, back, convention, start, back_to, codes, displacement=displacement)
    return with_warnings(misses + _summary(output, convention, error), read.warnings)


def jacobian(route: Route, output: Path, log: bool = False, progress: Progress = silent) -> str:
    """Write the Jacobian determinant of a chain on its reference's grid, or its natural logarithm, as float32.

    Arguments, return value and errors are those of `compose`.
    """
    progress("read")
    read = read_route(route)
    target = read.require_target()
    progress("compose")
    determinant = jacobian_of_displacement(read.displacement(), target.grid)
    progress("write")
    written = np.log(np.clip(determinant, LOWEST, HIGHEST)) if log else determinant
    with writing(output):
        write_volume(output, written.astype(np.float32, copy=False), target.grid, target.codes)
    summary = (
        f"volume      times {determinant.min():.3f} to {determinant.max():.3f} (determinants)\n"
        f"folded      {100 * folded_share(determinant):.4f} % of the voxels\n"
        f"SDlogJ      {sd_log_jacobian(determinant):.4f}\n"
        f"wrote {output}: {'logarithm of the ' if log else ''}Jacobian determinant"
    )
    return with_warnings(summary, read.warnings)


def with_warnings(summary: str, warnings: Iterable[str]) -> str:
    """Return a summary followed by one line for each warning."""
    return "\n".join([summary, *(f"warning: {warning}" for warning in warnings)])


def _summary(output: Path, convention: str, error: float) -> str:
    return f"wrote {output}: {convention}; read back, it differs by {error:.1g} mm at most"


def _inverse_summary(found: "Inversion") -> str:
    residual = found.residual_mm
    return (
        f"inverse     residual {residual['mean']:.2g} mm on average, 95th percentile {residual['percentile_95']:.2g}, "
        f"at most {residual['max']:.2g}\n"
        f"unresolved  {100 * found.unresolved_share:.4f} % of the voxels, residual above {found.tolerance:g} mm\n"
    )
