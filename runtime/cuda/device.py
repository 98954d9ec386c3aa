"""A CUDA device as the loop uses it: arrays in its memory and one stream of work, on whichever library drives it.

All work goes to one stream, in order, so memory whose array is gone serves the next one at once: what still reads it
was sent before. Nothing here waits for the device but what says so.
"""

import contextlib
import ctypes
import math
import weakref
from collections import defaultdict
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from runtime.cuda.dlpack import read_capsule, write_capsule
from runtime.geometry.errors import InputError, NotHere, first_line
from runtime.heap import ARRAYS

THREADS = 256  # of a block, for every kernel
MOST_BLOCKS = 1 << 20  # of a launch; kernels step through what is left
ALIGNMENT = 256  # bytes, that engine libraries take for granted
ROUND = 512  # bytes; sizes asked of the driver are multiples of it
SLOT_BYTES, SLOTS = 64, 256  # of the memory through which a few numbers reach the host
MEGABYTE, GIGABYTE = 1e6, 1e9
DEFAULT_STREAM = 1  # CU_STREAM_LEGACY, where libraries work that name no stream
ON_CARD, MANAGED = 2, 13  # DLPack's numbers of CUDA memory


class Driver(Protocol):
    """What a `Device` asks of a CUDA library. It has one device, that device's primary context and one stream.

    Attributes:
        library, version: what it is.
        name: of the device, as its maker calls it.
        capability: compute capability, (8, 9) for instance.
        stream: handle of the stream.
        number: of the device.
    """

    library: str
    version: str
    name: str
    capability: tuple[int, int]
    stream: int
    number: int

    def current(self) -> contextlib.AbstractContextManager:
        """Makes the context current in this thread."""

    def memory(self) -> tuple[int, int]:
        """Bytes of the device that are free, and all it has."""

    def allocate(self, size: int) -> int:
        """Device memory; MemoryError where there is not as much."""

    def free(self, pointer: int) -> None:
        """Gives memory of `allocate` back; may wait for the device."""

    def mapped(self, size: int) -> tuple[int, int]:
        """Host memory that the device writes to as well, zeroed: its address here and there. Kept until the end."""

    def clear(self, pointer: int, size: int) -> None:
        """Zeros, in the stream's order, as all that follows."""

    def copy(self, target: int, source: int, size: int) -> None: ...

    def upload(self, target: int, address: int, size: int) -> None:
        """From pageable host memory; returns when it is there."""

    def download(self, address: int, source: int, size: int) -> None:
        """To pageable host memory; returns when it is there."""

    def synchronize(self) -> None:
        """Waits for all that was sent to the stream."""

    def wait_for_all(self) -> None:
        """Waits for all that anybody sent to the device."""

    def wait_for_others(self, stream: int) -> None:
        """What is sent from now on waits for another stream's work so far; the host does not."""

    def holds(self, pointer: int) -> bool:
        """Whether this memory is the device's."""

    def record(self) -> Any:
        """An event at this moment of the stream."""

    def wait(self, event: Any) -> None:
        """Waits for an event."""

    def seconds(self, start: Any, stop: Any) -> float:
        """Between two events; waits for the later one."""

    def load(self, image: bytes) -> Any:
        """A module from a cubin."""

    def function(self, module: Any, name: str) -> Any: ...

    def launch(self, function: Any, blocks: int, threads: int, arguments: tuple[Any, ...]) -> None:
        """Runs a kernel; the arguments are ctypes values."""

    def capture(self, work: Callable[[], None]) -> Callable[[], None] | None:
        """What `work` sends to the stream as a graph, to be sent at once by calling it; None where it cannot be."""


class DeviceArray:
    """An array in a device's memory; read by others through ``__cuda_array_interface__`` or DLPack without a copy.

    Attributes:
        device: where it lies.
        pointer: of its first element.
        shape: sizes.
        dtype: float32, float16 or another of NumPy's.
        strides: bytes from one element to the next along each axis, as NumPy counts them.
        owner: keeps the memory; several views share one.
    """

    def __init__(
        self,
        device: "Device",
        pointer: int,
        shape: tuple[int, ...],
        dtype: Any,
        strides: tuple[int, ...] | None = None,
        owner: Any = None,
    ) -> None:
        self.device, self.pointer, self.owner = device, pointer, owner
        self.shape, self.dtype = tuple(map(int, shape)), np.dtype(dtype)
        self.strides = contiguous_strides(self.shape, self.dtype.itemsize) if strides is None else tuple(strides)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    @property
    def contiguous(self) -> bool:
        """Whether its elements lie side by side in the order of its axes."""
        return self.strides == contiguous_strides(self.shape, self.dtype.itemsize)

    @property
    def element_strides(self) -> tuple[int, ...]:
        """Strides counted in elements."""
        return tuple(stride // self.dtype.itemsize for stride in self.strides)

    def moveaxis(self, source: int, target: int) -> "DeviceArray":
        """A view with one axis elsewhere, as `numpy.moveaxis`."""
        order = [axis for axis in range(self.ndim) if axis != source % self.ndim]
        order.insert(target % self.ndim, source % self.ndim)
        shape, strides = (tuple(values[axis] for axis in order) for values in (self.shape, self.strides))
        return DeviceArray(self.device, self.pointer, shape, self.dtype, strides, self.owner)

    def channels(self, begin: int, end: int) -> "DeviceArray":
        """A view of some places of the last axis."""
        pointer = self.pointer + begin * self.strides[-1]
        return DeviceArray(self.device, pointer, (*self.shape[:-1], end - begin), self.dtype, self.strides, self.owner)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3. The stream is ours: whoever reads this lets its own wait for it."""
        self._lend()
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.pointer, False),
            "strides": None if self.contiguous else self.strides,
            "version": 3,
            "stream": self.device.driver.stream,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device.dlpack_device

    def __dlpack__(self, *, stream: Any = None, **_: Any) -> Any:
        """A capsule of this memory, once all that was sent to our stream is done."""
        self._lend()
        with self.device.current():
            self.device.driver.synchronize()
        return write_capsule(self, self.pointer, self.shape, self.dtype, self.element_strides, self.__dlpack_device__())

    def _lend(self) -> None:
        """From now on work that is not in our stream may read it."""
        if isinstance(self.owner, _Block):
            self.owner.lent[:] = [True]


def on_card(array: Any) -> bool:
    """Whether an array lies in a card's memory."""
    if hasattr(array, "__dlpack_device__"):
        return array.__dlpack_device__()[0] in (ON_CARD, MANAGED)
    return hasattr(array, "__cuda_array_interface__")


def contiguous_strides(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Bytes from one element to the next along each axis of an array in C order."""
    strides = [itemsize]
    for size in reversed(shape[1:]):
        strides.insert(0, strides[0] * size)
    return tuple(strides[: len(shape)])


class _Block:
    """A piece of device memory; goes back to its pool with the last array that uses it."""

    def __init__(self, pool: "_Pool", pointer: int, size: int) -> None:
        self.pointer, self.lent = pointer, [False]
        weakref.finalize(self, pool.take_back, pointer, size, self.lent).atexit = False


class _Pool:
    """Device memory by size: what is given back serves the next array of that size.

    What other libraries could read comes back only when the device has done all that was sent to it.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._free: dict[int, list[int]] = defaultdict(list)
        self._lent: list[tuple[int, int]] = []
        self._closed = False
        self.held = self.peak = 0

    def block(self, size: int) -> _Block:
        size = max(1, -(-size // ROUND)) * ROUND
        if self._lent:
            self._take_lent_back()
        return _Block(self, self._free[size].pop() if self._free[size] else self._new(size), size)

    def _new(self, size: int) -> int:
        try:
            pointer = self._driver.allocate(size)
        except MemoryError:
            self.clear()
            try:
                pointer = self._driver.allocate(size)
            except MemoryError:
                raise out_of_memory(self._driver, size) from None
        self.held += size
        self.peak = max(self.peak, self.held)
        return pointer

    def take_back(self, pointer: int, size: int, lent: list[bool]) -> None:
        """Called in whatever thread lets go of the last array."""
        if lent[0]:
            self._lent.append((pointer, size))
        else:
            self._free[size].append(pointer)
        if self._closed:
            with self._driver.current():
                self.clear()

    def _take_lent_back(self) -> None:
        lent, self._lent = self._lent, []
        self._driver.wait_for_all()
        for pointer, size in lent:
            self._free[size].append(pointer)

    def clear(self) -> None:
        """Gives the driver back what no array uses, once all work that was sent is done."""
        self._take_lent_back()
        free, self._free = self._free, defaultdict(list)
        for size, pointers in free.items():
            for pointer in pointers:
                self._driver.free(pointer)
                self.held -= size

    def close(self) -> None:
        """`clear`, now and for what comes back later."""
        self._closed = True
        self.clear()


def out_of_memory(driver: Driver, size: int | None = None) -> NotHere:
    """The error of a device whose memory does not suffice; `size` bytes were wanted, where that is known."""
    free, total = driver.memory()
    wanted = "more memory than it has" if size is None else f"{size / MEGABYTE:.0f} MB more"
    return NotHere(
        f"--backend: {driver.name} is out of memory: wanted {wanted}, free are {free / GIGABYTE:.1f} of "
        f"{total / GIGABYTE:.1f} GB; close what else uses it, choose --precision fp16, or a backend of the CPU"
    )


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
        alone: whether no other thread of this process has a device on the same card. Only then may engines capture
            CUDA graphs, during which other threads must not take or free memory.

    Attributes:
        dlpack_device: DLPack's device type (CUDA) and number.
    """

    def __init__(self, driver: Driver, kernels: Callable[[tuple[int, int]], bytes], alone: bool = True) -> None:
        self.driver, self.name, self.capability, self.alone = driver, driver.name, driver.capability, alone
        self.dlpack_device = ON_CARD, driver.number
        self._pool = _Pool(driver)
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
            NotHere: out of memory.
        """
        block = self._pool.block(math.prod(shape) * np.dtype(dtype).itemsize)
        return DeviceArray(self, block.pointer, shape, dtype, owner=block)

    def zeros(self, shape: tuple[int, ...], dtype: Any = np.float32) -> DeviceArray:
        array = self.empty(shape, dtype)
        self.driver.clear(array.pointer, array.nbytes)
        return array

    def upload(self, array: np.ndarray) -> DeviceArray:
        """A copy of a host array, contiguous."""
        array = np.ascontiguousarray(array)
        found = self.empty(array.shape, array.dtype)
        self.driver.upload(found.pointer, array.ctypes.data, array.nbytes)
        return found

    def download(self, array: DeviceArray) -> np.ndarray:
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
            capsule = array.__dlpack__(stream=self.driver.stream) if place[0] == ON_CARD else array.__dlpack__()
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
