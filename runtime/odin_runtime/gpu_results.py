"""Scores on the device, for other libraries: memory that is used again, and arrays in it."""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from odin_engines.errors import OdinError
from odin_runtime import gpu_dlpack
from odin_runtime.driver import Driver, Memory
from odin_runtime.gpu_arrays import LEGACY_STREAM

_LEAST_RESULT = 4096
_NO_ORDER = -1  # of DLPack: whoever asks sees to the order


class NotExported(OdinError, BufferError):
    """A result cannot be handed on as asked; a BufferError, as DLPack wants it."""


class ResultPool:
    """Device memory for results, used again once a result is dropped.

    It is used again for results of the same stream alone, whose order makes that safe: work of
    another stream that still reads a result has to be done before the result is dropped.
    """

    def __init__(self, driver: Driver, device: int, come_after: Callable[[int], None]) -> None:
        """Hold nothing yet.

        Args:
            driver: of the device.
            device: its number.
            come_after: lets the later work of a stream come after all results.
        """
        self._driver = driver
        self._device = device
        self._come_after = come_after
        # One that its own thread may take again: a garbage collection gives memory back.
        self._lock = threading.RLock()
        self._all: list[Memory] = []
        self._free: dict[tuple[int, int], list[Memory]] = {}

    def take(self, size: int, stream: int) -> ResultMemory:
        """Return memory of at least `size` bytes for a result that a stream is to find."""
        rounded = max(_LEAST_RESULT, 1 << (size - 1).bit_length())
        with self._lock:
            kept = self._free.setdefault((stream, rounded), [])
            memory = kept.pop() if kept else None
        if memory is None:
            memory = self._driver.allocate(rounded)
            with self._lock:
                self._all.append(memory)
        result = ResultMemory(memory, stream, self._device, self._come_after)
        weakref.finalize(result, self._give_back, memory, stream)
        return result

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
    """Memory of the arrays of one call; it goes back to the pool with the last of them.

    Attributes:
        stream: the CUstream whose later work finds the results.
        device: number of the device.
    """

    def __init__(
        self, memory: Memory, stream: int, device: int, come_after: Callable[[int], None]
    ) -> None:
        self.stream = stream
        self.device = device
        self._memory = memory
        self._come_after = come_after

    @property
    def pointer(self) -> int:
        """The address.

        Raises:
            OdinError: the scorer has been closed.
        """
        return self._memory.pointer

    def come_after(self, reader: int) -> None:
        """Let later work of another stream find the results too."""
        if reader != self.stream:
            self._come_after(reader)


class DeviceArray:
    """A result on the device, which CuPy, PyTorch, Numba, JAX and pycuda take as an array.

    Dense and row-major. Through DLPack the reader's stream is told to wait for the result; through
    `__cuda_array_interface__` the reader is told the stream and sees to it (PyTorch does not).

    Attributes:
        shape: as numpy's.
        dtype: numpy's.
    """

    def __init__(
        self, memory: ResultMemory, offset: int, shape: tuple[int, ...], dtype: type
    ) -> None:
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self._memory = memory
        self._offset = offset

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def stream(self) -> int:
        """The CUstream whose later work finds the result."""
        return self._memory.stream

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
        return DeviceArray(
            self._memory, self._offset + index * step, self.shape[1:], self.dtype.type
        )

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3, as Numba documents it."""
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.pointer if self.nbytes else 0, False),
            "strides": None,
            "stream": self.stream,
            "version": 3,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        """kDLCUDA and the number of the device."""
        return gpu_dlpack.CUDA, self._memory.device

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """Hand the array on, as the Python array API (2024.12) has it.

        Args:
            stream: that is to read it: a handle; 1 or None for the default stream, 2 for that of
                the thread; -1 if the reader sees to the order itself.
            max_version: the newest version of DLPack that the reader takes; None for version 0.
            dl_device: where the reader wants it; only where it is.
            copy: True is refused; there is no copy to be had.

        Returns:
            A capsule, which keeps the memory until its reader is done.

        Raises:
            NotExported: a copy or another device is asked for, or stream 0, which is none.
            OdinError: the scorer has been closed.
        """
        if copy or (dl_device is not None and tuple(dl_device) != self.__dlpack_device__()):
            raise NotExported(
                f"a result on CUDA device {self._memory.device} is handed on where it lies, "
                "without a copy; copy it with the library that takes it"
            )
        if stream == 0:
            raise NotExported("stream 0 names none in DLPack; give 1 for the default stream")
        pointer = self.pointer
        if stream != _NO_ORDER:
            self._memory.come_after(LEGACY_STREAM if stream is None else stream)
        versioned = max_version is not None and max_version[0] >= 1
        device = self._memory.device
        return gpu_dlpack.exported(
            self._memory, pointer, self.shape, self.dtype, device, versioned=versioned
        )
