"""Arrays on the device as other libraries hold them: stand-ins with the two protocols alone."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from odin_runtime.driver import Driver, Stream

CUDA, CPU = 2, 1  # kDLCUDA, kDLCPU
_CODES = {"i": 0, "u": 1, "f": 2}
_NEW = ctypes.pythonapi.PyCapsule_New
_NEW.restype, _NEW.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


class Foreign:
    """A dense array, `shift` bytes past an aligned address, written by a stream."""

    def __init__(self, driver: Driver, values: np.ndarray, stream: Stream, shift: int = 0) -> None:
        self.values = np.ascontiguousarray(values)
        self._memory = driver.allocate(self.values.nbytes + shift)
        self._source = driver.pinned(self.values.nbytes)
        self._source.array[:] = self.values.reshape(-1).view(np.uint8)
        self.pointer = self._memory.pointer + shift
        self.stream = stream
        driver.copy_to_device(self.pointer, self._source.pointer, self.values.nbytes, stream)

    def free(self) -> None:
        self._memory.free()
        self._source.free()


class WithInterface:
    """Version 3 of `__cuda_array_interface__`; `changes` replace its entries."""

    def __init__(self, array: Foreign, **changes: Any) -> None:
        self.array = array
        self.__cuda_array_interface__ = {
            "shape": array.values.shape,
            "typestr": array.values.dtype.str,
            "data": (array.pointer, False),
            "strides": None,
            "stream": array.stream.handle,
            "version": 3,
            **changes,
        }


class _Managed(ctypes.Structure):
    """DLManagedTensor of dlpack.h."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
        ("manager_ctx", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    )


class WithDlpack:
    """DLPack; it makes the reader's stream wait for its own, as the protocol asks."""

    def __init__(
        self,
        driver: Driver,
        array: Foreign,
        *,
        offset: int = 0,
        device: tuple[int, int] = (CUDA, 0),
        strides: tuple[int, ...] | None = None,
    ) -> None:
        self.array, self._driver, self._device = array, driver, device
        self.readers: list[int] = []
        shape = array.values.shape
        self._shape = (ctypes.c_int64 * len(shape))(*shape)
        self._strides = (ctypes.c_int64 * len(shape))(*strides) if strides else None
        dtype = array.values.dtype
        self._tensor = _Managed(
            data=array.pointer - offset,
            device_type=device[0],
            device_id=device[1],
            ndim=len(shape),
            code=_CODES[dtype.kind],
            bits=8 * dtype.itemsize,
            lanes=1,
            shape=ctypes.addressof(self._shape),
            strides=ctypes.addressof(self._strides) if self._strides is not None else None,
            byte_offset=offset,
        )

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device

    def __dlpack__(self, stream: int | None = None) -> Any:
        assert stream is not None and stream != 0
        self.readers.append(stream)
        event = self._driver.event()
        event.record(self.array.stream)
        reader = self._driver.foreign_stream(stream)
        reader.wait(event)
        return _NEW(ctypes.addressof(self._tensor), b"dltensor", None)


def read(driver: Driver, array: Any, stream: Stream) -> np.ndarray:
    """A result as its interface describes it, after the work of a stream."""
    interface = array.__cuda_array_interface__
    assert interface["version"] == 3 and interface["strides"] is None
    dtype, shape = np.dtype(interface["typestr"]), interface["shape"]
    size = int(np.prod(shape)) * dtype.itemsize
    with driver.pinned(size) as host:
        driver.copy_to_host(host.pointer, interface["data"][0], size, stream)
        stream.synchronize()
        values: np.ndarray = host.array.view(dtype).reshape(shape).copy()  # type: ignore[attr-defined]
    return values
