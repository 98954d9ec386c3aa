"""Discovery of the NVIDIA GPU of this computer and of arrays in its memory, through the driver and without packages."""

import ctypes
import functools
import sys
from dataclasses import dataclass
from typing import Any

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
ON_GPU, MANAGED = 2, 13  # DLPack device types of CUDA memory
MAJOR, MINOR = 75, 76  # CUdevice_attribute of the compute capability


@dataclass(frozen=True)
class GpuInfo:
    """A CUDA device.

    Attributes:
        name: the manufacturer's name.
        capability: compute capability, for example (8, 9).
        memory_bytes: total memory.
        driver: the CUDA version that its driver supports, for example (13, 0).
        bus: PCI bus id, which identifies it to nvidia-smi (whose device numbers differ from CUDA's).
    """

    name: str
    capability: tuple[int, int]
    memory_bytes: int
    driver: tuple[int, int]
    bus: str = ""


def on_gpu(array: Any) -> bool:
    """Return whether an array is in GPU memory."""
    if hasattr(array, "__dlpack_device__"):
        return array.__dlpack_device__()[0] in (ON_GPU, MANAGED)
    return hasattr(array, "__cuda_array_interface__")


def has_driver() -> bool:
    """Return whether an NVIDIA driver is installed; loads the library without initialising the driver."""
    try:
        return bool(ctypes.CDLL(LIBRARY))
    except OSError:
        return False


@functools.cache
def find_gpu() -> GpuInfo | str:
    """Return the first device that CUDA_VISIBLE_DEVICES makes visible, or a string that says why there is none."""
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError:
        return "this computer has no NVIDIA driver"
    try:
        return _gpu(library)
    except RuntimeError as error:
        return str(error)


def _gpu(library: Any) -> GpuInfo:
    def ask(function: str, *arguments: Any) -> None:
        if code := getattr(library, function)(*arguments):
            raise RuntimeError(f"the NVIDIA driver finds no usable GPU ({_error_name(library, code)})")

    def number(function: str, *arguments: Any, kind: type = ctypes.c_int) -> int:
        value = kind()
        ask(function, ctypes.byref(value), *arguments)
        return value.value

    ask("cuInit", 0)
    if not number("cuDeviceGetCount"):
        raise RuntimeError("the NVIDIA driver finds no GPU")
    device, name = number("cuDeviceGet", 0), ctypes.create_string_buffer(256)
    ask("cuDeviceGetName", name, len(name), device)
    bus = ctypes.create_string_buffer(32)
    ask("cuDeviceGetPCIBusId", bus, len(bus), device)
    version = number("cuDriverGetVersion")
    return GpuInfo(
        name.value.decode(errors="replace"),
        (number("cuDeviceGetAttribute", MAJOR, device), number("cuDeviceGetAttribute", MINOR, device)),
        number("cuDeviceTotalMem_v2", device, kind=ctypes.c_size_t),
        (version // 1000, version % 1000 // 10),
        bus.value.decode(errors="replace"),
    )


def _error_name(library: Any, code: int) -> str:
    text = ctypes.c_char_p()
    library.cuGetErrorName(code, ctypes.byref(text))
    return text.value.decode() if text.value else f"error {code}"
