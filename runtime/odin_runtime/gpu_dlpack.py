"""DLPack: the C structures in which libraries hand each other arrays (dlpack.h, versions 0 and 1).

A capsule holds the address of a structure. Who takes it over renames the capsule and calls the
structure's deleter when done; a capsule that nobody took does so itself when it is dropped.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

CUDA, CUDA_MANAGED = 2, 13  # kDLCUDA, kDLCUDAManaged
_CODES = {"i": 0, "u": 1, "f": 2}  # kDLInt, kDLUInt, kDLFloat, by numpy's kind
_LEGACY, _VERSIONED = b"dltensor", b"dltensor_versioned"


class Tensor(ctypes.Structure):
    """DLTensor. Strides are in elements; no strides stand for dense and row-major."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    """DLManagedTensor."""

    _fields_ = (("tensor", Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


class _ManagedVersioned(ctypes.Structure):
    """DLManagedTensorVersioned."""

    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", Tensor),
    )


def _python(name: str, result: Any, *arguments: Any) -> Any:
    """A function of Python's C API, with types of our own: `ctypes.pythonapi` is everybody's."""
    return ctypes.PYFUNCTYPE(result, *arguments)((name, ctypes.pythonapi))


_address_in = _python("PyCapsule_GetPointer", ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
_new = _python("PyCapsule_New", ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
# Of a capsule that is being destroyed, which must not become a Python object again.
_dying_is = _python("PyCapsule_IsValid", ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)
_dying_address = _python("PyCapsule_GetPointer", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)
_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_exported: dict[int, tuple[Any, ...]] = {}  # what a structure at an address needs to be there


@_CALLBACK
def _deleter(structure: int) -> None:
    _exported.pop(structure, None)


@_CALLBACK
def _destructor(capsule: int) -> None:
    for name in (_LEGACY, _VERSIONED):
        if _dying_is(capsule, name):
            _exported.pop(_dying_address(capsule, name), None)


# Others may call these when Python ends, after this module is gone.
for _immortal in (_deleter, _destructor, _LEGACY, _VERSIONED):
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(_immortal))


def tensor_of(capsule: Any) -> Tensor:
    """Return the tensor in an unversioned capsule, which stays its owner.

    Raises:
        ValueError: the capsule is another one, or has been taken over.
    """
    return Tensor.from_address(_address_in(capsule, _LEGACY))


def exported(
    owner: object,
    pointer: int,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    device: int,
    *,
    versioned: bool,
) -> Any:
    """Return a capsule of a dense, row-major array on a CUDA device.

    Args:
        owner: kept until the last user of the capsule is done.
        pointer: the array's address.
        shape, dtype: as numpy's; integers or floats.
        device: number of the device.
        versioned: whether as version 1 of DLPack, which asks for it; older users know version 0.
    """
    sizes = (ctypes.c_int64 * len(shape))(*shape)
    strides = (ctypes.c_int64 * len(shape))()
    step = 1
    for axis in reversed(range(len(shape))):
        strides[axis] = step
        step *= shape[axis]
    tensor = Tensor(
        data=pointer if step else None,  # as both versions want it of arrays without elements
        device_type=CUDA,
        device_id=device,
        ndim=len(shape),
        code=_CODES[dtype.kind],
        bits=8 * dtype.itemsize,
        lanes=1,
        shape=sizes,
        strides=strides,
    )
    deleter = ctypes.cast(_deleter, ctypes.c_void_p).value
    structure: ctypes.Structure
    if versioned:
        structure = _ManagedVersioned(major=1, minor=0, deleter=deleter, tensor=tensor)
    else:
        structure = _Managed(deleter=deleter, tensor=tensor)
    address = ctypes.addressof(structure)
    _exported[address] = (owner, structure, sizes, strides)
    name = _VERSIONED if versioned else _LEGACY
    return _new(address, name, ctypes.cast(_destructor, ctypes.c_void_p).value)
