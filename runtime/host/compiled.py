"""A `numba.njit` whose compiled code is kept in the user's cache folder and survives a reinstallation.

Kernels are stored under a key made from the package's name, which compiled code contains, from the sources of all of
them (one may be inlined into another) and from the versions of numba, llvmlite and Python; numba adds the processor. By
default numba would keep them beside the sources, lose them with that folder and, in older versions, recompile whenever
a file's date changes.
"""

# numba has no types, so its classes count as Any:
# mypy: allow-subclassing-any

import contextlib
import functools
import hashlib
import os
import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import llvmlite
import numba

from ..errors import InputError
from .cache_folder import cache_folder, keep, keep_latest, kept
from .stopping import held_signals

PACKAGE = Path(__file__).resolve().parents[1]
# Matches sources that have, or might have, kernels: a false match only means recompiling more often.
HAS_KERNELS = re.compile(r"^(from|import)\b.*\b(numba|kernels|compiled)\b", re.MULTILINE)
FOLDER, KEY = "rpnet-kernels", re.compile("[0-9a-f]{16}")  # in the cache folder, which other programs may share
KEPT = 8  # versions: several installations may be in use alternately
KERNELS: list[Any] = []  # all kernels that were decorated in this process

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(**options: Any) -> Callable[[Function], Function]:
    """Return ``numba.njit(**options)`` with this cache, for functions called from Python; callees need plain `njit`.

    Raises:
        InputError: compilation is disabled by NUMBA_DISABLE_JIT.
    """
    if numba.config.DISABLE_JIT:
        raise InputError("NUMBA_DISABLE_JIT: got 1, but the kernels only run compiled; unset it")

    def decorate(function: Function) -> Function:
        kernel = numba.njit(**options)(function)
        with contextlib.suppress(Exception):  # numba's cache classes are private: if they change, each process compiles
            kernel._cache = _cache_class()(function)
        kernel.compile = held_signals()(kernel.compile)  # LLVM calls back into Python while compiling
        KERNELS.append(kernel)
        return cast(Function, kernel)

    return decorate


@functools.cache
def code_folder() -> Path:
    """Return the folder of the kernels compiled from the current sources; remove the least recently used versions."""
    part = Path(FOLDER) / code_key(PACKAGE)
    folder = cache_folder(str(part)) / part
    with contextlib.suppress(OSError):
        for place in (folder.parent, folder):
            place.mkdir(mode=0o755, exist_ok=True)
        os.utime(folder)
        keep_latest((path for path in folder.parent.iterdir() if KEY.fullmatch(path.name) and path.is_dir()), KEPT)
    return folder


def code_key(package: Path) -> str:
    """Return the cache key of a package's compiled kernels: it changes with its name, kernel sources and versions."""
    facts = (package.name, numba.__version__, llvmlite.__version__, sys.implementation.cache_tag)
    key = hashlib.sha256(repr(facts).encode())
    for path in sorted(package.rglob("*.py")):
        source = path.read_bytes()
        if path.name == Path(__file__).name or HAS_KERNELS.search(source.decode()):
            key.update(repr((path.relative_to(package).as_posix(), source)).encode())
    return key.hexdigest()[:16]


@functools.cache
def _cache_class() -> type:
    """Return numba's function cache class, storing into our folder and files; damaged files only cost time."""
    from numba.core import caching

    class Locator(caching._CacheLocator):
        """The location of a function's compiled code. It is always fresh, because the folder's name is the key."""

        def __init__(self, function: Callable[..., Any], file: str) -> None:
            self._py_file, self._line = file, function.__code__.co_firstlineno  # numba's warnings read `_py_file`

        @classmethod
        def from_function(cls, function: Callable[..., Any], file: str) -> "Locator | None":
            ours = Path(file).resolve().is_relative_to(PACKAGE)  # the key covers no other sources
            return cls(function, file) if ours else None

        def get_cache_path(self) -> str:
            return str(code_folder())

        def get_source_stamp(self) -> str:
            return code_folder().name

        def get_disambiguator(self) -> str:
            return str(self._line)

    class Code(caching.CompileResultCacheImpl):
        _locator_classes = (Locator,)

    class Files(caching.IndexDataCacheFile):
        """The files of a kernel's signatures and code. Both are pickles, loaded only if their hashes match."""

        def _load_index(self) -> dict[Any, Any]:
            content = kept(Path(self._index_path))
            stamp, signatures = pickle.loads(content) if content else (None, {})
            return signatures if stamp == self._source_stamp else {}

        def _save_index(self, signatures: dict[Any, Any]) -> None:
            keep(Path(self._index_path), self._dump((self._source_stamp, signatures)))

        def _load_data(self, name: str) -> tuple[Any, ...] | None:
            content = kept(Path(self._data_path(name)))
            return pickle.loads(content) if content else None

        def _save_data(self, name: str, data: tuple[Any, ...]) -> None:
            keep(Path(self._data_path(name)), self._dump(data))

    class Cache(caching.FunctionCache):
        _impl_class = Code

        def __init__(self, function: Callable[..., Any]) -> None:
            super().__init__(function)
            locator = self._impl.locator
            self._cache_file = Files(locator.get_cache_path(), self._impl.filename_base, locator.get_source_stamp())

        def load_overload(self, *arguments: Any) -> Any:
            with contextlib.suppress(Exception):
                return super().load_overload(*arguments)
            return None

        def save_overload(self, *arguments: Any) -> None:
            with contextlib.suppress(Exception):
                super().save_overload(*arguments)

    return Cache
