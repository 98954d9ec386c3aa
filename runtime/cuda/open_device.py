"""Which library drives the card: cuda-python, or pycuda where that alone is installed or asked for."""

import importlib
import importlib.util
import os

from runtime.cuda.card import find_card
from runtime.cuda.device import Device, Driver
from runtime.geometry.errors import InputError, NotHere, first_line

VARIABLE = "RPNET_CUDA_DRIVER"
INSTALL = "pip install -r requirements-gpu.txt"
# In the order of preference: importable package, and "module:class".
DRIVERS = {
    "cuda-python": ("cuda.bindings", "runtime.cuda.driver_cuda_python:CudaPythonDriver"),
    "pycuda": ("pycuda", "runtime.cuda.driver_pycuda:PycudaDriver"),
}


def open_device() -> Device:
    """The first card, driven by what is installed; the environment variable RPNET_CUDA_DRIVER names one to insist on.

    Raises:
        NotHere: no card, no library that drives it, or the kernels cannot be compiled for it.
        InputError: the variable names nothing known.
    """
    if isinstance(card := find_card(), str):
        raise NotHere(f"--backend: needs an NVIDIA card, but {card}; choose a backend of the CPU")
    try:
        from runtime.cuda.nvrtc import compile_kernels

        return Device(_driver(), compile_kernels)
    except (ImportError, OSError) as error:
        raise NotHere(f"--backend: cuda-python cannot be imported ({first_line(error)}); {INSTALL}") from None
    except MemoryError:
        raise NotHere(f"--backend: {card.name} has no memory left to start with; close what else uses it") from None


def _driver() -> Driver:
    wanted = os.environ.get(VARIABLE)
    if wanted and wanted not in DRIVERS:
        raise InputError(f"{VARIABLE}: got {wanted!r}, expected {' or '.join(DRIVERS)}")
    for name in [wanted] if wanted else DRIVERS:
        package, place = DRIVERS[name]
        if _is_installed(package):
            module, _, driver = place.partition(":")
            return getattr(importlib.import_module(module), driver)()
    raise NotHere(f"--backend: nothing to drive the card with: {wanted or ' or '.join(DRIVERS)} is missing; {INSTALL}")


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # its parent is missing
        return False
