"""Compiling the kernels: once per machine, announced, instead of half a minute of silence in some later stage."""

from pathlib import Path

import numpy as np


def is_cold() -> bool:
    """Whether the kernels have yet to be compiled here: numba's cache on disk holds none of them."""
    from runtime import affine_kernels, resample
    from runtime.backends import kernels_numba

    kernels = (affine_kernels.normal_equations, resample._displacement, kernels_numba.lncc_sums)
    return not all(_cached(kernel) for kernel in kernels)


def _cached(kernel) -> bool:
    module = kernel.py_func.__module__.rpartition(".")[2]
    return any(Path(kernel.stats.cache_path).glob(f"{module}.{kernel.py_func.__name__}-*.nbi"))


def warm_up() -> None:
    """Compiles every kernel a registration may need, by running one on a tiny pair; compiled code is kept on disk."""
    from runtime.affine import align
    from runtime.backends.fields_numba import NumbaFields
    from runtime.example import example_pair
    from runtime.geometry.grid import Grid
    from runtime.geometry.similarity import SIMILARITIES
    from runtime.geometry.transform import SpatialTransform
    from runtime.resample import resample, resample_through

    fixed, moving = example_pair((32, 32, 32))
    fine, coarse = Grid(fixed.shape, np.eye(4)), Grid((16, 16, 16), np.diag((2.0, 2.0, 2.0, 1.0)))
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
