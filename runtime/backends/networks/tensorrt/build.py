"""Ahead-of-time builds of an engine set's plans, for TensorRT-RTX (any GPU, none present) or TensorRT (this GPU)."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from ....errors import InputError, NotAvailableError
from ...cuda.gpu import find_gpu
from ...engine_set import EngineSet, load_engine_set
from .library import Library, open_library
from .plans import ORDINARY, PlanSpec, PlanStore, Profile, Shape, plan_specs

MEGABYTE = 1e6
SMALLEST = 16  # smallest side of an image, voxels


@dataclass(frozen=True)
class BuildOptions:
    """The options of a build.

    Attributes:
        target: "tensorrt-rtx" or "tensorrt".
        sms: compute capabilities, 89 for 8.9; empty: all that TensorRT-RTX supports, or for TensorRT the GPU's. One
            plan holds them all, for a few KB more.
        precisions: precisions to build; empty: for TensorRT-RTX all that the set has graphs of (a build takes a second,
            and fp16 is checked against fp32); for TensorRT, whose builds take minutes, fp16, the one `register` uses.
        profile: image sizes to serve.
    """

    target: str
    sms: tuple[int, ...] = ()
    precisions: tuple[str, ...] = ()
    profile: Profile = ORDINARY


def build_plans(engine_dir: Path, options: BuildOptions, echo: Callable[[str], None] = lambda line: None) -> Path:
    """Build plans for an engine set and list them beside it: all of them or, on an error, none.

    Combinations of precision and compute capability that cannot be built are reported and skipped; if nothing can be
    built, that is an error.

    Args:
        engine_dir: the set's folder.
        options: what to build.
        echo: function that prints a line, for each engine and at the end.

    Returns:
        The folder that holds the plans.

    Raises:
        InputError: the set, a size, a precision or a compute capability cannot be used.
        NotAvailableError: the library is not installed, or TensorRT has no GPU to build for.
    """
    engine_set, library = load_engine_set(engine_dir), open_library(options.target)
    _check_profile(options.profile, engine_set.size_multiple)
    sms, gpu = _aim(library, options.sms)
    start = time.perf_counter()
    built = []
    for precision, left in _jobs(engine_set, library, options, sms, echo):
        specs = plan_specs(engine_set, precision, library, left, gpu, options.profile).values()
        built += [(spec, _built(engine_set, library, spec, echo)) for spec in specs]
    folder, replaced = PlanStore(engine_set.folder).keep(built)
    for line in replaced:
        echo(f"removed {line}")
    size, seconds = sum(len(content) for _, content in built) / MEGABYTE, time.perf_counter() - start
    echo(f"{len(built)} plans for {library.title}, {size:.1f} MB in {seconds:.1f} s: {folder}")
    return folder


def parse_profile(shapes: str | Shape | None) -> Profile:
    """Return the sizes to build for.

    Args:
        shapes: one size (I, J, K); or smallest, usual and largest size as words "I,J,K"; None: those of typical brains.

    Raises:
        InputError: the text has another form.
    """
    if not isinstance(shapes, str):
        return Profile.only(shapes) if shapes else ORDINARY
    try:
        sizes = [cast(Shape, tuple(int(n) for n in part.split(","))) for part in shapes.split()]
    except ValueError:
        sizes = []
    if len(sizes) != 3 or any(len(size) != 3 for size in sizes):
        raise InputError(
            f"--shapes: got {shapes!r}, expected smallest, usual and largest: '16,16,16 160,192,160 256,256,256'"
        )
    return Profile(*sizes)


def parse_sms(text: str | None) -> tuple[int, ...]:
    """Parse compute capabilities such as "75,86"; return an empty tuple for None.

    Raises:
        InputError: the text has another form.
    """
    try:
        return tuple(sorted({int(part) for part in text.split(",")})) if text is not None else ()
    except ValueError:
        raise InputError(f"--sm: got {text!r}, expected compute capabilities such as 75,86,120") from None


def parse_precisions(names: Sequence[str]) -> tuple[str, ...]:
    """Return the precisions without duplicates; "all" means both."""
    return ("fp16", "fp32") if "all" in names else tuple(dict.fromkeys(names))


def _check_profile(profile: Profile, multiple: int) -> None:
    sizes: tuple[Shape, ...] = profile.smallest, profile.usual, profile.largest
    if any(n % multiple or n < SMALLEST for size in sizes for n in size):
        raise InputError(f"--shape, --shapes: got {profile}, expected multiples of {multiple}, at least {SMALLEST}")
    if not profile.holds(profile.usual):
        raise InputError(
            f"--shapes: got {profile.usual} between {profile.smallest} and {profile.largest}, "
            "expected smallest, usual and largest in this order, along every axis"
        )


def _aim(library: Library, sms: tuple[int, ...]) -> tuple[tuple[int, ...], str]:
    """Return the compute capabilities to build for, and the GPU's name if the library can only build for that GPU."""
    if library.portable:
        if unknown := [sm for sm in sms if sm not in library.sms]:
            raise InputError(
                f"--sm: got {', '.join(map(str, unknown))}, {library.title} builds for "
                f"{', '.join(map(str, library.sms))}; for other GPUs use --target tensorrt on a computer that has one"
            )
        return sms or library.sms, ""
    gpu = find_gpu()
    if isinstance(gpu, str):
        raise NotAvailableError(
            f"--target: {library.title} builds for the GPU of this computer, but {gpu}; use --target tensorrt-rtx"
        )
    sm = 10 * gpu.capability[0] + gpu.capability[1]
    if set(sms) - {sm}:
        raise InputError(
            f"--sm: got {', '.join(map(str, sms))}, {library.title} builds only for the GPU of this computer, "
            f"{gpu.name} ({sm}); leave --sm out, or use --target tensorrt-rtx"
        )
    return (sm,), gpu.name


def _jobs(
    engine_set: EngineSet, library: Library, options: BuildOptions, sms: tuple[int, ...], echo: Callable[[str], None]
) -> list[tuple[str, tuple[int, ...]]]:
    """Return each precision with the compute capabilities it can be built for, after reporting what is skipped."""
    default = engine_set.precisions if library.portable else ("fp16",)
    precisions = options.precisions or tuple(name for name in default if name in engine_set.precisions)
    jobs, refusals = [], []
    for precision in precisions or engine_set.precisions:
        engine_set.require(precision)
        lacking = {sm: reason for sm in sms if (reason := library.incompatibility(sm, precision))}
        refusals += [f"SM {sm} in {precision}: {reason}" for sm, reason in lacking.items()]
        if left := tuple(sm for sm in sms if sm not in lacking):
            jobs.append((precision, left))
    if not jobs:
        raise InputError(f"--sm, --precision: nothing can be built ({'; '.join(refusals)})")
    for refusal in refusals:
        echo(f"not built: {refusal}")
    return jobs


def _built(engine_set: EngineSet, library: Library, spec: PlanSpec, echo: Callable[[str], None]) -> bytes:
    start = time.perf_counter()
    plan = library.build(engine_set.graph(spec.engine, spec.precision), spec)
    seconds, targets = time.perf_counter() - start, ", ".join(map(str, spec.sms))
    echo(f"{spec.engine:<18} {spec.precision}  {seconds:6.2f} s  {len(plan) / MEGABYTE:6.2f} MB  SM {targets}")
    return plan
