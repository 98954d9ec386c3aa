"""CUDA through pycuda, on the primary context that the engine libraries use as well."""

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pycuda
import pycuda.compiler
import pycuda.driver as driver

from ...errors import InputError, NotAvailableError, first_line
from ...types import Array
from . import KERNELS

NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: not ordered with the default stream
# pycuda packs kernel arguments from NumPy scalars.
_KINDS = {
    ctypes.c_void_p: np.uint64,
    ctypes.c_longlong: np.int64,
    ctypes.c_int: np.int32,
    ctypes.c_float: np.float32,
    ctypes.c_double: np.float64,
}


class PycudaDriver:
    """An implementation of `runtime.backends.cuda.driver.Driver` on pycuda, which has no CUDA graphs.

    Args:
        number: device number among those that CUDA_VISIBLE_DEVICES makes visible.

    Raises:
        NotAvailableError: there is no driver, no such device, or the device cannot be used.
    """

    library = "pycuda"
    version = pycuda.VERSION_TEXT

    def __init__(self, number: int = 0) -> None:
        self.number = number
        self._allocations: dict[int, Any] = {}
        self._kept: list[Any] = []
        try:
            driver.init()
            device = driver.Device(number)
            self.name, self.capability = device.name(), tuple(device.compute_capability())
            self._context = device.retain_primary_context()
            with self.current():
                self._stream = driver.Stream(NON_BLOCKING)
        except driver.Error as error:
            raise NotAvailableError(
                f"--backend: device {number} cannot be used through pycuda ({first_line(error)}); "
                "check the NVIDIA driver with nvidia-smi, or choose a CPU backend"
            ) from None
        self.stream = int(self._stream.handle)

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        self._context.push()
        try:
            with _explained():
                yield
        finally:
            driver.Context.pop()

    def memory(self) -> tuple[int, int]:
        return driver.mem_get_info()

    def allocate(self, size: int) -> int:
        try:
            allocation = driver.mem_alloc(size)
        except driver.MemoryError:
            raise MemoryError("out of device memory") from None
        self._allocations[int(allocation)] = allocation
        return int(allocation)

    def free(self, pointer: int) -> None:
        self._allocations.pop(pointer).free()

    def mapped(self, size: int) -> tuple[int, int]:
        memory = driver.pagelocked_zeros(size, np.uint8, mem_flags=driver.host_alloc_flags.DEVICEMAP)
        self._kept.append(memory)
        return memory.ctypes.data, int(memory.base.get_device_pointer())

    def clear(self, pointer: int, size: int) -> None:
        driver.memset_d8_async(pointer, 0, size, self._stream)

    def copy(self, target: int, source: int, size: int) -> None:
        driver.memcpy_dtod_async(target, source, size, self._stream)

    def upload(self, target: int, address: int, size: int) -> None:
        self.synchronize()  # pycuda's copies from pageable memory are not ordered with our stream
        driver.memcpy_htod(target, _memory(address, size))
        driver.Context.synchronize()  # the call may return while the GPU is still copying

    def download(self, address: int, source: int, size: int) -> None:
        self.synchronize()
        driver.memcpy_dtoh(_memory(address, size), source)

    def synchronize(self) -> None:
        self._stream.synchronize()

    def wait_for_all(self) -> None:
        driver.Context.synchronize()

    def wait_for_others(self, stream: int) -> None:
        driver.Context.synchronize()  # pycuda accepts only streams that it created

    def holds(self, pointer: int) -> bool:
        return True  # pycuda offers no way to find out

    def record(self) -> Any:
        return driver.Event().record(self._stream)

    def wait(self, event: Any) -> None:
        event.synchronize()

    def seconds(self, start: Any, stop: Any) -> float:
        stop.synchronize()
        return 1e-3 * start.time_till(stop)

    def load(self, image: bytes) -> Any:
        return driver.module_from_buffer(image)

    def function(self, module: Any, name: str) -> Any:
        return module.get_function(name)

    def launch(self, function: Any, blocks: int, threads: int, arguments: tuple[Any, ...]) -> None:
        values = [_KINDS[type(argument)](argument.value or 0) for argument in arguments]
        function(*values, grid=(blocks, 1), block=(threads, 1, 1), stream=self._stream)

    def capture(self, work: Callable[[], None]) -> Callable[[], None] | None:
        return None


def compile_kernels(capability: tuple[int, int]) -> bytes:
    """Compile the kernels to a cubin with the nvcc of the CUDA toolkit that pycuda was built with; pycuda caches it.

    Raises:
        NotAvailableError: there is no nvcc, or it is older than the device.
    """
    arch = f"sm_{capability[0]}{capability[1]}"
    try:
        source, options = KERNELS.read_text(encoding="utf-8"), ["-std=c++17"]
        return pycuda.compiler.compile(source, options=options, no_extern_c=True, arch=arch)
    except (driver.Error, driver.CompileError, OSError) as error:
        raise NotAvailableError(
            f"--backend: nvcc cannot compile the CUDA kernels ({first_line(error)}); put it on PATH, or "
            "pip install cuda-python nvidia-cuda-nvrtc"
        ) from None


def _memory(address: int, size: int) -> Array:
    memory: Any = (ctypes.c_char * size).from_address(address)  # a buffer, which NumPy's types do not know
    return np.frombuffer(memory, np.uint8)


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Turn errors of the driver into an InputError of one line."""
    try:
        yield
    except driver.Error as error:
        raise InputError(f"CUDA: {first_line(error)}; run nvidia-smi") from None
