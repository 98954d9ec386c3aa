"""Compiling the kernels: once per machine, announced, instead of half a minute of silence in some later stage."""

import hashlib
from pathlib import Path

import numpy as np

PAIR_SHAPE = (64, 64, 64)  # large enough for every kernel of the affine start's pyramid to be used


def is_cold() -> bool:
    """Whether the kernels, as they stand in this source, have yet to be compiled on this machine."""
    return not _stamp().is_file()


def _stamp() -> Path:
    """Written beside numba's cache once all is compiled; its name changes with the sources, numba and the processor."""
    import llvmlite.binding
    import numba

    from runtime import affine_kernels, resample
    from runtime.backends import kernels_numba

    sources = [Path(module.__file__).read_bytes() for module in (affine_kernels, resample, kernels_numba)]
    key = hashlib.sha256(b"".join(sources))
    key.update(f"{numba.__version__} {llvmlite.binding.get_host_cpu_name()}".encode())
    return Path(kernels_numba.warp.stats.cache_path) / f"compiled-{key.hexdigest()[:16]}"


def warm_up() -> None:
    """Compiles every kernel a registration may need, by using each on a small pair; compiled code is kept on disk."""
    from runtime.affine import align
    from runtime.backends.fields_numba import NumbaFields
    from runtime.example import example_pair
    from runtime.geometry.grid import Grid
    from runtime.geometry.similarity import SIMILARITIES
    from runtime.geometry.transform import SpatialTransform
    from runtime.resample import resample, resample_through

    fixed, moving = example_pair(PAIR_SHAPE)
    fine, coarse = Grid(fixed.shape, np.eye(4)), Grid((16, 16, 16), np.diag((4.0, 4.0, 4.0, 1.0)))
    align(fixed, fine, moving, fine)
    fields = NumbaFields()
    flow = fields.zero(fixed.shape)
    for similarity in SIMILARITIES:
        fields.scorer(fixed, similarity)(moving, flow)
    fields.warp_into(fields.estimator_input(fixed[None]), moving[None], fields.compose(flow, flow))
    fields.folded_share(fields.upsample(flow))
    displacement = SpatialTransform(np.eye(4), flow, fine).displacement(fine)
    for order, image in (("linear", moving), ("nearest", moving.astype(np.int16))):
        resample(image, fine, coarse, order=order)
        resample_through(image, fine, displacement, fine, order)
    _stamp().touch()
