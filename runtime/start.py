"""Getting compiled code ready before it is needed, while files are read beside."""

import contextlib
import gc
import sys
from collections.abc import Iterator

import numpy as np

from runtime.stages import Stages

LINEAR_ALGEBRA = "scipy.linalg"


def start_kernels(stage: Stages, alone: bool = False) -> None:
    """Compiles what this computer has not compiled yet, announced as a stage, and starts numba.

    Starting numba takes a third of a second under the interpreter's lock, at the first call of a compiled function.

    Args:
        stage: told the name of the stage, if there is one.
        alone: this process does nothing but register. Then numba need not look for SciPy's linear algebra, which no
            kernel here uses, and no garbage is looked for among all that is imported: both take 0.1 s. Meanwhile
            `scipy.linalg` cannot be imported, by no thread; scans may be read, which needs no SciPy.
    """
    with _only_what_is_needed() if alone else contextlib.nullcontext():
        from runtime.affine_kernels import block_means
        from runtime.warmup import is_cold, warm_up

        if is_cold():
            with stage("compile for this computer (only this once, half a minute)"):
                warm_up()
        voxel = np.zeros((1, 1, 1), np.float32)
        block_means(voxel, (1, 1, 1), np.empty_like(voxel))


@contextlib.contextmanager
def _only_what_is_needed() -> Iterator[None]:
    hidden, looked_for = LINEAR_ALGEBRA not in sys.modules, gc.isenabled()
    gc.disable()
    try:
        if hidden:
            sys.modules[LINEAR_ALGEBRA] = None
        yield
    finally:
        if hidden:
            del sys.modules[LINEAR_ALGEBRA]
        if looked_for:
            gc.enable()
        gc.freeze()
