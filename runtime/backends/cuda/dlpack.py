"""DLPack capsules, which pass memory from one library to another without a copy (github.com/dmlc/dlpack, ABI 0)."""

import ctypes
import math
from typing import Any

import numpy as np

from ...errors import InputError

NAME, USED = b"dltensor", b"used_dltensor"
FLOAT = 2  # DLDataTypeCode
_DELETER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _Tensor(ctypes.Structure):
    """DLPack's struct DLTensor."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_number", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class _Managed(ctypes.Structure):
    """DLPack's struct DLManagedTensor."""

    _fields_ = [("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _DELETER)]


def _python(name: str, result: Any, *arguments: Any) -> Any:
    """Return a function of Python's C API with its own prototype, independent of those that other modules set."""
    return ctypes.PYFUNCTYPE(result, *arguments)((name, ctypes.pythonapi))


_new_capsule = _python("PyCapsule_New", ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
_pointer_of = _python("PyCapsule_GetPointer", ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
_rename = _python("PyCapsule_SetName", ctypes.c_int, ctypes.py_object, ctypes.c_char_p)
# A capsule being destroyed must not be reference-counted again, so it is passed as a plain address.
_is_valid = _python("PyCapsule_IsValid", ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)
_dying_pointer = _python("PyCapsule_GetPointer", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)

_lent: dict[int, tuple] = {}  # objects to keep alive until the deleter is called, by address of the managed tensor


def write_capsule(
    owner: Any,
    pointer: int,
    shape: tuple[int, ...],
    dtype: np.dtype,
    element_strides: tuple[int, ...],
    device: tuple[int, int],
) -> Any:
    """Return a capsule of floating-point memory; `owner` is kept alive until the consumer releases it.

    Args:
        owner: object that keeps the memory alive.
        pointer: address of the first element.
        shape, dtype: shape and type of the array.
        element_strides: strides along each axis, in elements.
        device: DLPack device type (1: host, 2: CUDA) and number.
    """
    sizes, steps = ((ctypes.c_int64 * len(shape))(*values) for values in (shape, element_strides))
    tensor = _Tensor(pointer, *device, len(shape), FLOAT, 8 * dtype.itemsize, 1, sizes, steps, 0)
    managed = _Managed(tensor, None, _return)
    address = ctypes.addressof(managed)
    _lent[address] = owner, managed, sizes, steps
    return _new_capsule(address, NAME, ctypes.cast(_drop, ctypes.c_void_p))


@_DELETER
def _return(address: int) -> None:
    _lent.pop(address, None)


@ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
def _drop(capsule: int) -> None:
    """Release the memory of a capsule that was destroyed without having been consumed."""
    if _is_valid(capsule, NAME):
        _lent.pop(_dying_pointer(capsule, NAME), None)


class _Borrowed:
    """Another library's memory, released together with the last array that uses it."""

    def __init__(self, address: int) -> None:
        self._managed = ctypes.cast(address, ctypes.POINTER(_Managed))

    def __del__(self) -> None:
        if deleter := self._managed.contents.deleter:
            deleter(ctypes.addressof(self._managed.contents))


def read_capsule(
    capsule: Any, device: tuple[int, int], expected: tuple[int, int]
) -> tuple[int, tuple[int, ...], np.dtype, tuple[int, ...], Any]:
    """Consume a capsule of floating-point memory.

    Returns:
        Pointer, shape, dtype, strides in bytes, and the owner that keeps the memory alive.

    Raises:
        InputError: the data are not floating point, or not on the device `expected`.
    """
    if tuple(map(int, device)) != expected:
        raise InputError(f"array: is on DLPack device {tuple(map(int, device))}, expected {expected}; copy it there")
    address = _pointer_of(capsule, NAME)
    owner = _Borrowed(address)
    _rename(capsule, USED)
    tensor = ctypes.cast(address, ctypes.POINTER(_Managed)).contents.tensor
    if tensor.code != FLOAT or tensor.lanes != 1 or tensor.bits not in (16, 32, 64):
        raise InputError(
            f"array: has DLPack type {tensor.code}, {tensor.bits} bits, {tensor.lanes} lanes, expected floating point"
        )
    dtype, shape = np.dtype(f"f{tensor.bits // 8}"), tuple(tensor.shape[: tensor.ndim])
    if tensor.strides:  # a null pointer means contiguous, in C order
        steps = tuple(tensor.strides[: tensor.ndim])
    else:
        steps = tuple(math.prod(shape[axis + 1 :]) for axis in range(tensor.ndim))
    strides = tuple(step * dtype.itemsize for step in steps)
    return tensor.data + tensor.byte_offset, shape, dtype, strides, owner
