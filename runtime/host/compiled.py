"""`numba.njit` whose results are kept in the user's cache folder and survive a reinstallation.

Kernels are kept under a key of contents: the sources of all of them (one may be part of another), the versions of
numba, llvmlite and Python. To this numba adds the processor. By itself it would keep them beside the sources, forget
them with the folder and, in older versions, compile again whenever a file's date changes.
"""

import contextlib
import functools
import hashlib
import os
import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path

import llvmlite
import numba

from ..errors import InputError
from .cache_folder import cache_folder, keep, keep_latest, kept
from .stopping import held_signals

PACKAGE = Path(__file__).resolve().parents[1]
# A source that has kernels, or one that might: too many only means compiling again more often.
HAS_KERNELS = re.compile(r"^(from|import)\b.*\b(numba|kernels|compiled)\b", re.MULTILINE)
FOLDER, KEY = "rpnet-kernels", re.compile("[0-9a-f]{16}")  # in the cache folder, which others may use as well
KEPT = 8  # versions: several installations may be in use by turns
KERNELS: list = []  # all that were decorated in this process


def compiled(**options) -> Callable:
    """``numba.njit(**options)`` for functions called from Python; what those call needs plain `njit`.

    Raises:
        InputError: numba is told not to compile.
    """
    if numba.config.DISABLE_JIT:
        raise InputError("NUMBA_DISABLE_JIT: got 1, but nothing here runs uncompiled; unset it")

    def decorate(function: Callable) -> Callable:
        kernel = numba.njit(**options)(function)
        with contextlib.suppress(Exception):  # numba promises nothing of its caches: then compiled by each process
            kernel._cache = _cache_class()(function)
        kernel.compile = held_signals()(kernel.compile)  # LLVM calls back for what it compiled or would compile
        KERNELS.append(kernel)
        return kernel

    return decorate


@functools.cache
def code_folder() -> Path:
    """Where compiled kernels lie, as the sources now stand; those of the least used other versions are removed."""
    part = Path(FOLDER) / code_key(PACKAGE)
    folder = cache_folder(str(part)) / part
    with contextlib.suppress(OSError):
        for place in (folder.parent, folder):
            place.mkdir(mode=0o755, exist_ok=True)
        os.utime(folder)
        keep_latest((path for path in folder.parent.iterdir() if KEY.fullmatch(path.name) and path.is_dir()), KEPT)
    return folder


def code_key(package: Path) -> str:
    """Name of the compiled form of a package's kernels: it changes with any source that has kernels, and versions."""
    facts = (numba.__version__, llvmlite.__version__, sys.implementation.cache_tag)
    key = hashlib.sha256(repr(facts).encode())
    for path in sorted(package.rglob("*.py")):
        source = path.read_bytes()
        if path.name == Path(__file__).name or HAS_KERNELS.search(source.decode()):
            key.update(repr((path.relative_to(package).as_posix(), source)).encode())
    return key.hexdigest()[:16]


@functools.cache
def _cache_class() -> type:
    """numba's cache of a function, in our folder and our files; what is wrong with them costs time, nothing else."""
    from numba.core import caching

    class Locator(caching._CacheLocator):
        """Tells numba where a function's compiled code lies and whether it is fresh: by its folder's name it is."""

        def __init__(self, function: Callable, file: str) -> None:
            self._py_file, self._line = file, function.__code__.co_firstlineno  # numba's warnings read the first

        @classmethod
        def from_function(cls, function: Callable, file: str) -> "Locator | None":
            ours = Path(file).resolve().is_relative_to(PACKAGE)  # the key knows of no other sources
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
        """A kernel's signatures and their code. Both are pickles: loaded only if they are what we wrote."""

        def _load_index(self) -> dict:
            content = kept(Path(self._index_path))
            stamp, signatures = pickle.loads(content) if content else (None, {})
            return signatures if stamp == self._source_stamp else {}

        def _save_index(self, signatures: dict) -> None:
            keep(Path(self._index_path), self._dump((self._source_stamp, signatures)))

        def _load_data(self, name: str) -> tuple | None:
            content = kept(Path(self._data_path(name)))
            return pickle.loads(content) if content else None

        def _save_data(self, name: str, data: tuple) -> None:
            keep(Path(self._data_path(name)), self._dump(data))

    class Cache(caching.FunctionCache):
        _impl_class = Code

        def __init__(self, function: Callable) -> None:
            super().__init__(function)
            locator = self._impl.locator
            self._cache_file = Files(locator.get_cache_path(), self._impl.filename_base, locator.get_source_stamp())

        def load_overload(self, *arguments):
            with contextlib.suppress(Exception):
                return super().load_overload(*arguments)
            return None

        def save_overload(self, *arguments) -> None:
            with contextlib.suppress(Exception):
                super().save_overload(*arguments)

    return Cache
