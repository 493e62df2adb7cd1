"""The CUDA driver behind one small protocol: cuda-core or pycuda, whichever is installed.

A driver is opened on one device and works in that device's primary context, which it shares with
PyTorch, CuPy and TensorRT. Each call makes the context current and then restores what was current
before, so a driver may be used from any thread and leaves the caller's context alone.

Everything that takes a stream is asynchronous: memory has to stay as it is until the stream, or
an event recorded in it afterwards, has been waited for. Copies are asynchronous only from and to
pinned memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from odin_engines.errors import OdinError
from odin_runtime.driver_reasons import Reason, missing_driver, missing_package

DRIVERS = ("cuda-core", "pycuda")
# Bounds of a launch along x, of every device that CUDA 13 knows.
MOST_BLOCKS = 2**31 - 1
MOST_THREADS = 1024


@dataclass(frozen=True)
class Pointer:
    """An address on the device as an argument of a kernel; 0 is a null pointer."""

    address: int


Argument = np.int32 | np.int64 | np.float32 | Pointer


class Memory(Protocol):
    """Device memory. Leaving it as a context manager frees it."""

    @property
    def size(self) -> int:
        """In bytes."""

    @property
    def pointer(self) -> int:
        """The address, aligned to 256 bytes; 0 if the size is 0.

        Raises:
            OdinError: the memory has been freed.
        """

    def free(self) -> None:
        """Wait for the work of the driver's streams and give the memory back; once."""

    def __enter__(self) -> Memory: ...

    def __exit__(self, *_: object) -> None: ...


class HostMemory(Memory, Protocol):
    """Page-locked host memory, which copies asynchronously."""

    @property
    def array(self) -> np.ndarray:
        """The memory, uint8 (size,).

        Raises:
            OdinError: the memory has been freed.
        """


class Event(Protocol):
    """A point in a stream's work."""

    def record(self, stream: Stream) -> None:
        """Mark the end of what the stream holds now; in place of an earlier mark."""

    def synchronize(self) -> None:
        """Wait on the host until the marked work is done."""

    def elapsed_ms(self, since: Event) -> float:
        """Milliseconds on the device between two recorded and reached events with timing."""

    def close(self) -> None:
        """Destroy the event; a second call does nothing."""


class Stream(Protocol):
    """Work in order."""

    @property
    def handle(self) -> int:
        """The CUstream, as TensorRT's enqueue and PyTorch's ExternalStream take it."""

    def wait(self, event: Event) -> None:
        """Let later work of this stream wait for the event; the host does not wait."""

    def synchronize(self) -> None:
        """Wait on the host until all work of the stream is done; its errors show here."""

    def close(self) -> None:
        """Wait for the work and destroy the stream; a second call does nothing.

        A foreign stream is neither waited for nor destroyed; close this object before its owner
        destroys the stream.
        """


class Kernel(Protocol):
    """A kernel of a loaded module."""

    @property
    def name(self) -> str:
        """As exported."""


class Module(Protocol):
    """A loaded fat binary, cubin or PTX."""

    def kernel(self, name: str) -> Kernel:
        """Return an exported kernel.

        Raises:
            OdinError: the module has none of this name.
        """

    def close(self) -> None:
        """Unload it; its kernels must not be launched any more."""


class Graph(Protocol):
    """Captured work that is launched as a whole: fixed addresses, sizes and arguments."""

    def launch(self, stream: Stream) -> None:
        """Queue all of it."""

    def close(self) -> None:
        """Destroy the graph; a second call does nothing."""


class Capture(Protocol):
    """What `Driver.capture` gives."""

    def graph(self) -> Graph:
        """Return the graph, after the `with` block.

        Raises:
            OdinError: the block has not ended, or not well.
        """


class Driver(Protocol):
    """One device, in its primary context. Leaving it as a context manager closes it.

    All methods raise OdinError with the name of the CUDA error, what was being done and the remedy.

    Attributes:
        name: "cuda-core" or "pycuda".
        device_name: as the driver tells it.
        has_graphs: whether `capture` works.
    """

    name: str
    device_name: str
    has_graphs: bool

    def current(self) -> AbstractContextManager[None]:
        """Make the primary context current for a block: around calls of other libraries."""

    def allocate(self, size: int) -> Memory:
        """Return uninitialised device memory of `size` bytes."""

    def pinned(self, size: int) -> HostMemory:
        """Return uninitialised page-locked host memory of `size` bytes."""

    def stream(self) -> Stream:
        """Return a new stream that does not wait for the default stream."""

    def foreign_stream(self, handle: int) -> Stream:
        """Return the caller's stream, as from torch.cuda.current_stream().cuda_stream.

        What is queued on it keeps its place in the order of the caller's own work.
        """

    def event(self, timing: bool = False) -> Event:
        """Return a new event; only one with timing has `elapsed_ms`."""

    def copy_to_device(self, device: int, host: int, size: int, stream: Stream) -> None:
        """Queue copying `size` bytes from a host address to a device address."""

    def copy_to_host(self, host: int, device: int, size: int, stream: Stream) -> None:
        """Queue copying `size` bytes from a device address to a host address."""

    def copy_on_device(self, to: int, source: int, size: int, stream: Stream) -> None:
        """Queue copying `size` bytes from one device address to another."""

    def load(self, image: bytes) -> Module:
        """Load a fat binary, a cubin or PTX."""

    def launch(
        self, kernel: Kernel, grid: int, block: int, arguments: Sequence[Argument], stream: Stream
    ) -> None:
        """Queue a kernel on `grid` blocks of `block` threads; at most 2**31 - 1 and 1024.

        The arguments are compared with the binary's parameters: number and sizes by cuda-core, the
        bytes in all by CUDA with pycuda.
        """

    def capture(self, stream: Stream) -> AbstractContextManager[Capture]:
        """Record what a block queues on the stream, and on streams that wait for it, as a graph.

        Nothing is done during the capture. An error in the block ends the capture and leaves the
        stream as it was. Without `has_graphs`: OdinError.
        """

    def close(self) -> None:
        """Wait for the driver's streams, free what is left, release the primary context; once."""

    def __enter__(self) -> Driver: ...

    def __exit__(self, *_: object) -> None: ...


def open_driver(name: str = "auto", device: int = 0) -> Driver:
    """Open a CUDA device.

    Args:
        name: "cuda-core", "pycuda", or "auto" for the first of these that works.
        device: its number, as CUDA_VISIBLE_DEVICES leaves it.

    Raises:
        OdinError: none can be opened; one line says why for each, the other what would help.
    """
    if name != "auto" and name not in DRIVERS:
        raise OdinError(f"no CUDA driver is called {name!r}; use auto, {' or '.join(DRIVERS)}")
    if device < 0:
        raise OdinError(f"device is {device}; it has to be 0 or more")
    candidates = DRIVERS if name == "auto" else (name,)
    without = missing_driver(device)  # of CUDA: whichever package would ask it
    reasons: dict[str, Reason] = {}
    for candidate in candidates:
        reason = without or missing_package(candidate)
        if reason is None:
            return _open(candidate, device)
        reasons[candidate] = reason
    raise OdinError(_refusal(reasons))


def _open(name: str, device: int) -> Driver:
    if name == "cuda-core":
        from odin_runtime.cuda_core_driver import CudaCoreDriver

        return CudaCoreDriver(device)
    from odin_runtime.pycuda_driver import PycudaDriver

    return PycudaDriver(device)


def _refusal(reasons: dict[str, Reason]) -> str:
    """Two lines: why, and what would help. A cause that all share is said once."""
    causes = list(dict.fromkeys(reason.cause for reason in reasons.values()))
    if len(causes) == 1:
        why = f"{' and '.join(reasons)}: {causes[0]}"
    else:
        why = "; ".join(f"{name}: {reason.cause}" for name, reason in reasons.items())
    # Either driver will do, so the first remedy is enough.
    return f"no CUDA driver can be opened: {why}\n{next(iter(reasons.values())).remedy}"


def launch_arguments(
    kernel: str, arguments: Sequence[Argument], sizes: Sequence[int] | None = None
) -> list[Any]:
    """Return the arguments as numpy scalars of a kernel parameter's exact size.

    Args:
        kernel: its name.
        arguments: in the order of its parameters.
        sizes: of its parameters in bytes, where the driver tells them.

    Raises:
        OdinError: one is not an Argument, so that its size could only be guessed; or they are not
            those of the kernel, which would read beyond them.
    """
    scalars: list[Any] = []
    for index, argument in enumerate(arguments):
        if isinstance(argument, Pointer):
            scalars.append(np.uint64(argument.address))
        elif isinstance(argument, np.int32 | np.int64 | np.float32):
            scalars.append(argument)
        else:
            raise OdinError(
                f"argument {index} of kernel {kernel} is a {type(argument).__name__}; give "
                "numpy.int32, numpy.int64, numpy.float32 or Pointer, as the kernel declares it"
            )
    given = [scalar.itemsize for scalar in scalars]
    if sizes is not None and given != list(sizes):
        raise OdinError(
            f"kernel {kernel} takes parameters of {list(sizes)} bytes and was given {given}; the "
            "binary is of another version than this package: rebuild it"
        )
    return scalars


def check_launch(kernel: str, grid: int, block: int) -> None:
    """Check the shape of a launch.

    Raises:
        OdinError: naming the kernel and the bound.
    """
    if not 1 <= grid <= MOST_BLOCKS:
        raise OdinError(f"kernel {kernel}: grid is {grid}; it has to be 1 to {MOST_BLOCKS}")
    if not 1 <= block <= MOST_THREADS:
        raise OdinError(f"kernel {kernel}: block is {block}; it has to be 1 to {MOST_THREADS}")


def check_size(size: int) -> None:
    """Check a size in bytes.

    Raises:
        OdinError: it is negative.
    """
    if size < 0:
        raise OdinError(f"a size of {size} bytes was asked for; it has to be 0 or more")
