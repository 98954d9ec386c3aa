"""`numba.njit` whose results are kept in the user's cache folder and survive a reinstallation.

Kernels are kept under a key of contents: the sources of all of them (one may be part of another), the versions of
numba, llvmlite and Python. To this numba adds the processor. By itself it would keep them beside the sources, forget
them with the folder and, in older versions, compile again whenever a file's date changes.
"""

import contextlib
import functools
import hashlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import llvmlite
import numba

from runtime.cache import cache_folder, keep_latest

PACKAGE = Path(__file__).resolve().parent
# A source that has some.
HAS_KERNELS = re.compile(r"^(from|import) (numba|runtime\.compiled|runtime\.slices)\b", re.MULTILINE)
FOLDER, KEY = "rpnet-kernels", re.compile("[0-9a-f]{16}")  # in the cache folder, which others may use as well
KEPT = 8  # versions: several installations may be in use by turns
KERNELS: list = []  # all that were decorated in this process


def compiled(**options) -> Callable:
    """``numba.njit(**options)`` for functions called from Python; what those call needs plain `njit`."""

    def decorate(function: Callable) -> Callable:
        try:
            with _own_locator():
                kernel = numba.njit(cache=True, **options)(function)
        except Exception:  # numba promises nothing about locators; its own cache does as well, just not as long
            kernel = numba.njit(cache=True, **options)(function)
        KERNELS.append(kernel)
        return kernel

    return decorate


@functools.cache
def code_folder() -> Path:
    """Where compiled kernels lie, as the sources now stand; those of the least used other versions are removed."""
    folder = cache_folder() / FOLDER / code_key(PACKAGE)
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
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


@contextlib.contextmanager
def _own_locator() -> Iterator[None]:
    """Lets functions decorated meanwhile be kept in our folder."""
    from numba.core.caching import CacheImpl

    theirs = CacheImpl._locator_classes
    CacheImpl._locator_classes = [_locator_class(), *theirs]
    try:
        yield
    finally:
        CacheImpl._locator_classes = theirs


@functools.cache
def _locator_class() -> type:
    from numba.core.caching import _CacheLocator

    class Locator(_CacheLocator):
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

    return Locator
