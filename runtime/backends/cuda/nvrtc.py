"""Compilation of `kernels.cu` with NVRTC, which needs no CUDA toolkit, no device and no driver."""

import functools
from typing import Any

from cuda.bindings import nvrtc

from ...errors import NotAvailableError, first_line
from ...host.cache_folder import cache_folder, keep, keep_latest, kept
from ...host.files.hashes import short_key
from . import KERNELS

OPTIONS = ("--std=c++17", "--extra-device-vectorization", "-lineinfo")
FOLDER, KEPT = "cuda", 8  # subfolder of the cache folder; number of cubins kept on disk


def compile_kernels(capability: tuple[int, int]) -> bytes:
    """Return the kernels as a cubin, compiled (which takes a second) or read from the cache on disk.

    Args:
        capability: compute capability of the device, for example (8, 9).

    Raises:
        NotAvailableError: NVRTC cannot be loaded, or is older than the device.
    """
    source, options = KERNELS.read_bytes(), (f"--gpu-architecture=sm_{capability[0]}{capability[1]}", *OPTIONS)
    path = cache_folder(FOLDER) / FOLDER / f"kernels.{short_key(source, options, version())}.cubin"
    if (cubin := kept(path)) is None:
        cubin = _compiled(source, options, capability)
        keep(path, cubin)
        keep_latest(path.parent.glob("kernels.*.cubin"), KEPT)
    return cubin


@functools.cache
def version() -> tuple[int, int]:
    """Return the version of NVRTC, which is also the CUDA version that a driver must support to load its cubins.

    Raises:
        NotAvailableError: NVRTC cannot be loaded.
    """
    try:
        return tuple(_checked(nvrtc.nvrtcVersion()))
    except (RuntimeError, OSError, ImportError) as error:
        raise NotAvailableError(
            f"--backend: the CUDA kernels need NVRTC, which cannot be loaded ({first_line(error)}); "
            "pip install -r requirements-gpu.txt"
        ) from None


def _compiled(source: bytes, options: tuple[str, ...], capability: tuple[int, int]) -> bytes:
    known = _checked(nvrtc.nvrtcGetSupportedArchs())[0]
    if 10 * capability[0] + capability[1] not in known:
        raise NotAvailableError(
            f"--backend: NVRTC {'.'.join(map(str, version()))} does not support compute capability "
            f"{capability[0]}.{capability[1]}, only {', '.join(f'{n / 10:.1f}' for n in known)}; "
            "install the nvidia-cuda-nvrtc made for this GPU"
        )
    program = _checked(nvrtc.nvrtcCreateProgram(source, KERNELS.name.encode(), 0, [], []))[0]
    result = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
    if result[0]:
        log = bytearray(_checked(nvrtc.nvrtcGetProgramLogSize(program))[0])
        _checked(nvrtc.nvrtcGetProgramLog(program, log))
        raise RuntimeError(f"{KERNELS.name} does not compile: {log.decode()}")
    cubin = bytearray(_checked(nvrtc.nvrtcGetCUBINSize(program))[0])
    _checked(nvrtc.nvrtcGetCUBIN(program, cubin))
    _checked(nvrtc.nvrtcDestroyProgram(program))
    return bytes(cubin)


def _checked(result: tuple[Any, ...]) -> tuple[Any, ...]:
    if result[0]:
        raise RuntimeError(f"NVRTC: {nvrtc.nvrtcGetErrorString(result[0])[1].decode()}")
    return result[1:]
