"""Ordering a stream of pycuda's and one that pycuda cannot wrap, through the driver library."""

from __future__ import annotations

import ctypes

from odin_runtime.driver_reasons import call

DISABLE_TIMING = 2  # CU_EVENT_DISABLE_TIMING
DOING = "ordering two streams"


class Bridge:
    """An event that one of two streams records and the other waits for.

    Not pycuda's own event, which neither tells its handle nor takes the handle of a stream. The
    context is current in all methods, each of which raises OdinError.
    """

    def __init__(self, foreign: int) -> None:
        self.foreign = foreign
        self._event = ctypes.c_void_p()

    def open(self) -> None:
        """Create the event."""
        call(DOING, "cuEventCreate", ctypes.byref(self._event), DISABLE_TIMING)

    def cross(self, first: int, second: int) -> None:
        """Let later work of `second` wait for what `first` holds now."""
        call(DOING, "cuEventRecord", self._event, ctypes.c_void_p(first))
        call(DOING, "cuStreamWaitEvent", ctypes.c_void_p(second), self._event, 0)

    def close(self) -> None:
        """Destroy the event, if there is one."""
        if self._event:
            call(DOING, "cuEventDestroy_v2", self._event)
            self._event = ctypes.c_void_p()
