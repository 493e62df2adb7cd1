"""Runs a kernel on a device as the PTX interpreter does: on numpy arrays, at the same alignment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from odin_runtime.driver import Driver, Pointer
from ptx.memory import Memory

GUARD = 0xA5
_ALIGNMENT = 256


class DeviceCode:
    """Stands in `ptx.checks` where an Interpreter does.

    The interpreter's memory is laid out in one allocation, at the same distances; what lies between
    the arrays, and arrays that are only read, have to come back as they were.
    """

    def __init__(self, driver: Driver, image: bytes) -> None:
        self._driver = driver
        self._module = driver.load(image)
        self._stream = driver.stream()

    def close(self) -> None:
        """Unload the kernels."""
        self._stream.close()
        self._module.close()

    def launch(
        self, name: str, grid: int, block: int, arguments: Sequence[Any], memory: Memory, **_: Any
    ) -> None:
        """Copy the memory to the device, run, copy it back and look at it."""
        regions = memory.regions
        low = min((region.base for region in regions), default=0) // _ALIGNMENT * _ALIGNMENT
        high = max((region.base + region.data.size for region in regions), default=low)
        size = high - low + _ALIGNMENT
        driver, stream = self._driver, self._stream
        host, device = driver.pinned(size), driver.allocate(size)
        with host, device:
            host.array[:] = GUARD
            for region in regions:
                host.array[region.base - low :][: region.data.size] = region.data
            before = host.array.copy()
            driver.copy_to_device(device.pointer, host.pointer, size, stream)
            moved = [_moved(one, low, high, device.pointer) for one in arguments]
            driver.launch(self._module.kernel(name), grid, block, moved, stream)
            driver.copy_to_host(host.pointer, device.pointer, size, stream)
            stream.synchronize()
            after = host.array.copy()
        for region in regions:
            part = slice(region.base - low, region.base - low + region.data.size)
            if region.writable:
                region.data[:] = after[part]
                before[part] = after[part]
        wrong = np.flatnonzero(before != after)
        assert not wrong.size, f"{name} wrote {wrong.size} bytes that it must not, from {wrong[0]}"


def _moved(argument: Any, low: int, high: int, device: int) -> Any:
    """An address of the interpreter's memory as one of the device."""
    if isinstance(argument, np.generic):
        return argument
    address = int(argument or 0)
    # The interpreter's addresses are far from 0, and those of empty arrays may be the end.
    return Pointer(address - low + device if low <= address <= high and address else 0)
