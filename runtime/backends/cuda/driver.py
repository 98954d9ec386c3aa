"""The interface between a `Device` and the CUDA library that drives it."""

import contextlib
from collections.abc import Callable
from typing import Any, Protocol


class Driver(Protocol):
    """A CUDA library with one device, that device's primary context and one stream.

    Attributes:
        library, version: name and version of the library.
        name: the manufacturer's name of the device.
        capability: compute capability, for example (8, 9).
        stream: handle of the stream.
        number: device number.
    """

    library: str
    version: str
    name: str
    capability: tuple[int, int]
    stream: int
    number: int

    def current(self) -> contextlib.AbstractContextManager:
        """Make the context current in this thread."""

    def memory(self) -> tuple[int, int]:
        """Return the free and the total device memory, in bytes."""

    def allocate(self, size: int) -> int:
        """Allocate device memory; raise MemoryError if there is not enough."""

    def free(self, pointer: int) -> None:
        """Free memory from `allocate`; may wait for the device."""

    def mapped(self, size: int) -> tuple[int, int]:
        """Allocate zeroed host memory mapped into the device, never freed; return its host and device addresses."""

    def clear(self, pointer: int, size: int) -> None:
        """Fill memory with zeros in stream order, as are all operations below."""

    def copy(self, target: int, source: int, size: int) -> None: ...

    def upload(self, target: int, address: int, size: int) -> None:
        """Copy from pageable host memory to the device; return when the copy is complete."""

    def download(self, address: int, source: int, size: int) -> None:
        """Copy from the device to pageable host memory; return when the copy is complete."""

    def synchronize(self) -> None:
        """Wait for all work sent to the stream."""

    def wait_for_all(self) -> None:
        """Wait for all work sent to the device on any stream."""

    def wait_for_others(self, stream: int) -> None:
        """Make later work on our stream wait for the work queued on another stream; the host does not wait."""

    def holds(self, pointer: int) -> bool:
        """Return whether an address is in this device's memory."""

    def record(self) -> Any:
        """Record an event at the current end of the stream."""

    def wait(self, event: Any) -> None:
        """Wait for an event."""

    def seconds(self, start: Any, stop: Any) -> float:
        """Return the seconds between two events; waits for the later one."""

    def load(self, image: bytes) -> Any:
        """Load a module from a cubin."""

    def function(self, module: Any, name: str) -> Any: ...

    def launch(self, function: Any, blocks: int, threads: int, arguments: tuple[Any, ...]) -> None:
        """Launch a kernel; the arguments are ctypes values."""

    def capture(self, work: Callable[[], None]) -> Callable[[], None] | None:
        """Capture the work that `work` sends to the stream as a graph, without running it.

        Returns:
            A function that launches the graph; None if the library has no graphs.
        """
