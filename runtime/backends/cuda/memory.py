"""A device's memory: arrays with strides in it, and the pool they come from.

All our work goes to one stream, in order, so memory whose array is gone serves the next one at once: what still reads
it was sent before.
"""

import contextlib
import math
import weakref
from collections import defaultdict
from typing import Any, Protocol

import numpy as np

from ...errors import NotAvailableError
from .dlpack import write_capsule
from .driver import Driver

ROUND = 512  # bytes; sizes asked of the driver are multiples of it
MEGABYTE, GIGABYTE = 1e6, 1e9


class OwningDevice(Protocol):
    """A device as its arrays know it: `runtime.backends.cuda.device.Device`."""

    driver: Driver
    dlpack_device: tuple[int, int]

    def current(self) -> contextlib.AbstractContextManager: ...


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
        device: OwningDevice,
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
        if isinstance(self.owner, Block):
            self.owner.lent[:] = [True]


def contiguous_strides(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Bytes from one element to the next along each axis of an array in C order."""
    strides = [itemsize]
    for size in reversed(shape[1:]):
        strides.insert(0, strides[0] * size)
    return tuple(strides[: len(shape)])


class Block:
    """A piece of device memory; goes back to its pool with the last array that uses it."""

    def __init__(self, pool: "Pool", pointer: int, size: int) -> None:
        self.pointer, self.lent = pointer, [False]
        weakref.finalize(self, pool.take_back, pointer, size, self.lent).atexit = False


class Pool:
    """Device memory by size: what is given back serves the next array of that size.

    What other libraries could read comes back only when the device has done all that was sent to it.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._free: dict[int, list[int]] = defaultdict(list)
        self._lent: list[tuple[int, int]] = []
        self._closed = False
        self.held = self.peak = 0

    def block(self, size: int) -> Block:
        size = max(1, -(-size // ROUND)) * ROUND
        if self._lent:
            self._take_lent_back()
        return Block(self, self._free[size].pop() if self._free[size] else self._new(size), size)

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


def out_of_memory(driver: Driver, size: int | None = None) -> NotAvailableError:
    """The error of a device whose memory does not suffice; `size` bytes were wanted, where that is known."""
    free, total = driver.memory()
    wanted = "more memory than it has" if size is None else f"{size / MEGABYTE:.0f} MB more"
    return NotAvailableError(
        f"--backend: {driver.name} is out of memory: wanted {wanted}, free are {free / GIGABYTE:.1f} of "
        f"{total / GIGABYTE:.1f} GB; close what else uses it, choose --precision fp16, or a backend of the CPU"
    )
