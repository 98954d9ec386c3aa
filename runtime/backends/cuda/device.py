"""A CUDA device as the loop uses it: arrays in its memory and one stream of work, on whichever library drives it.

Nothing here waits for the device but what says so.
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

THREADS = 256  # of a block, for every kernel
MOST_BLOCKS = 1 << 20  # of a launch; kernels step through what is left
ALIGNMENT = 256  # bytes, that engine libraries take for granted
SLOT_BYTES, SLOTS = 64, 256  # of the memory through which a few numbers reach the host
DEFAULT_STREAM = 1  # CU_STREAM_LEGACY, where libraries work that name no stream


class Slot:
    """A few numbers that kernels write and the host reads: float64, anything until written."""

    def __init__(self, device: "Device", number: int, address: int, pointer: int) -> None:
        self.pointer = pointer
        self.values = np.frombuffer((ctypes.c_char * SLOT_BYTES).from_address(address), np.float64)
        weakref.finalize(self, device.free_slots.append, number).atexit = False


class Device:
    """A CUDA device: arrays, kernels of `kernels.cu`, events, a few numbers back.

    Args:
        driver: the library that drives it.
        kernels: compiles `kernels.cu` for a compute capability, into a cubin.
        alone: whether no other thread of this process has a device on the same GPU. Only then may engines capture
            CUDA graphs, during which other threads must not take or free memory.

    Attributes:
        dlpack_device: DLPack's device type (CUDA) and number.
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
        """Makes the device this thread's; all else here is to be called within."""
        return self.driver.current()

    @property
    def peak_bytes(self) -> int:
        """The most memory arrays have held so far; what engines take for themselves is not in it."""
        return self._pool.peak

    def rest(self) -> None:
        """Gives memory that no array uses back to the driver."""
        self._pool.clear()

    def close(self) -> None:
        """`rest`; memory of arrays that are still in use goes back with them. To be called with the device current."""
        self._pool.close()

    def empty(self, shape: tuple[int, ...], dtype: Any = np.float32) -> DeviceArray:
        """An array with anything in it, contiguous.

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
        """A copy of a host array, contiguous."""
        array = np.ascontiguousarray(array)
        found = self.empty(array.shape, array.dtype)
        self.driver.upload(found.pointer, array.ctypes.data, array.nbytes)
        return found

    def download(self, array: DeviceArray) -> Array:
        """A copy on the host, with the strides of the array's own axes; waits for the device.

        Raises:
            ValueError: the array's elements do not fill one piece of memory.
        """
        order = sorted(range(array.ndim), key=lambda axis: -array.strides[axis])
        shape = [array.shape[axis] for axis in order]
        memory = ARRAYS.empty(shape) if array.dtype == np.float32 else np.empty(shape, array.dtype)
        found = memory.transpose(np.argsort(order))
        if any(a != b for a, b, size in zip(found.strides, array.strides, array.shape, strict=True) if size > 1):
            raise ValueError(f"cannot download an array with gaps: shape {array.shape}, strides {array.strides}")
        self.driver.download(memory.ctypes.data, array.pointer, memory.nbytes)
        return found

    def aligned(self, array: DeviceArray) -> DeviceArray:
        """A contiguous array where engines may read it in wide loads: itself, or perhaps a copy of a foreign one."""
        if array.pointer % ALIGNMENT == 0:
            return array
        copy = self.empty(array.shape, array.dtype)
        self.driver.copy(copy.pointer, array.pointer, array.nbytes)
        return copy

    def wrap(self, array: Any) -> DeviceArray:
        """Another library's array of this device, without a copy. What its stream holds so far is waited for.

        Args:
            array: has ``__dlpack__`` (torch, cupy, jax) or ``__cuda_array_interface__`` (numba, pycuda).

        Raises:
            InputError: it has neither, or is not floating point or on this device.
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
            raise InputError(f"array: its memory is not that of {place}; copy it there")
        self.driver.wait_for_others(DEFAULT_STREAM if stream is None else stream)
        return DeviceArray(self, pointer, facts["shape"], facts["typestr"], facts.get("strides"), array)

    def _from_dlpack(self, array: Any) -> DeviceArray:
        """The library itself lets our stream wait for its own."""
        place = array.__dlpack_device__()
        try:
            capsule = array.__dlpack__(stream=self.driver.stream) if place[0] == ON_GPU else array.__dlpack__()
        except (BufferError, RuntimeError) as error:  # a tensor that requires a gradient
            raise InputError(f"array: cannot be read ({first_line(error)})") from None
        return DeviceArray(self, *read_capsule(capsule, place, self.dlpack_device))

    def launch(self, kernel: str, work: int, *arguments: Any) -> None:
        """Runs a kernel on enough blocks of `THREADS` for so many pieces of work; see `launch_blocks`."""
        self.launch_blocks(kernel, min(max(1, -(-work // THREADS)), MOST_BLOCKS), *arguments)

    def launch_blocks(self, kernel: str, blocks: int, *arguments: Any) -> None:
        """Runs a kernel of `kernels.cu`.

        Args:
            kernel: its name.
            blocks: of `THREADS` threads each.
            arguments: arrays and slots (as pointers), int (C int), np.int64 (long long), float (float), np.float64.
        """
        if kernel not in self._functions:
            self._functions[kernel] = self.driver.function(self._module, kernel)
        self.driver.launch(self._functions[kernel], blocks, THREADS, tuple(map(_argument, arguments)))

    def slot(self) -> Slot:
        """Place for eight float64 that kernels write and the host reads after `wait`; free again when it is gone."""
        number = self.free_slots.pop()
        return Slot(self, number, *(base + number * SLOT_BYTES for base in self._slots))

    def mark(self) -> Any:
        """An event at this moment of the stream."""
        return self.driver.record()

    def wait(self, mark: Any) -> None:
        """Waits until the device has come to a mark."""
        self.driver.wait(mark)

    def seconds(self, start: Any, stop: Any) -> float:
        """Of the device, between two marks."""
        return self.driver.seconds(start, stop)


_KINDS = {np.int64: ctypes.c_longlong, np.float64: ctypes.c_double, float: ctypes.c_float, int: ctypes.c_int}


def _argument(value: Any) -> Any:
    if isinstance(value, DeviceArray | Slot):
        return ctypes.c_void_p(value.pointer)
    return _KINDS[type(value)](value)
