"""What a `Device` asks of the library that drives it."""

import contextlib
from collections.abc import Callable
from typing import Any, Protocol


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
