"""A plan that is open on a device, and the kernels TensorRT-RTX compiles for it, kept on disk."""

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
MOST_GRAPHS = 8  # captured, of one engine


class LibraryRefusedError(Exception):
    """Why the library does not do something, and whether another computer's might."""

    def __init__(self, reason: str, kind: type[InputError] = InputError) -> None:
        super().__init__(reason)
        self.kind = kind


def cache_file(kind: str, *facts: str) -> Path:
    """Where what depends on these facts is kept."""
    return cache_folder(CACHES) / CACHES / f"{kind}.{short_key(*facts)}"


def keep_file(path: Path, content: bytes) -> None:
    """Writes it, and removes what was not used for long."""
    keep(path, content)
    keep_latest(path.parent.iterdir(), MOST_CACHES)


class JitCache:
    """Kernels TensorRT-RTX compiled for this GPU, kept on disk. A cache that fails costs time, nothing else.

    Args:
        library: whose they are.
        device: the GPU.
        facts: what else they depend on.
    """

    def __init__(self, library: Any, device: Device, *facts: str) -> None:
        self._path = cache_file("kernels", library.target, library.version, device.name, *facts)
        self._cache: Any = None
        self._content = b""

    def attach(self, config: Any) -> None:
        """To the configuration of an execution context."""
        with contextlib.suppress(Exception):
            if self._cache is None:
                self._cache = config.create_runtime_cache()
                self._content = kept(self._path) or b""
                if self._content:
                    self._cache.deserialize(self._content)
            config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Writes what was compiled since."""
        with contextlib.suppress(Exception):
            content = bytes(self._cache.serialize())
            if content != self._content:
                keep_file(self._path, content)
                self._content = content


class OpenPlan:
    """An engine on a device.

    Attributes:
        spec: what it was built from.
    """

    def __init__(self, library: Any, context: Any, spec: PlanSpec, device: Device, *used: Any) -> None:
        self.spec = spec
        self._context, self._used = context, used  # let go of in this order
        self._library, self._device = library, device
        self._input = next(iter(spec.formats))
        self._shape: tuple[int, ...] = ()
        self._scratch_bytes = 0
        self._capturable = device.alone and not library.portable  # TensorRT-RTX does that itself
        self._bound: tuple | None = None
        self._graphs: collections.OrderedDict[tuple, Callable[[], None] | None] = collections.OrderedDict()

    def resize(self, channels: int, size: Shape) -> int:
        """Makes it ready for an input (I, J, K); the bytes of scratch memory it needs then.

        Raises:
            InputError: the plan does not serve this size.
        """
        shape = (1, channels, *size)
        if shape != self._shape:
            self.forget()
            with self._library.explained(f"{self._library.title}, {self.spec.engine}", self._device):
                if not self._context.set_input_shape(self._input, shape):
                    raise LibraryRefusedError(f"takes no input of {size}: {self._library.said()}")
                self._scratch_bytes = max(1, int(self._context.update_device_memory_size_for_shapes()))
            self._shape = shape
        return self._scratch_bytes

    def forget(self) -> None:
        """Lets go of captured graphs, because what they point to goes."""
        self._graphs.clear()
        self._bound = None

    def run(self, addresses: Mapping[str, int], scratch: tuple[int, int]) -> None:
        """Sends it to the device's stream.

        Args:
            addresses: device memory by the name of the input or output.
            scratch: address and size of memory it may overwrite while it runs.

        Raises:
            NotAvailableError: out of memory.
            InputError: anything else the library refuses.
        """
        key = (*sorted(addresses.items()), scratch)
        if graph := self._graphs.get(key):
            self._graphs.move_to_end(key)
            graph()
            return
        with self._library.explained(f"{self._library.title}, {self.spec.engine}", self._device):
            self._bind(key, addresses, scratch)
            # What a shape's first run does cannot be captured, and only what repeats is worth it.
            if key not in self._graphs or not self._capture(key):
                self._enqueue()
                self._remember(key, None)

    def _bind(self, key: tuple, addresses: Mapping[str, int], scratch: tuple[int, int]) -> None:
        if key != self._bound:
            self._context.set_device_memory(*scratch)
            for name, address in addresses.items():
                if not self._context.set_tensor_address(name, address):
                    raise LibraryRefusedError(f"does not take the memory of {name}: {self._library.said()}")
            self._bound = key

    def _remember(self, key: tuple, graph: Callable[[], None] | None) -> None:
        """What was run, and its graph from the second time on."""
        self._graphs[key] = graph
        if len(self._graphs) > MOST_GRAPHS:
            self._graphs.popitem(last=False)

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._device.driver.stream):
            raise LibraryRefusedError(self._library.said())

    def _capture(self, key: tuple) -> bool:
        """One run as a graph, sent; False where that cannot be had, once and for all."""
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
