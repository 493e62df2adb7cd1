"""What pycuda cannot do and the driver library can: order foreign streams, leave a context."""

from __future__ import annotations

import ctypes

from odin_runtime.driver_reasons import call

DISABLE_TIMING = 2  # CU_EVENT_DISABLE_TIMING


def order(first: int, second: int) -> None:
    """Let later work of stream `second` wait for what `first` holds now; both by their CUstream.

    Not by pycuda's own event, which neither tells its handle nor takes that of a stream. Each time
    another one, so that threads that share a stream do not share its event.

    Raises:
        OdinError: CUDA refuses.
    """
    doing, event = "ordering two streams", ctypes.c_void_p()
    call(doing, "cuEventCreate", ctypes.byref(event), DISABLE_TIMING)
    try:
        call(doing, "cuEventRecord", event, ctypes.c_void_p(first))
        call(doing, "cuStreamWaitEvent", ctypes.c_void_p(second), event, 0)
    finally:  # CUDA keeps it until it has been reached
        call(doing, "cuEventDestroy_v2", event)


def synchronize(stream: int) -> None:
    """Wait on the host for a stream, by its CUstream.

    Raises:
        OdinError: of its work, too.
    """
    call("waiting for a stream's work", "cuStreamSynchronize", ctypes.c_void_p(stream))


class KeptContext:
    """One more hold on a device's primary context, until pycuda has given up its own.

    pycuda makes the context current to release it, and takes for granted that this takes it off the
    thread's stack, which is so for other contexts alone. A context that is gone may not be left.
    All methods raise OdinError.
    """

    def __init__(self, doing: str, device: int) -> None:
        self._device = ctypes.c_int()
        call(doing, "cuDeviceGet", ctypes.byref(self._device), device)
        call(doing, "cuDevicePrimaryCtxRetain", ctypes.byref(ctypes.c_void_p()), self._device)

    def leave(self, doing: str) -> None:
        """Take the context that is current off this thread's stack."""
        call(doing, "cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))

    def release(self, doing: str) -> None:
        """Let go of it."""
        call(doing, "cuDevicePrimaryCtxRelease_v2", self._device)
