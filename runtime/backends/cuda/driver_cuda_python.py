"""CUDA through NVIDIA's cuda-python, which exposes the driver API one to one."""

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from typing import Any

import cuda.bindings
from cuda.bindings import driver

from ...errors import InputError, NotAvailableError, first_line


class CudaPythonDriver:
    """An implementation of `runtime.backends.cuda.driver.Driver` on cuda-python.

    Args:
        number: device number among those that CUDA_VISIBLE_DEVICES makes visible.

    Raises:
        NotAvailableError: there is no driver, no such device, or the device cannot be used.
    """

    library = "cuda-python"
    version = cuda.bindings.__version__

    def __init__(self, number: int = 0) -> None:
        self.number = number
        try:
            _checked(driver.cuInit(0))
            device = _checked(driver.cuDeviceGet(number))
            self.name = _checked(driver.cuDeviceGetName(256, device)).split(b"\0")[0].decode()
            self.capability = tuple(_checked(driver.cuDeviceGetAttribute(kind, device)) for kind in _CAPABILITY)
            self._context = _checked(driver.cuDevicePrimaryCtxRetain(device))
            with self.current():
                self._stream = _checked(driver.cuStreamCreate(driver.CUstream_flags.CU_STREAM_NON_BLOCKING))
        except (InputError, RuntimeError, OSError, MemoryError) as error:
            raise NotAvailableError(
                f"--backend: device {number} cannot be used through cuda-python ({first_line(error)}); "
                "check the NVIDIA driver with nvidia-smi, or choose a CPU backend"
            ) from None
        self.stream = int(self._stream)
        self._events: list[Any] = []  # handles free for reuse

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        _checked(driver.cuCtxPushCurrent(self._context))
        try:
            yield
        finally:
            _checked(driver.cuCtxPopCurrent())

    def memory(self) -> tuple[int, int]:
        return _checked(driver.cuMemGetInfo())

    def allocate(self, size: int) -> int:
        return int(_checked(driver.cuMemAlloc(size)))

    def free(self, pointer: int) -> None:
        _checked(driver.cuMemFree(pointer))

    def mapped(self, size: int) -> tuple[int, int]:
        address = int(_checked(driver.cuMemHostAlloc(size, driver.CU_MEMHOSTALLOC_DEVICEMAP)))
        ctypes.memset(address, 0, size)
        return address, int(_checked(driver.cuMemHostGetDevicePointer(address, 0)))

    def clear(self, pointer: int, size: int) -> None:
        _checked(driver.cuMemsetD8Async(pointer, 0, size, self._stream))

    def copy(self, target: int, source: int, size: int) -> None:
        _checked(driver.cuMemcpyDtoDAsync(target, source, size, self._stream))

    def upload(self, target: int, address: int, size: int) -> None:
        _checked(driver.cuMemcpyHtoDAsync(target, address, size, self._stream))
        self.synchronize()

    def download(self, address: int, source: int, size: int) -> None:
        _checked(driver.cuMemcpyDtoHAsync(address, source, size, self._stream))
        self.synchronize()

    def synchronize(self) -> None:
        _checked(driver.cuStreamSynchronize(self._stream))

    def wait_for_all(self) -> None:
        _checked(driver.cuCtxSynchronize())

    def wait_for_others(self, stream: int) -> None:
        event = self._recorded(stream)
        _checked(driver.cuStreamWaitEvent(self._stream, event.handle, 0))

    def holds(self, pointer: int) -> bool:
        kind = driver.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
        error, number = driver.cuPointerGetAttribute(kind, pointer)
        return not error and number == self.number

    def record(self) -> "_Event":
        return self._recorded(self._stream)

    def _recorded(self, stream: Any) -> "_Event":
        try:
            handle = self._events.pop()
        except IndexError:
            handle = _checked(driver.cuEventCreate(driver.CUevent_flags.CU_EVENT_DEFAULT))
        _checked(driver.cuEventRecord(handle, stream))
        return _Event(handle, self._events)

    def wait(self, event: "_Event") -> None:
        _checked(driver.cuEventSynchronize(event.handle))

    def seconds(self, start: "_Event", stop: "_Event") -> float:
        self.wait(stop)
        return 1e-3 * _checked(driver.cuEventElapsedTime(start.handle, stop.handle))

    def load(self, image: bytes) -> Any:
        return _checked(driver.cuModuleLoadData(image))

    def function(self, module: Any, name: str) -> Any:
        return _checked(driver.cuModuleGetFunction(module, name.encode()))

    def launch(self, function: Any, blocks: int, threads: int, arguments: tuple[Any, ...]) -> None:
        packed = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(argument) for argument in arguments))
        place = ctypes.addressof(packed)
        _checked(driver.cuLaunchKernel(function, blocks, 1, 1, threads, 1, 1, 0, self._stream, place, 0))

    def capture(self, work: Callable[[], None]) -> Callable[[], None] | None:
        """Capture in relaxed mode, which leaves other threads and the libraries' own streams unaffected."""
        _checked(driver.cuStreamBeginCapture(self._stream, driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED))
        try:
            work()
        except BaseException:
            driver.cuStreamEndCapture(self._stream)  # an error is already on its way; this result adds nothing
            raise
        graph = _checked(driver.cuStreamEndCapture(self._stream))
        sent = _Graph(_checked(driver.cuGraphInstantiate(graph, 0)), self)
        _checked(driver.cuGraphDestroy(graph))
        return sent


class _Event:
    """An event with a timestamp; its handle is reused once this object is gone, in whatever thread that happens."""

    def __init__(self, handle: Any, free: list[Any]) -> None:
        self.handle, self._free = handle, free

    def __del__(self) -> None:
        self._free.append(self.handle)


class _Graph:
    def __init__(self, handle: Any, owner: CudaPythonDriver) -> None:
        self._handle, self._owner = handle, owner

    def __call__(self) -> None:
        _checked(driver.cuGraphLaunch(self._handle, self._owner._stream))

    def __del__(self) -> None:
        if driver is not None:  # None while the interpreter shuts down
            with self._owner.current():
                driver.cuGraphExecDestroy(self._handle)


_ATTRIBUTE = driver.CUdevice_attribute
_CAPABILITY = (
    _ATTRIBUTE.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
    _ATTRIBUTE.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
)


def _checked(result: tuple[Any, ...]) -> Any:
    """Return the result of a call: None, one value or a tuple.

    Raises:
        MemoryError: the device is out of memory.
        InputError: any other error that the driver reports.
    """
    error, *values = result
    if error == driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
        raise MemoryError("out of device memory")
    if error:
        text = driver.cuGetErrorString(error)[1]
        raise InputError(f"CUDA: {error.name}: {text.decode() if text else 'no description'}; run nvidia-smi")
    return values[0] if len(values) == 1 else tuple(values) or None
