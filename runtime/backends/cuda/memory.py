"""Device memory: strided arrays and the pool they are allocated from.

All our work goes to one stream, in order, so the memory of an array that is gone can be reused at once: any work that
still reads it was sent earlier.
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

ROUND = 512  # bytes; allocated sizes are multiples of it
MEGABYTE, GIGABYTE = 1e6, 1e9


class OwningDevice(Protocol):
    """The part of `runtime.backends.cuda.device.Device` that arrays, and operations on them, use."""

    driver: Driver
    dlpack_device: tuple[int, int]

    def current(self) -> contextlib.AbstractContextManager[Any]: ...
    def launch(self, kernel: str, work: int, *arguments: Any) -> None: ...
    def launch_blocks(self, kernel: str, blocks: int, *arguments: Any) -> None: ...


class DeviceArray:
    """An array in device memory, shared with other libraries through ``__cuda_array_interface__`` or DLPack, uncopied.

    Attributes:
        device: the device that holds it.
        pointer: address of its first element.
        shape: sizes along the axes.
        dtype: float32, float16 or another NumPy type.
        strides: bytes from one element to the next along each axis, as in NumPy.
        owner: object that keeps the memory alive; several views share one.
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
        """True if the elements are contiguous in C order."""
        return self.strides == contiguous_strides(self.shape, self.dtype.itemsize)

    @property
    def element_strides(self) -> tuple[int, ...]:
        """The strides in elements."""
        return tuple(stride // self.dtype.itemsize for stride in self.strides)

    def moveaxis(self, source: int, target: int) -> "DeviceArray":
        """Return a view with one axis moved, as `numpy.moveaxis` does."""
        order = [axis for axis in range(self.ndim) if axis != source % self.ndim]
        order.insert(target % self.ndim, source % self.ndim)
        shape, strides = (tuple(values[axis] for axis in order) for values in (self.shape, self.strides))
        return DeviceArray(self.device, self.pointer, shape, self.dtype, strides, self.owner)

    def channels(self, begin: int, end: int) -> "DeviceArray":
        """Return a view of indices `begin` to `end` (exclusive) of the last axis."""
        pointer = self.pointer + begin * self.strides[-1]
        return DeviceArray(self.device, pointer, (*self.shape[:-1], end - begin), self.dtype, self.strides, self.owner)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """The CUDA array interface, version 3; consumers make their stream wait for ours."""
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
        """Return a capsule of this memory after waiting for all work sent to our stream."""
        self._lend()
        with self.device.current():
            self.device.driver.synchronize()
        return write_capsule(self, self.pointer, self.shape, self.dtype, self.element_strides, self.__dlpack_device__())

    def _lend(self) -> None:
        """Mark the memory as lent: from now on, work outside our stream may read it."""
        if isinstance(self.owner, Block):
            self.owner.lent[:] = [True]


def contiguous_strides(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Return the strides of a C-order array, in bytes."""
    strides = [itemsize]
    for size in reversed(shape[1:]):
        strides.insert(0, strides[0] * size)
    return tuple(strides[: len(shape)])


class Block:
    """A block of device memory, returned to its pool together with the last array that uses it."""

    def __init__(self, pool: "Pool", pointer: int, size: int) -> None:
        self.pointer, self.lent = pointer, [False]
        weakref.finalize(self, pool.take_back, pointer, size, self.lent).atexit = False


class Pool:
    """A pool of device memory by size: a returned block serves the next array of the same size.

    Blocks that other libraries could read are reused only after the device has finished all work sent to it.
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
        """Take a block back; called in whatever thread drops the last array that uses it."""
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
        """Return unused memory to the driver after waiting for all work sent to the device."""
        self._take_lent_back()
        free, self._free = self._free, defaultdict(list)
        for size, pointers in free.items():
            for pointer in pointers:
                self._driver.free(pointer)
                self.held -= size

    def close(self) -> None:
        """Clear the pool now, and again whenever a block comes back later."""
        self._closed = True
        self.clear()


def out_of_memory(driver: Driver, size: int | None = None) -> NotAvailableError:
    """Return the error of a device that is out of memory; `size` is the failed allocation in bytes, None if unknown."""
    free, total = driver.memory()
    wanted = "more memory than it has" if size is None else f"{size / MEGABYTE:.0f} MB more"
    return NotAvailableError(
        f"--backend: {driver.name} is out of memory: needs {wanted}, {free / GIGABYTE:.1f} of "
        f"{total / GIGABYTE:.1f} GB are free; close other programs that use it, or choose --precision fp16 or a CPU "
        "backend"
    )
