"""Compiling the kernels: once per machine, announced, instead of half a minute of silence in some later stage.

``python -m runtime.warmup`` does it after an installation.
"""

import contextlib
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

PAIR_SHAPE = (64, 64, 64)  # large enough for every kernel of the affine start's pyramid to be used
ROOT = Path(__file__).resolve().parent.parent


def is_cold() -> bool:
    """Whether the kernels, as they stand in this source, have yet to be compiled on this machine."""
    return not _stamp().is_file()


def warm_up() -> None:
    """Compiles every kernel a registration may need, by using each on a small pair; compiled code is kept on disk.

    A second process takes half of the work, since one compiles on one core only.
    """
    names = list(STEPS)
    half = len(names) // 2
    with _helper(names[half:]):
        for name in names[:half]:
            STEPS[name]()
    for name in names[half:]:  # by now they only have to be loaded
        STEPS[name]()
    with contextlib.suppress(OSError):
        _stamp().touch()


def _stamp() -> Path:
    """Written when all is compiled; its name changes with the processor, its folder with the sources and versions."""
    from runtime.compiled import code_folder
    from runtime.machine import processor_features, processor_name

    facts = repr((processor_name(), sorted(processor_features())))
    return code_folder() / f"complete-{hashlib.sha256(facts.encode()).hexdigest()[:16]}"


def _warm_fields() -> None:
    from runtime.backends.fields_numba import NumbaFields
    from runtime.example import example_pair
    from runtime.geometry.similarity import SIMILARITIES

    fixed, moving = example_pair((16, 16, 16))
    fields = NumbaFields()
    flow = fields.zero(fixed.shape)
    for similarity in SIMILARITIES:
        fields.scorer(fixed, similarity)(moving, flow)
    buffer = np.empty((*fixed.shape, 2), np.float32)
    fields.fill_fixed(buffer, fixed[..., None])
    fields.warp_into(buffer, moving[..., None], fields.compose(flow, flow))
    fields.folded_share(fields.upsample(flow))


def _warm_affine() -> None:
    from runtime.affine import align
    from runtime.example import example_pair
    from runtime.geometry.grid import Grid

    fixed, moving = example_pair(PAIR_SHAPE)
    grid = Grid(fixed.shape, np.eye(4))
    align(fixed, grid, moving, grid)


def _warm_resampling() -> None:
    from runtime.geometry.grid import Grid
    from runtime.geometry.transform import SpatialTransform
    from runtime.resample import resample, resample_through

    fine, coarse = Grid((16, 16, 16), np.eye(4)), Grid((4, 4, 4), np.diag((4.0, 4.0, 4.0, 1.0)))
    displacement = SpatialTransform(np.eye(4), np.zeros((3, *fine.shape), np.float32), fine).displacement(fine)
    for order, kind in (("linear", np.float32), ("nearest", np.int32), ("nearest", np.float32)):
        image = np.zeros(fine.shape, kind)
        resample(image, fine, coarse, order=order)
        resample_through(image, fine, displacement, fine, order)


def _warm_convolutions() -> None:
    """The native backend's, by the engine set that ships. Other sets of this network use the same kernels."""
    from runtime.backends.table import BACKENDS
    from runtime.engines import SHIPPED
    from runtime.geometry.errors import InputError
    from runtime.manifest import load_engine_set

    image = np.zeros((16, 16, 16), np.float32)
    with contextlib.suppress(InputError, ImportError):  # there is no set, or no such backend here
        networks = BACKENDS["native"].load()[0](load_engine_set(SHIPPED))
        for level, features in networks.features(image).items():
            networks.residual(level, np.concatenate([features, features], axis=-1))


STEPS: dict[str, Callable[[], None]] = {
    "fields": _warm_fields,
    "affine": _warm_affine,
    "resampling": _warm_resampling,
    "convolutions": _warm_convolutions,
}


@contextlib.contextmanager
def _helper(names: list[str]):
    """A second process that compiles for these steps meanwhile. Where there can be none, nothing is lost but time."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    quiet = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    process = None
    if sys.executable:
        command = [sys.executable, "-m", "runtime.warmup", *names]
        with contextlib.suppress(OSError):
            process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": path}, **quiet)
    try:
        yield
        if process is not None:
            process.wait()
    finally:
        if process is not None and process.poll() is None:
            process.kill()


def main(names: list[str]) -> None:
    """Does the named steps, or says what it does and does all that is missing."""
    from runtime.cache import cache_folder

    if names:
        for name in names:
            STEPS[name]()
    elif not is_cold():
        print(f"Kernels are compiled for this computer already (in {cache_folder()})")
    else:
        begin = time.monotonic()
        print("Compiling kernels for this computer, once (less than a minute) ...", end=" ", flush=True)
        warm_up()
        print(f"{time.monotonic() - begin:.0f} s, kept in {cache_folder()}")


if __name__ == "__main__":
    main(sys.argv[1:])
