"""Opening the GPU through cuda-python, or through pycuda if only that is installed or it is requested."""

import importlib.util
import os
from collections.abc import Callable

from ...errors import InputError, NotAvailableError, first_line
from .device import Device
from .driver import Driver
from .gpu import GpuInfo, find_gpu

VARIABLE = "RPNET_CUDA_DRIVER"
INSTALL = "pip install -r requirements-gpu.txt"
PACKAGES = {"cuda-python": "cuda.bindings", "pycuda": "pycuda"}  # importable package by library, preferred one first


def open_device(alone: bool = True) -> Device:
    """Open the first GPU with the installed library, or with the one that the variable RPNET_CUDA_DRIVER names.

    Args:
        alone: as for `Device`.

    Raises:
        NotAvailableError: there is no GPU, no library to drive it, or the library cannot use it, for example because
            the driver is too old or no memory is free.
        InputError: the variable names an unknown library.
    """
    if isinstance(gpu := find_gpu(), str):
        raise NotAvailableError(f"--backend: needs an NVIDIA GPU, but {gpu}; choose a CPU backend")
    wanted = os.environ.get(VARIABLE)
    if wanted and wanted not in PACKAGES:
        raise InputError(f"{VARIABLE}: got {wanted!r}, expected {' or '.join(PACKAGES)}")
    try:
        return Device(_driver(wanted), _compiler(gpu), alone)
    except NotAvailableError:
        raise
    except MemoryError:
        raise NotAvailableError(
            f"--backend: {gpu.name} has too little free memory to start; close other programs that use it"
        ) from None
    except (ImportError, OSError, RuntimeError, InputError) as error:
        raise NotAvailableError(
            f"--backend: {gpu.name} cannot be used ({first_line(error)}); update its driver, or {INSTALL}"
        ) from None


def _driver(wanted: str | None) -> Driver:
    library = wanted or next(filter(_is_installed, PACKAGES), None)
    if library is None or not _is_installed(library):
        missing = wanted or " or ".join(PACKAGES)
        raise NotAvailableError(f"--backend: no library to drive the GPU: {missing} is missing; {INSTALL}")
    if library == "pycuda":
        from .driver_pycuda import PycudaDriver

        return PycudaDriver()
    from .driver_cuda_python import CudaPythonDriver

    return CudaPythonDriver()


def _compiler(gpu: GpuInfo) -> Callable[[tuple[int, int]], bytes]:
    """Return the compiler of the kernels: NVRTC, which comes with cuda-python, else the nvcc pycuda was built with."""
    if not _is_installed("cuda-python"):
        from .driver_pycuda import compile_kernels

        return compile_kernels
    from . import nvrtc

    if (made_for := nvrtc.version())[0] > gpu.driver[0]:
        old, new = (".".join(map(str, version)) for version in (gpu.driver, made_for))
        raise NotAvailableError(
            f"--backend: the driver of {gpu.name} supports CUDA {old}, but NVRTC is for CUDA {new}; update the driver, "
            f"or install the packages for CUDA {gpu.driver[0]} as described in requirements-gpu.txt"
        )
    return nvrtc.compile_kernels


def _is_installed(library: str) -> bool:
    try:
        return importlib.util.find_spec(PACKAGES[library]) is not None
    except ModuleNotFoundError:  # its parent is missing
        return False
