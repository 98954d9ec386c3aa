"""A GPU to test on: a stand-in for the CUDA driver, built here, whose memory is the host's; or the real one.

The stand-in is a libcuda.so.1 that runs the kernels of `kernels.cu`, compiled for the CPU. Everything above the driver
is the real thing: cuda-python, the device layer, the field operations. With RPNET_TEST_GPU=1 in the environment the
tests run on this computer's GPU instead.
"""

import atexit
import contextlib
import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from runtime.backends.cuda.gpu import find_gpu
from runtime.host.cache_folder import cache_folder, keep_latest

HERE = Path(__file__).resolve().parent
KERNELS = HERE.parents[2] / "runtime" / "backends" / "fields" / "kernels.cu"
SOURCES = (HERE / "libcuda.cpp", HERE / "cuda_on_host.h", KERNELS)
FLAGS = ("-std=c++17", "-O2", "-fPIC", "-shared", "-fopenmp", "-Wl,-soname,libcuda.so.1", "-w")
FOR_GOOD = contextlib.ExitStack()
atexit.register(FOR_GOOD.close)
KEPT = 4  # stand-ins of other sources
REAL = os.environ.get("RPNET_TEST_GPU") == "1"


@functools.cache
def open_host_device():
    """Return the device to test on, its context current in this thread for good; skip the test if there is none."""
    if not REAL:
        stand_in()
    pytest.importorskip("cuda.bindings.driver", reason="needs cuda-python")
    from runtime.backends.cuda.open_device import open_device

    with pytest.MonkeyPatch.context() as patch:
        seen(patch)
        device = open_device()
    FOR_GOOD.enter_context(device.current())
    return device


@functools.cache
def stand_in() -> ctypes.CDLL:
    """Load the stand-in for the driver: whoever loads libcuda.so.1 afterwards gets it.

    Its ``host_gpu_*`` functions set how much memory it has, how many devices, and the error every call returns.
    """
    assert not REAL, "this test needs the stand-in"
    compiler = next(filter(None, map(shutil.which, ("g++", "c++", "clang++"))), None)
    if os.name != "posix" or compiler is None:
        # In CI, where all tests must run, a missing compiler is a failure.
        (pytest.fail if os.environ.get("CI") else pytest.skip)("needs Linux and a C++ compiler (apt install g++)")
    library = ctypes.CDLL(str(_built(compiler)))
    library.host_gpu_set_memory.argtypes = [ctypes.c_size_t]
    library.host_gpu_used.restype = ctypes.c_size_t
    library.host_gpu_calls.restype = ctypes.c_longlong
    return library


def seen(patch: pytest.MonkeyPatch) -> None:
    """Let the runtime find the GPU to test on, by replacing the memoised `find_gpu` with the plain one."""
    for module in ("runtime.backends.cuda.open_device", "runtime.backends.registry"):
        patch.setattr(f"{module}.find_gpu", find_gpu.__wrapped__)


def _built(compiler: str) -> Path:
    """Compile the stand-in, once for these sources, and return its path."""
    content = b"".join(path.read_bytes() for path in (*SOURCES, Path(__file__)))
    folder = cache_folder() / "tests" / hashlib.sha256(content + compiler.encode()).hexdigest()[:16]
    library = folder / "libcuda.so.1"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "kernel_table.inc").write_text(kernel_table(KERNELS.read_text(encoding="utf-8")), encoding="utf-8")
        part = folder / f"libcuda.{os.getpid()}"
        places = [f"-I{folder}", f"-I{HERE}", f"-I{KERNELS.parent}"]
        done = subprocess.run(
            [compiler, *FLAGS, *places, "-o", str(part), str(SOURCES[0])], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        part.replace(library)
        keep_latest(folder.parent.iterdir(), KEPT)
    return library


def kernel_table(source: str) -> str:
    """Return ``KERNEL(name, barriers)`` for each kernel; barriers: whether it, or a function it calls, has barriers."""
    bodies = {}
    for found in re.finditer(r"^(?!\s)[^\n;{}/#]*?\b(?P<name>\w+)\s*\([^;{}]*\)\s*\{", source, re.MULTILINE):
        bodies[found["name"]] = source[found.end() : source.find("\n}", found.end())]
    waiting = {"__syncthreads"}
    while more := {
        name for name, body in bodies.items() if name not in waiting and waiting & set(re.findall(r"\w+", body))
    }:
        waiting |= more
    kernels = re.findall(r'^extern "C" __global__ void (\w+)\(', source, re.MULTILINE)
    return "".join(f"KERNEL({name}, {str(name in waiting).lower()})\n" for name in kernels)
