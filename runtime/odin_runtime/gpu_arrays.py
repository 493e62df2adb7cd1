"""Arrays on the device that other libraries hold, and scores on the device for them.

`__cuda_array_interface__` version 3 (as Numba documents it: pycuda, CuPy, Numba, PyTorch) and
DLPack (CuPy, PyTorch, JAX). Nothing is copied and no library is imported: an address is read.
"""

from __future__ import annotations

import ctypes
import math
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from odin_engines.errors import OdinError
from odin_runtime.driver import Driver, Memory

LEGACY_STREAM = 1  # how both protocols name the default stream
_DLPACK_CUDA = (2, 13)  # kDLCUDA, kDLCUDAManaged
_DLPACK_KINDS = {(0, 32): "int32", (1, 8): "uint8", (2, 32): "float32", (2, 16): "float16"}
_LEAST_RESULT = 4096


@dataclass(frozen=True)
class DeviceImages:
    """Images on the device.

    Attributes:
        pointer: the address of the first.
        shape: as numpy's; dense and row-major.
        dtype: numpy's.
        stream: whose work has to be done before they are read; None if none has.
        owner: what keeps the memory alive.
    """

    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    stream: int | None
    owner: object

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def image_bytes(self) -> int:
        """Of one image."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize


def on_device(images: object) -> bool:
    """Whether this is an array on a CUDA device."""
    if isinstance(images, np.ndarray):
        return False
    if _interface(images) is not None:
        return True
    device = getattr(images, "__dlpack_device__", None)
    return device is not None and int(device()[0]) in _DLPACK_CUDA


def device_images(images: Any, device: int, reader: int) -> DeviceImages:
    """Read where images lie on the device.

    Args:
        images: an array for which `on_device` holds.
        device: the number of the device that reads them.
        reader: the stream that reads them; a DLPack array is told of it and orders itself.

    Raises:
        OdinError: they lie on another device, or not dense and row-major.
    """
    _check_device(images, device)
    interface = _interface(images)
    if interface is not None and ("stream" in interface or not hasattr(images, "__dlpack__")):
        return _from_interface(images, interface)
    return _from_dlpack(images, device, reader)


def _interface(images: Any) -> dict[str, Any] | None:
    try:
        return getattr(images, "__cuda_array_interface__", None)
    except RuntimeError as error:  # PyTorch, of a tensor that records gradients
        raise OdinError(f"images: {error}; give images.detach()") from error


def _check_device(images: Any, device: int) -> None:
    """Check the number, where the array tells it: the interface itself has no place for it."""
    holder = getattr(images, "device", None)
    number = getattr(holder, "index", getattr(holder, "id", None))
    if isinstance(number, int) and number != device:
        raise OdinError(
            f"images lie on device {number} and the scorer is on device {device}; move them there, "
            f"or open the scorer with device={number}"
        )


def _from_interface(images: Any, interface: dict[str, Any]) -> DeviceImages:
    if interface.get("mask") is not None:
        raise OdinError("images have a mask; give an array without one")
    dtype = np.dtype(interface["typestr"])
    shape = tuple(int(size) for size in interface["shape"])
    strides = interface.get("strides")
    if strides is not None:
        _check_dense(shape, tuple(step // dtype.itemsize for step in strides))
    # Version 2 had no stream: its arrays come of the default stream.
    stream = interface.get("stream", LEGACY_STREAM)
    if stream == 0:
        raise OdinError("images name stream 0 in __cuda_array_interface__, which stands for none")
    pointer = int(interface["data"][0] or 0)
    return DeviceImages(pointer, shape, dtype, None if stream is None else int(stream), images)


class _Tensor(ctypes.Structure):
    """DLTensor of dlpack.h."""

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


def _from_dlpack(images: Any, device: int, reader: int) -> DeviceImages:
    try:
        # The capsule is not consumed: it frees the tensor when we let go of it.
        capsule = images.__dlpack__(stream=reader or LEGACY_STREAM)
    except (RuntimeError, BufferError, TypeError) as error:
        raise OdinError(f"images cannot be had through DLPack: {error}") from error
    read = ctypes.pythonapi.PyCapsule_GetPointer
    read.restype, read.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    tensor = _Tensor.from_address(read(capsule, b"dltensor"))
    if tensor.device_id != device:
        raise OdinError(
            f"images lie on device {tensor.device_id} and the scorer is on device {device}; move "
            f"them there, or open the scorer with device={tensor.device_id}"
        )
    kind = _DLPACK_KINDS.get((tensor.code, tensor.bits)) if tensor.lanes == 1 else None
    if kind is None:
        raise OdinError("images are of another type than uint8 and float32; convert them")
    shape = tuple(tensor.shape[: tensor.ndim])
    if tensor.strides:
        _check_dense(shape, tuple(tensor.strides[: tensor.ndim]))
    pointer = int(tensor.data or 0) + int(tensor.byte_offset)
    # The producer has made the reader's stream wait.
    return DeviceImages(pointer, shape, np.dtype(kind), None, (images, capsule))


def _check_dense(shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
    """Check strides, in elements; those of axes with one element or none say nothing."""
    step = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size > 1 and stride != step and 0 not in shape:
            raise OdinError(
                f"images of shape {shape} have strides {strides} and are not dense in this order; "
                "give images.contiguous() (PyTorch) or cupy.ascontiguousarray(images)"
            )
        step *= size


def stream_handle(stream: Any) -> int:
    """The CUstream behind a stream of any library, or a number.

    Raises:
        OdinError: it is no stream.
    """
    if isinstance(stream, int):
        return stream
    protocol = getattr(stream, "__cuda_stream__", None)
    if protocol is not None:
        return int((protocol() if callable(protocol) else protocol)[1])
    for name in ("cuda_stream", "ptr", "handle"):  # PyTorch, CuPy, pycuda
        handle = getattr(stream, name, None)
        if handle is not None:
            return int(handle)
    raise OdinError(f"stream is a {type(stream).__name__}; give a CUDA stream or its handle")


# Results


class ResultPool:
    """Device memory for results, used again once a result is dropped.

    It is used again for results of the same stream alone, whose order makes that safe: work of
    another stream that still reads a result has to be done before the result is dropped.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._lock = threading.Lock()
        self._all: list[Memory] = []
        self._free: dict[tuple[int, int], list[Memory]] = {}

    def take(self, size: int, stream: int) -> ResultMemory:
        """Return memory of at least `size` bytes for a result that a stream writes."""
        rounded = max(_LEAST_RESULT, 1 << (size - 1).bit_length())
        with self._lock:
            kept = self._free.setdefault((stream, rounded), [])
            memory = kept.pop() if kept else None
        if memory is None:
            memory = self._driver.allocate(rounded)
            with self._lock:
                self._all.append(memory)
        return ResultMemory(memory, lambda: self._give_back(memory, stream))

    def _give_back(self, memory: Memory, stream: int) -> None:
        """Keep the memory; calls nothing of CUDA, as a garbage collection may be behind it."""
        with self._lock:
            self._free.setdefault((stream, memory.size), []).append(memory)

    def free(self) -> None:
        """Free all memory, also that of results that are still held."""
        with self._lock:
            memories, self._all, self._free = self._all, [], {}
        for memory in memories:
            memory.free()


class ResultMemory:
    """Memory of the arrays of one call; it goes back to the pool with the last of them."""

    def __init__(self, memory: Memory, give_back: Callable[[], None]) -> None:
        self._memory = memory
        weakref.finalize(self, give_back)

    @property
    def pointer(self) -> int:
        """The address.

        Raises:
            OdinError: the scorer has been closed.
        """
        return self._memory.pointer


class DeviceArray:
    """A result on the device, which CuPy, PyTorch, Numba and pycuda take as an array.

    Attributes:
        shape: as numpy's; dense and row-major.
        dtype: numpy's.
        stream: the CUstream on which it is written; what reads it has to come after.
    """

    def __init__(
        self, memory: ResultMemory, offset: int, shape: tuple[int, ...], dtype: type, stream: int
    ) -> None:
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self.stream = stream
        self._memory = memory
        self._offset = offset

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def pointer(self) -> int:
        """The address.

        Raises:
            OdinError: the scorer has been closed.
        """
        return self._memory.pointer + self._offset

    def __getitem__(self, index: int) -> DeviceArray:
        """One row, without a copy."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        step = math.prod(self.shape[1:]) * self.dtype.itemsize
        offset = self._offset + index * step
        return DeviceArray(self._memory, offset, self.shape[1:], self.dtype.type, self.stream)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.pointer, False),
            "strides": None,
            "stream": self.stream or LEGACY_STREAM,
            "version": 3,
        }
