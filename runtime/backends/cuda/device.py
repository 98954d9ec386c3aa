"""A CUDA device as the loop uses it: arrays in its memory and one stream of work, independent of the driver library.

Calls do not wait for the device unless their docstring says so.
"""

import contextlib
import ctypes
import math
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from ...errors import InputError, first_line
from ...host.memory import ARRAYS
from ...types import Array
from .dlpack import read_capsule
from .driver import Driver
from .gpu import ON_GPU
from .memory import DeviceArray, Pool

THREADS = 256  # per block, for every kernel
MOST_BLOCKS = 1 << 20  # per launch; with more work, each thread steps through several items
ALIGNMENT = 256  # bytes; engine libraries assume this alignment
SLOT_BYTES, SLOTS = 64, 256  # size and number of the slots through which a few numbers reach the host
DEFAULT_STREAM = 1  # CU_STREAM_LEGACY, used by libraries that name no stream


class Slot:
    """A few float64 numbers that kernels write and the host reads; uninitialised until written."""

    def __init__(self, device: "Device", number: int, address: int, pointer: int) -> None:
        self.pointer = pointer
        memory: Any = (ctypes.c_char * SLOT_BYTES).from_address(address)  # a buffer, which NumPy's types do not know
        self.values = np.frombuffer(memory, np.float64)
        # Finalizers run in whatever thread drops the slot; appending to a list is atomic.
        weakref.finalize(self, device.free_slots.append, number).atexit = False


class Device:
    """A CUDA device: arrays, kernels of `kernels.cu`, events, and slots for results that the host reads.

    Args:
        driver: the library that drives it.
        kernels: function that compiles `kernels.cu` for a compute capability and returns a cubin.
        alone: whether no other thread of this process has a device on the same GPU. Only then may engines capture
            CUDA graphs, during which other threads must not allocate or free memory.

    Attributes:
        dlpack_device: DLPack device type (CUDA) and number.
    """

    def __init__(self, driver: Driver, kernels: Callable[[tuple[int, int]], bytes], alone: bool = True) -> None:
        self.driver, self.name, self.capability, self.alone = driver, driver.name, driver.capability, alone
        self.dlpack_device = ON_GPU, driver.number
        self._pool = Pool(driver)
        self._functions: dict[str, Any] = {}
        with self.current():
            self._module = driver.load(kernels(driver.capability))
            self._slots = driver.mapped(SLOT_BYTES * SLOTS)
        self.free_slots = list(range(SLOTS))

    def current(self) -> contextlib.AbstractContextManager:
        """Make the device current in this thread; all other methods must be called within this context."""
        return self.driver.current()

    @property
    def peak_bytes(self) -> int:
        """The peak memory held by arrays so far, without what engines allocate themselves."""
        return self._pool.peak

    def rest(self) -> None:
        """Return memory that no array uses to the driver."""
        self._pool.clear()

    def close(self) -> None:
        """Return unused memory to the driver, and that of arrays still in use once they are gone.

        The device must be current.
        """
        self._pool.close()

    def empty(self, shape: tuple[int, ...], dtype: Any = np.float32) -> DeviceArray:
        """Return an uninitialised contiguous array.

        Raises:
            NotAvailableError: out of memory.
        """
        block = self._pool.block(math.prod(shape) * np.dtype(dtype).itemsize)
        return DeviceArray(self, block.pointer, shape, dtype, owner=block)

    def zeros(self, shape: tuple[int, ...], dtype: Any = np.float32) -> DeviceArray:
        array = self.empty(shape, dtype)
        self.driver.clear(array.pointer, array.nbytes)
        return array

    def upload(self, array: Array) -> DeviceArray:
        """Copy a host array to a contiguous device array."""
        array = np.ascontiguousarray(array)
        found = self.empty(array.shape, array.dtype)
        self.driver.upload(found.pointer, array.ctypes.data, array.nbytes)
        return found

    def download(self, array: DeviceArray) -> Array:
        """Copy an array to the host, keeping its memory order; waits for the device.

        Raises:
            ValueError: the array's elements do not fill one block of memory without gaps.
        """
        # Allocate with the axes sorted by stride, so that the raw copy below lands in the right order.
        order = sorted(range(array.ndim), key=lambda axis: -array.strides[axis])
        shape = tuple(array.shape[axis] for axis in order)
        memory = ARRAYS.empty(shape) if array.dtype == np.float32 else np.empty(shape, array.dtype)
        found = memory.transpose(np.argsort(order))
        if any(a != b for a, b, size in zip(found.strides, array.strides, array.shape, strict=True) if size > 1):
            raise ValueError(f"cannot download an array with gaps: shape {array.shape}, strides {array.strides}")
        self.driver.download(memory.ctypes.data, array.pointer, memory.nbytes)
        return found

    def aligned(self, array: DeviceArray) -> DeviceArray:
        """Return a contiguous array aligned for wide loads: the array itself, or a copy if it is not aligned."""
        if array.pointer % ALIGNMENT == 0:
            return array
        copy = self.empty(array.shape, array.dtype)
        self.driver.copy(copy.pointer, array.pointer, array.nbytes)
        return copy

    def wrap(self, array: Any) -> DeviceArray:
        """Wrap another library's array on this device without a copy; our stream waits for the work queued on its own.

        Args:
            array: has ``__dlpack__`` (torch, cupy, jax) or ``__cuda_array_interface__`` (numba, pycuda).

        Raises:
            InputError: the array has neither attribute, is not floating point, or is not on this device.
        """
        if isinstance(array, DeviceArray):
            return array
        if hasattr(array, "__dlpack__"):
            return self._from_dlpack(array)
        facts = getattr(array, "__cuda_array_interface__", None)
        if facts is None:
            raise InputError(
                f"array: got a {type(array).__name__}, expected one with __cuda_array_interface__ or __dlpack__"
            )
        pointer, stream = facts["data"][0], facts.get("stream")
        if not self.driver.holds(pointer):
            place = f"{self.name} (device {self.driver.number})"
            raise InputError(f"array: its memory is not on {place}; copy it there")
        self.driver.wait_for_others(DEFAULT_STREAM if stream is None else stream)
        return DeviceArray(self, pointer, facts["shape"], facts["typestr"], facts.get("strides"), array)

    def _from_dlpack(self, array: Any) -> DeviceArray:
        """Wrap an array through DLPack; the exporting library makes our stream wait for its own."""
        place = array.__dlpack_device__()
        try:
            capsule = array.__dlpack__(stream=self.driver.stream) if place[0] == ON_GPU else array.__dlpack__()
        except (BufferError, RuntimeError) as error:  # for example a tensor that requires a gradient
            raise InputError(f"array: cannot be read ({first_line(error)})") from None
        return DeviceArray(self, *read_capsule(capsule, place, self.dlpack_device))

    def launch(self, kernel: str, work: int, *arguments: Any) -> None:
        """Run a kernel on enough blocks of `THREADS` threads for `work` items; see `launch_blocks`."""
        self.launch_blocks(kernel, min(max(1, -(-work // THREADS)), MOST_BLOCKS), *arguments)

    def launch_blocks(self, kernel: str, blocks: int, *arguments: Any) -> None:
        """Run a kernel of `kernels.cu`.

        Args:
            kernel: name of the kernel.
            blocks: number of blocks, of `THREADS` threads each.
            arguments: arrays and slots (as pointers), int (C int), np.int64 (long long), float (float), np.float64.
        """
        if kernel not in self._functions:
            self._functions[kernel] = self.driver.function(self._module, kernel)
        self.driver.launch(self._functions[kernel], blocks, THREADS, tuple(map(_argument, arguments)))

    def slot(self) -> Slot:
        """Reserve a slot of eight float64 that kernels write and the host reads after `wait`, until it is dropped."""
        number = self.free_slots.pop()
        return Slot(self, number, *(base + number * SLOT_BYTES for base in self._slots))

    def mark(self) -> Any:
        """Record an event at the current end of the stream."""
        return self.driver.record()

    def wait(self, mark: Any) -> None:
        """Wait until the device has reached a mark."""
        self.driver.wait(mark)

    def seconds(self, start: Any, stop: Any) -> float:
        """Return the device time between two marks, in seconds."""
        return self.driver.seconds(start, stop)


_KINDS = {np.int64: ctypes.c_longlong, np.float64: ctypes.c_double, float: ctypes.c_float, int: ctypes.c_int}


def _argument(value: Any) -> Any:
    if isinstance(value, DeviceArray | Slot):
        return ctypes.c_void_p(value.pointer)
    return _KINDS[type(value)](value)
