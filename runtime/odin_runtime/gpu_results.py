"""Scores on the device, for other libraries: memory that is used again, and arrays in it."""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from odin_engines.errors import OdinError
from odin_runtime import gpu_dlpack
from odin_runtime.driver_memory import LastingMemory, ResultHeap
from odin_runtime.gpu_arrays import LEGACY_STREAM

_LEAST_RESULT = 4096
MOST_UNUSED = 32  # results' memories that are kept, before those for no stream any more are freed
_OF_THE_THREAD = 2  # CU_STREAM_PER_THREAD: in each thread another stream
_NO_ORDER = -1  # of DLPack: whoever asks sees to the order


class NotExported(OdinError, BufferError):
    """A result cannot be handed on as asked; a BufferError, as DLPack wants it."""


class Block:
    """Memory of one result.

    Attributes:
        memory: its own.
        reader: number of the one stream on which it is read; None once others may read it too.
    """

    def __init__(self, memory: LastingMemory, reader: int) -> None:
        self.memory = memory
        self.reader: int | None = reader


class ResultPool:
    """Device memory for results, used again once a result is dropped.

    It is used again for results of the same stream alone, whose order makes that safe. What another
    stream was told of through DLPack is not: its reader may drop it with its work still queued.
    So this, and memory of streams that are gone, is freed when there is much of it.
    """

    def __init__(
        self, heap: ResultHeap, come_after: Callable[[int], None], settle: Callable[[], None]
    ) -> None:
        """Hold nothing yet.

        Args:
            heap: where the memory is from; it outlives the pool where a result is still held.
            come_after: lets the later work of a stream come after all results.
            settle: waits until all results are there.
        """
        self._heap = heap
        self._come_after = come_after
        self._settle = settle
        # One that its own thread may take again: a garbage collection gives memory back.
        self._lock = threading.RLock()
        self._unused: list[Block] = []
        self._closed = False

    def take(self, size: int, stream: int) -> ResultMemory:
        """Return memory of at least `size` bytes for a result that a stream is to find.

        Raises:
            OdinError: CUDA refuses.
        """
        rounded = max(_LEAST_RESULT, 1 << (size - 1).bit_length())
        number = self._heap.stream_number(stream)
        block = self._unused_one(rounded, number)
        if block is None:
            if len(self._unused) >= MOST_UNUSED:
                self._settle()
                self._free_unused()
            block = Block(self._heap.allocate(rounded), number)
        result = ResultMemory(block, stream, self._heap.device, self._come_after)
        # When Python ends, what is still held goes with the process.
        weakref.finalize(result, self._give_back, block).atexit = False
        return result

    def _unused_one(self, size: int, reader: int) -> Block | None:
        with self._lock:
            for block in self._unused:
                if (block.memory.size, block.reader) == (size, reader):
                    self._unused.remove(block)
                    return block
        return None

    def _give_back(self, block: Block) -> None:
        """Keep the memory: a garbage collection may be behind it; after the pool's end, free it."""
        with self._lock:
            if not self._closed:
                self._unused.append(block)
                return
        block.memory.free()

    def _free_unused(self) -> None:
        with self._lock:
            unused, self._unused = self._unused, []
        with ExitStack() as stack:
            for block in unused:
                stack.callback(block.memory.free)

    def free(self) -> None:
        """Free all memory but that of results that are held, which goes with the last of them."""
        with self._lock:
            self._closed = True
        self._free_unused()


class ResultMemory:
    """Memory of the arrays of one call; it goes back to the pool with the last of them.

    Attributes:
        pointer: the address.
        stream: the CUstream whose later work finds the results.
        device: number of the device.
    """

    def __init__(
        self, block: Block, stream: int, device: int, come_after: Callable[[int], None]
    ) -> None:
        self.pointer = block.memory.pointer
        self.stream = stream
        self.device = device
        self._block = block
        self._come_after = come_after

    def hand_to(self, reader: int) -> None:
        """Let later work of another stream find the results too; _NO_ORDER for one not told."""
        if reader == self.stream and reader != _OF_THE_THREAD:
            return
        self._block.reader = None
        if reader != _NO_ORDER:
            self._come_after(reader)


class DeviceArray:
    """A result on the device, which CuPy, PyTorch, Numba, JAX and pycuda take as an array.

    Dense and row-major. Through DLPack the reader's stream is told to wait for the result; through
    `__cuda_array_interface__` the reader is told the stream and sees to it (PyTorch does not).

    The memory is this array's until it and all that was taken from it are dropped, also after the
    scorer's end. Who reads through `__cuda_array_interface__` on another stream than `stream` has
    to keep the array until that work is done; through DLPack there is no such need.

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
        """The address."""
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
            OdinError: the stream is being captured, or is none of this context.
        """
        if copy or (dl_device is not None and tuple(dl_device) != self.__dlpack_device__()):
            raise NotExported(
                f"a result on CUDA device {self._memory.device} is handed on where it lies, "
                "without a copy; copy it with the library that takes it"
            )
        if stream == 0:
            raise NotExported("stream 0 names none in DLPack; give 1 for the default stream")
        self._memory.hand_to(LEGACY_STREAM if stream is None else stream)
        versioned = max_version is not None and max_version[0] >= 1
        device = self._memory.device
        return gpu_dlpack.exported(
            self._memory, self.pointer, self.shape, self.dtype, device, versioned=versioned
        )


@dataclass(frozen=True)
class DeviceScores:
    """What `Scorer.score_on_device` returns: as `odin_runtime.Scores`, with arrays on the device.

    Attributes:
        score: ODIN score, float32 (N,); (magnitudes, N) where several were asked for.
        baseline: largest softmax probability, float32 (N,).
        label: the predicted class, int64 (N,).
        extra: the bundle's further scores, float32 (N,) each, by name.
    """

    score: DeviceArray
    baseline: DeviceArray
    label: DeviceArray
    extra: dict[str, DeviceArray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.label)
