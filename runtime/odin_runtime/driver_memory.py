"""Device memory by its address: whose it is, and memory that outlives the driver.

All through the driver library itself, the same with either package. The functions without a
class need a current context.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

from odin_engines.errors import OdinError
from odin_runtime.driver_reasons import call, check, status

_RELAXED = 2  # CU_STREAM_CAPTURE_MODE_RELAXED
# Of cuPointerGetAttributes: CU_POINTER_ATTRIBUTE_CONTEXT, MEMORY_TYPE, IS_MANAGED, DEVICE_ORDINAL.
_ASKED = (1, 2, 8, 9)
_NOT_CUDAS, _HOST = 0, 1  # no CUmemorytype, and CU_MEMORYTYPE_HOST, which is page-locked memory
# CUDA_ERROR_INVALID_VALUE and INVALID_CONTEXT: drivers that do not know an address may say so.
_UNKNOWN_ADDRESS = (1, 201)


class LastingMemory:
    """Device memory that holds the primary context itself, so that it may outlive its driver.

    Any thread may free it, also while streams are being captured.

    Attributes:
        size: in bytes, not 0.
        pointer: the address.
    """

    def __init__(self, device: int, size: int) -> None:
        """Allocate it, uninitialised.

        Raises:
            OdinError: CUDA refuses.
        """
        doing = f"allocating {size} bytes on device {device}"
        address, self._device, self._context = ctypes.c_uint64(), ctypes.c_int(), ctypes.c_void_p()
        call(doing, "cuDeviceGet", ctypes.byref(self._device), device)
        call(doing, "cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._device)
        try:
            with self._within(doing):
                call(doing, "cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
        except BaseException:
            call(doing, "cuDevicePrimaryCtxRelease_v2", self._device)
            raise
        self.size, self.pointer = size, address.value

    def free(self) -> None:
        """Give it back, once; CUDA waits for the device's work before it does.

        Raises:
            OdinError: CUDA refuses.
        """
        doing = "freeing device memory"
        try:
            with self._within(doing):
                call(doing, "cuMemFree_v2", ctypes.c_uint64(self.pointer))
        finally:
            call(doing, "cuDevicePrimaryCtxRelease_v2", self._device)

    @contextmanager
    def _within(self, doing: str) -> Iterator[None]:
        """In the context, and without harm to a capture: allocating and freeing would end it."""
        mode = ctypes.c_int(_RELAXED)
        call(doing, "cuCtxPushCurrent_v2", self._context)
        try:
            call(doing, "cuThreadExchangeStreamCaptureMode", ctypes.byref(mode))
            try:
                yield
            finally:
                call(doing, "cuThreadExchangeStreamCaptureMode", ctypes.byref(mode))
        finally:
            call(doing, "cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))


class ResultHeap:
    """Where a pool of results has its memory from.

    Attributes:
        device: its number.
    """

    def __init__(self, device: int) -> None:
        self.device = device

    def allocate(self, size: int) -> LastingMemory:
        """Return uninitialised memory."""
        return LastingMemory(self.device, size)

    def stream_number(self, stream: int) -> int:
        """What tells a stream from one that was destroyed and had the same handle."""
        number = ctypes.c_uint64()
        handle = ctypes.c_void_p(stream)
        call("asking for a stream's number", "cuStreamGetId", handle, ctypes.byref(number))
        return number.value


def check_readable(what: str, pointer: int, device: int) -> None:
    """Check that kernels in the current context, the primary one of a device, can read an address.

    A kernel that cannot would fail, and the process could not use the device any more.

    Args:
        what: lies there, for the message.
        pointer: the address.
        device: number of the device.

    Raises:
        OdinError: the memory is none of CUDA's, or of another device or context.
    """
    values = [ctypes.c_uint64() for _ in _ASKED]
    places = (ctypes.c_void_p * len(_ASKED))(*(ctypes.addressof(value) for value in values))
    asked = (ctypes.c_int * len(_ASKED))(*_ASKED)
    doing, address = f"asking where {what} lie", ctypes.c_uint64(pointer)
    code = status("cuPointerGetAttributes", len(_ASKED), asked, places, address)
    context, kind, managed, ordinal = (value.value for value in values)
    if code in _UNKNOWN_ADDRESS or (code == 0 and kind == _NOT_CUDAS):
        raise OdinError(
            f"{what} name an address that is no memory of CUDA's: it was freed, or is the host's; "
            f"give an array on device {device}"
        )
    check(doing, code)
    if kind == _HOST or managed:  # which every device and context can read
        return
    check_device(what, ordinal, device)
    own = ctypes.c_void_p()
    call(doing, "cuCtxGetCurrent", ctypes.byref(own))
    if context not in (0, own.value):  # memory of pools is of no context
        raise OdinError(
            f"{what} lie in another CUDA context than device {device}'s primary one, from which "
            "they cannot be read; with pycuda import pycuda.autoprimaryctx, not pycuda.autoinit"
        )


def check_device(what: str, number: int, device: int) -> None:
    """Check the number of the device that `what` lie on.

    Raises:
        OdinError: it is another than `device`.
    """
    if number != device:
        raise OdinError(
            f"{what} lie on device {number} and the scorer is on device {device}; move them there, "
            f"or open the scorer with device={number}"
        )
