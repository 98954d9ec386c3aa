"""Plans opened on a device, and the cache on disk of kernels that TensorRT-RTX compiles for them."""

import collections
import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ....errors import InputError
from ....host.cache_folder import cache_folder, keep, keep_latest, kept
from ....host.files.hashes import short_key
from ...cuda.device import Device
from .plans import PlanSpec, Shape

CACHES, MOST_CACHES = "rpnet-tensorrt", 20
MOST_GRAPHS = 8  # captured graphs kept per engine


class LibraryRefusedError(Exception):
    """A refusal of the library: the reason, and the kind of error (NotAvailableError if it might work elsewhere)."""

    def __init__(self, reason: str, kind: type[InputError] = InputError) -> None:
        super().__init__(reason)
        self.kind = kind


def cache_file(kind: str, *facts: str) -> Path:
    """Return the path of the cache file for data that depend on these facts."""
    return cache_folder(CACHES) / CACHES / f"{kind}.{short_key(*facts)}"


def keep_file(path: Path, content: bytes) -> None:
    """Write a cache file, and remove the files unused for longest."""
    keep(path, content)
    keep_latest(path.parent.iterdir(), MOST_CACHES)


class JitCache:
    """A cache on disk of the kernels that TensorRT-RTX compiled for this GPU. A failing cache only costs time.

    Args:
        library: the library that compiles them.
        device: the GPU.
        facts: everything else they depend on.
    """

    def __init__(self, library: Any, device: Device, *facts: str) -> None:
        self._path = cache_file("kernels", library.target, library.version, device.name, *facts)
        self._cache: Any = None
        self._content = b""

    def attach(self, config: Any) -> None:
        """Attach the cache to the configuration of an execution context."""
        with contextlib.suppress(Exception):
            if self._cache is None:
                self._cache = config.create_runtime_cache()
                self._content = kept(self._path) or b""
                if self._content:
                    self._cache.deserialize(self._content)
            config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Save the cache if kernels were compiled since it was loaded."""
        with contextlib.suppress(Exception):
            content = bytes(self._cache.serialize())
            if content != self._content:
                keep_file(self._path, content)
                self._content = content


class OpenPlan:
    """A plan opened on a device.

    Attributes:
        spec: the specification it was built from.
    """

    def __init__(self, library: Any, context: Any, spec: PlanSpec, device: Device, *used: Any) -> None:
        self.spec = spec
        self._context, self._used = context, used  # destroyed in this order
        self._library, self._device = library, device
        self._input = next(iter(spec.formats))
        self._shape: tuple[int, ...] = ()
        self._scratch_bytes = 0
        self._capturable = device.alone and not library.portable  # TensorRT-RTX captures graphs itself
        self._bound: tuple | None = None
        self._graphs: collections.OrderedDict[tuple, Callable[[], None] | None] = collections.OrderedDict()

    def resize(self, channels: int, size: Shape) -> int:
        """Prepare for an input of size (I, J, K), and return the bytes of scratch memory that it needs.

        Raises:
            InputError: the plan does not serve this size.
        """
        shape = (1, channels, *size)
        if shape != self._shape:
            self.forget()
            with self._library.explained(f"{self._library.title}, {self.spec.engine}", self._device):
                if not self._context.set_input_shape(self._input, shape):
                    raise LibraryRefusedError(f"takes no input of {size}: {self._library.last_error()}")
                self._scratch_bytes = max(1, int(self._context.update_device_memory_size_for_shapes()))
            self._shape = shape
        return self._scratch_bytes

    def forget(self) -> None:
        """Release captured graphs, because the memory they refer to is about to be released."""
        self._graphs.clear()
        self._bound = None

    def run(self, addresses: Mapping[str, int], scratch: tuple[int, int]) -> None:
        """Send a run to the device's stream.

        Args:
            addresses: addresses in device memory by name of the input or output.
            scratch: address and size of memory that the run may overwrite.

        Raises:
            NotAvailableError: out of memory.
            InputError: the library refuses for another reason.
        """
        key = (*sorted(addresses.items()), scratch)
        if graph := self._graphs.get(key):
            self._graphs.move_to_end(key)
            graph()
            return
        with self._library.explained(f"{self._library.title}, {self.spec.engine}", self._device):
            self._bind(key, addresses, scratch)
            # The first run of a shape does work that cannot be captured, and only repeated runs are worth capturing.
            if key not in self._graphs or not self._capture(key):
                self._enqueue()
                self._remember(key, None)

    def _bind(self, key: tuple, addresses: Mapping[str, int], scratch: tuple[int, int]) -> None:
        if key != self._bound:
            self._context.set_device_memory(*scratch)
            for name, address in addresses.items():
                if not self._context.set_tensor_address(name, address):
                    raise LibraryRefusedError(f"does not take the memory of {name}: {self._library.last_error()}")
            self._bound = key

    def _remember(self, key: tuple, graph: Callable[[], None] | None) -> None:
        """Remember the arguments of a run, with its graph from the second time on; drop the least recently used."""
        self._graphs[key] = graph
        if len(self._graphs) > MOST_GRAPHS:
            self._graphs.popitem(last=False)

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._device.driver.stream):
            raise LibraryRefusedError(self._library.last_error())

    def _capture(self, key: tuple) -> bool:
        """Capture a run as a graph and launch it; return False, and never try again, if capturing fails."""
        graph = None
        if self._capturable:
            with contextlib.suppress(LibraryRefusedError, InputError, RuntimeError, MemoryError):
                graph = self._device.driver.capture(self._enqueue)
            self._capturable = graph is not None
        if graph is None:
            return False
        self._remember(key, graph)
        graph()
        return True
