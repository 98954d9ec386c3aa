"""Register two arrays on the same grid: no files, no affine, no mm."""

from dataclasses import dataclass, replace

import numpy as np

from ..backends.cuda.gpu import on_gpu
from ..backends.engines import OpenEngines
from ..backends.holes import Holes
from ..errors import InputError
from ..geometry.smoothing import check_sigma
from ..host.progress import Stages
from ..images.masks import Mask, filled
from ..loop import iterstop
from ..loop.schedules import LEVELS, Schedule
from ..loop.trace import Iterations
from ..types import Array
from .options import Options


def register_arrays(
    engines: OpenEngines,
    fixed: Array,
    moving: Array,
    schedule: Schedule | None = None,
    similarity: str = "ncc",
    smooth: float = 0.0,
    fixed_mask: Array | None = None,
    moving_mask: Array | None = None,
) -> Iterations:
    """Run the loop on two images (I, J, K), float32 in [0, 1], on one grid whose sizes are multiples of 8.

    With engines on a GPU, images may already be in its memory, in arrays of torch, cupy, numba or pycuda
    (``__cuda_array_interface__`` or DLPack); they are read without a copy.

    Args:
        engines: from `runtime.open_engines`.
        fixed, moving: the images.
        schedule: the schedule; None: the engine set's own, IterStop.
        similarity: the similarity that stop rules watch.
        smooth: as in `runtime.Options`, 0 for none.
        fixed_mask, moving_mask: (I, J, K) on the host, 0 where an image does not count (`runtime.images.masks`); if one
            is given, both images have to be host arrays.

    Returns:
        Iterations whose flow is (3, I, J, K) in voxels: a host array or, if both images were in the GPU's memory, an
        array there that those libraries read without a copy.

    Raises:
        InputError: invalid shapes, intensities or smoothing, or a result that is not finite.
    """
    check_sigma(smooth)
    check_shapes(tuple(fixed.shape), tuple(moving.shape), engines.engine_set.size_multiple)
    schedule = schedule or Options(similarity=similarity).resolved(engines.engine_set).build_schedule()
    holes: tuple[Array | None, Array | None] = (None, None)
    if fixed_mask is not None or moving_mask is not None:
        fixed, moving, holes = _masked(fixed, moving, fixed_mask, moving_mask)
    with engines.running():
        both_on_gpu = on_gpu(fixed) and on_gpu(moving)
        fixed, moving = to_device(engines, fixed, "fixed"), to_device(engines, moving, "moving")
        side = engines.fixed_side(fixed, similarity).with_smoothing(smooth)
        if not both_on_gpu:
            pair = side.pair(moving, holes_of(engines, *holes))
            return run_loop(engines, pair, moving, schedule, Stages()).found
        found = iterstop.run(side.pair(moving), schedule)
        _check_flow(engines, found.flow)
        return replace(found, flow=found.flow.moveaxis(-1, 0))


def _masked(
    fixed: Array, moving: Array, fixed_mask: Array | None, moving_mask: Array | None
) -> tuple[Array, Array, tuple[Array | None, Array | None]]:
    """Apply the masks: return both images, 0 outside, holes filled from each other, and the holes."""
    if on_gpu(fixed) or on_gpu(moving):
        raise InputError("mask: is for images in host memory, but one is on a GPU; copy both to the host")
    images: list[Array] = []
    holes: list[Array | None] = []
    for name, image, mask in (("fixed", fixed, fixed_mask), ("moving", moving, moving_mask)):
        if mask is not None and mask.shape != image.shape:
            raise InputError(f"{name}_mask: got shape {mask.shape}, expected {image.shape}, its image's")
        known = None if mask is None else Mask(np.asarray(mask) != 0)
        images.append(image if known is None else known.applied(image, 0))
        holes.append(None if known is None else known.holes)
    first, second = holes
    return *filled(images[0], images[1], first, second), (first, second)


def check_shapes(fixed: tuple[int, ...], moving: tuple[int, ...], multiple: int) -> None:
    """Check that both shapes are the same (I, J, K), multiples of `multiple`; else InputError."""
    if fixed != moving or len(fixed) != 3 or any(size % multiple or size == 0 for size in fixed):
        raise InputError(f"images: got shapes {fixed} and {moving}, expected one (I, J, K), multiples of {multiple}")


def to_device(engines: OpenEngines, image: Array, name: str) -> Array:
    """Copy an image to the device of the engines' field operations, unless it is there.

    Args:
        engines: the engines.
        image: (I, J, K) float32.
        name: "fixed" or "moving", for messages.

    Raises:
        InputError: an image that is not finite, constant, outside [0, 1], or on a GPU while the engines are not.
    """
    if on_gpu(image) and engines.networks.device == "cpu":
        raise InputError(
            f"{name} image: is in a GPU's memory, but the engines run on the CPU ({engines.backend}); "
            "copy it to the host, or open a GPU backend"
        )
    image = engines.fields.to_device(image)
    low, high = engines.fields.extremes(image)
    if not (np.isfinite(low) and np.isfinite(high)):
        raise InputError(f"{name} image: has NaN or Inf, expected intensities in [0, 1]; repair it first")
    if low == high:
        raise InputError(
            f"{name} image: is constant ({low:g}) in the fixed image's foreground; "
            "check that the two scans overlap (--affine auto aligns their centres)"
        )
    if low < 0 or high > 1:
        raise InputError(f"{name} image: got intensities {low:g} to {high:g}, expected [0, 1]; normalise it first")
    return image


def holes_of(engines: OpenEngines, fixed: Array | None, moving: Array | None) -> Holes | None:
    """Copy the holes, (I, J, K) bool or None, to the device of the field operations; None if there are none."""
    if fixed is None and moving is None:
        return None
    copied = (None if hole is None else engines.fields.to_device(hole.astype(np.float32)) for hole in (fixed, moving))
    return Holes(engines.fields, *copied)


@dataclass(frozen=True, eq=False)
class Loop:
    """The outcome of the loop: iterations (flow on the host), similarity before, warped image, share of folds."""

    found: Iterations
    before: float
    warped: Array
    folded_share: float


def run_loop(engines: OpenEngines, pair: iterstop.Pair, moving: Array, schedule: Schedule, stage: Stages) -> Loop:
    """Run a schedule on an encoded pair, whose moving image is `moving`, and copy the outcome to the host.

    Raises:
        InputError: a flow or similarity that is not finite.
    """
    fields, finest = engines.fields, LEVELS[-1]
    before = pair.score(finest, pair.zero(finest))

    def progress(number: int, level: int, iteration: int) -> None:
        stage.progress(_iteration_name(schedule, number, level, iteration))

    with stage("iterate"):
        found = iterstop.run(pair, schedule, progress, before)
    with stage("finish"):
        warped = fields.to_host(fields.warp(moving, found.flow))
        _check_flow(engines, found.flow)
        flow, folded_share = fields.to_host(found.flow), fields.folded_share(found.flow)
    return Loop(replace(found, flow=flow), float(before), warped, folded_share)


def _check_flow(engines: OpenEngines, flow: Array) -> None:
    if not np.isfinite(engines.fields.extremes(flow)).all():
        raise InputError(
            "--engine-dir: the engines gave a flow with NaN or Inf for these images, expected finite numbers; check "
            "both scans, or use --precision fp32; nothing was written"
        )


def _iteration_name(schedule: Schedule, number: int, level: int, iteration: int) -> str:
    name = f"level {level}, iteration {iteration}"
    return f"pass {number}, {name}" if schedule.passes > 1 else name
