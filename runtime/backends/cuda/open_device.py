"""Which library drives the GPU: cuda-python, or pycuda where that alone is installed or asked for."""

import importlib.util
import os
from collections.abc import Callable

from ...errors import InputError, NotAvailableError, first_line
from .device import Device
from .driver import Driver
from .gpu import GpuInfo, find_gpu

VARIABLE = "RPNET_CUDA_DRIVER"
INSTALL = "pip install -r requirements-gpu.txt"
PACKAGES = {"cuda-python": "cuda.bindings", "pycuda": "pycuda"}  # that Python imports, in the order of preference


def open_device(alone: bool = True) -> Device:
    """The first GPU, driven by what is installed; the environment variable RPNET_CUDA_DRIVER names one to insist on.

    Args:
        alone: as for `Device`.

    Raises:
        NotAvailableError: no GPU, no library that drives it, or one that cannot: too old a driver, no memory left.
        InputError: the variable names nothing known.
    """
    if isinstance(gpu := find_gpu(), str):
        raise NotAvailableError(f"--backend: needs an NVIDIA GPU, but {gpu}; choose a backend of the CPU")
    wanted = os.environ.get(VARIABLE)
    if wanted and wanted not in PACKAGES:
        raise InputError(f"{VARIABLE}: got {wanted!r}, expected {' or '.join(PACKAGES)}")
    try:
        return Device(_driver(wanted), _compiler(gpu), alone)
    except NotAvailableError:
        raise
    except MemoryError:
        raise NotAvailableError(
            f"--backend: {gpu.name} has no memory left to start with; close what else uses it"
        ) from None
    except (ImportError, OSError, RuntimeError, InputError) as error:
        raise NotAvailableError(
            f"--backend: {gpu.name} cannot be used ({first_line(error)}); update its driver, or {INSTALL}"
        ) from None


def _driver(wanted: str | None) -> Driver:
    library = wanted or next(filter(_is_installed, PACKAGES), None)
    if library is None or not _is_installed(library):
        missing = wanted or " or ".join(PACKAGES)
        raise NotAvailableError(f"--backend: nothing to drive the GPU with: {missing} is missing; {INSTALL}")
    if library == "pycuda":
        from .driver_pycuda import PycudaDriver

        return PycudaDriver()
    from .driver_cuda_python import CudaPythonDriver

    return CudaPythonDriver()


def _compiler(gpu: GpuInfo) -> Callable[[tuple[int, int]], bytes]:
    """NVRTC, which comes with cuda-python; without that nvcc, which pycuda was built with."""
    if not _is_installed("cuda-python"):
        from .driver_pycuda import compile_kernels

        return compile_kernels
    from . import nvrtc

    if (made_for := nvrtc.version())[0] > gpu.driver[0]:
        old, new = (".".join(map(str, version)) for version in (gpu.driver, made_for))
        raise NotAvailableError(
            f"--backend: the driver of {gpu.name} is for CUDA {old}, NVRTC for {new}; update the driver, or install "
            f"what is made for CUDA {gpu.driver[0]}, as requirements-gpu.txt says"
        )
    return nvrtc.compile_kernels


def _is_installed(library: str) -> bool:
    try:
        return importlib.util.find_spec(PACKAGES[library]) is not None
    except ModuleNotFoundError:  # its parent is missing
        return False
