"""Compilation of the kernels: once per machine and announced, instead of an unexplained half minute in a later stage.

``python cli.py warm-up`` does it after an installation.
"""

import contextlib
import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..host.files.hashes import short_key
from ..host.machine import cores
from ..host.progress import Stages

PAIR_SHAPE = (64, 64, 64)  # large enough to use every kernel of the affine initialisation's pyramid
CONVOLUTIONS = "convolutions"
LINEAR_ALGEBRA = "scipy.linalg"
ROOT = Path(__file__).resolve().parents[2]


def start_kernels(stage: Stages, alone: bool = False) -> None:
    """Compile the kernels that are not yet compiled on this machine, announced as a stage, and start numba.

    Starting numba takes a third of a second under the interpreter's lock, at the first call of a compiled function.

    Args:
        stage: called with the name of the stage, if anything is compiled.
        alone: True in a process that does nothing but register. SciPy's linear algebra, which no kernel here uses, is
            then hidden from numba, and the imported objects are kept from the garbage collector: each saves 0.1 s.
            Meanwhile no thread can import `scipy.linalg`; scans may be read, which needs no SciPy.
    """
    with _minimal_numba() if alone else contextlib.nullcontext():
        from .affine.kernels import block_means

        if is_cold():
            with stage("compile kernels for this machine (only once, half a minute)"):
                warm_up()
        voxel = np.zeros((1, 1, 1), np.float32)
        block_means(voxel, (1, 1, 1), np.empty_like(voxel))


@contextlib.contextmanager
def _minimal_numba() -> Iterator[None]:
    hidden, collecting = LINEAR_ALGEBRA not in sys.modules, gc.isenabled()
    gc.disable()
    try:
        if hidden:
            absent: Any = None
            sys.modules[LINEAR_ALGEBRA] = absent  # an import of it raises ImportError now, which numba expects
        yield
    finally:
        if hidden:
            del sys.modules[LINEAR_ALGEBRA]
        if collecting:
            gc.enable()
        gc.freeze()


def is_cold() -> bool:
    """Return True if this version's kernels are not yet compiled on this machine, and the cache folder is writable.

    Without a writable cache folder, each process compiles the kernels it uses on their first call.
    """
    return not _stamp().is_file() and os.access(_stamp().parent, os.W_OK)


def warm_up() -> None:
    """Compile every kernel a registration may need, by using each on a small pair; compiled code is cached on disk.

    A second process takes half of the work, since numba compiles on one core only.
    """
    names = _needed_steps()
    half = len(names) // 2 if cores() > 1 else len(names)
    with _second_process(names[half:]):
        for name in names[:half]:
            STEPS[name]()
    for name in names[half:]:  # compiled by the second process, so they are only loaded here
        STEPS[name]()
    with contextlib.suppress(OSError):
        _stamp().touch()


def _stamp() -> Path:
    """Return the file that marks a complete cache; its name depends on the processor, its folder on the versions."""
    from ..host.compiled import code_folder
    from ..host.machine import processor_features, processor_name

    return code_folder() / f"complete-{short_key(processor_name(), sorted(processor_features()), _needed_steps())}"


def _needed_steps() -> list[str]:
    """Return the names of the steps whose kernels `register` uses here by default."""
    from ..backends.registry import BACKENDS
    from ..host.machine import processor_features

    native = BACKENDS["native"]
    leave_out = not native.available or native.auto_with not in processor_features()
    return [name for name in STEPS if not (leave_out and name == CONVOLUTIONS)]


def _warm_fields() -> None:
    from ..backends.fields.cpu import NumbaFields
    from ..backends.parity import example_pair
    from ..geometry.smoothing import RECOMMENDED_SIGMA
    from ..images.similarity import SIMILARITIES

    fixed, moving = example_pair((16, 16, 16))
    fields = NumbaFields()
    flow = fields.zero(fixed.shape)
    for similarity in SIMILARITIES:
        fields.scorer(fixed, similarity)(moving, flow)
    buffer = np.empty((*fixed.shape, 2), np.float32)
    fields.fill_fixed(buffer, fixed[..., None])
    fields.warp_into(buffer, moving[..., None], fields.compose(flow, flow))
    fields.folded_share(fields.upsample(flow))
    fields.smoother(fields.halve(fixed), RECOMMENDED_SIGMA)(fields.zero((8, 8, 8)))


def _warm_affine() -> None:
    from ..backends.parity import example_pair
    from ..geometry.grid import Grid
    from .affine.align import align

    fixed, moving = example_pair(PAIR_SHAPE)
    grid = Grid(fixed.shape, np.eye(4))
    align(fixed, grid, moving, grid)


def _warm_maps() -> None:
    from ..geometry.grid import Grid
    from ..geometry.inverse import invert_displacement
    from ..geometry.jacobian import jacobian_of_displacement
    from ..geometry.transform import from_displacement
    from .quality.figures import Seen, figures

    grid = Grid((16, 16, 16), np.eye(4))
    transform = from_displacement(np.zeros((*grid.shape, 3), np.float32), grid)
    jacobian_of_displacement(transform.displacement(grid), grid)
    transform.points(invert_displacement(transform, grid).displacement.reshape(-1, 3))
    image = np.zeros(grid.shape, np.float32)
    figures(Seen(image, image, image, (None, None), np.zeros((3, *grid.shape), np.float32), grid, np.eye(4), {}))


def _warm_resampling() -> None:
    from ..geometry.grid import Grid
    from ..images.resampling.resample import resample, resample_through

    fine, coarse = Grid((16, 16, 16), np.eye(4)), Grid((4, 4, 4), np.diag((4.0, 4.0, 4.0, 1.0)))
    displacement = np.zeros((3, *fine.shape), np.float32).T
    orders = (("linear", np.float32), ("cubic", np.float32), ("nearest", np.float32))
    for order, kind in (*orders, ("nearest", np.int32), ("smooth", np.int32)):
        image = np.zeros(fine.shape, kind)
        resample(image, fine, coarse, order=order)
        resample_through(image, fine, displacement, fine, order)


def _warm_convolutions() -> None:
    """Compile the native backend's kernels, which are the same for any number of channels."""
    from ..backends.networks.native.kernels import pool
    from ..backends.networks.native.networks import ConvolutionChain, Layer

    layer = Layer(np.zeros((3, 3, 3, 16, 16), np.float32), np.zeros(16, np.float32), 1.0)
    source = np.zeros((16, 16, 16, 16), np.float32)
    ConvolutionChain([layer], source[:1, :1, :1])(source)
    pool(source, np.empty((8, 8, 8, 16), np.float32))


STEPS: dict[str, Callable[[], None]] = {
    "fields": _warm_fields,
    "affine": _warm_affine,
    "resampling": _warm_resampling,
    "maps": _warm_maps,
    CONVOLUTIONS: _warm_convolutions,
}


@contextlib.contextmanager
def _second_process(names: list[str]) -> Iterator[None]:
    """Run a second process that compiles for these steps; if it cannot start, the caller compiles everything later."""
    from ..host.cache_folder import VARIABLE, cache_folder

    quiet: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    environment = os.environ | {"PYTHONPATH": str(ROOT), VARIABLE: str(cache_folder())}
    process = None
    if sys.executable and names:
        command = [sys.executable, "-m", f"{__package__}.warmup", *names]
        with contextlib.suppress(OSError):
            process = subprocess.Popen(command, env=environment, cwd=ROOT, **quiet)
    try:
        yield
        if process is not None:
            process.wait()
    finally:
        if process is not None and process.poll() is None:
            process.kill()


def main(names: list[str]) -> None:
    """Run the named steps; without names, run all that are missing, and print what is done."""
    from ..host.cache_folder import VARIABLE, cache_folder

    if names:
        for name in names:
            STEPS[name]()
    elif not os.access(_stamp().parent, os.W_OK) and not _stamp().is_file():
        print(f"The folder for compiled kernels is not writable; set {VARIABLE} to one that is")
    elif not is_cold():
        print(f"Kernels are already compiled for this machine (in {cache_folder()})")
    else:
        begin = time.monotonic()
        print("Compiling kernels for this machine, once (half a minute) ...", end=" ", flush=True)
        warm_up()
        print(f"{time.monotonic() - begin:.0f} s, kept in {cache_folder()}")


if __name__ == "__main__":
    main(sys.argv[1:])
