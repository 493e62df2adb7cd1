"""The driver on pycuda, in the primary context and without pycuda.autoinit.

pycuda has no CUDA graphs and cannot wrap a stream of somebody else's. Work for such a stream is
queued on a stream of ours, tied to the foreign one by two events, so that it keeps its place in
the order. pycuda tells errors by their description alone; the driver library knows the names.
"""

from __future__ import annotations

import atexit
import ctypes
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from importlib import import_module
from typing import Any

from odin_engines.errors import OdinError
from odin_runtime import driver_reasons
from odin_runtime.driver import (
    Argument,
    Kernel,
    Stream,
    check_launch,
    check_size,
    launch_arguments,
)
from odin_runtime.driver_resources import (
    Ledger,
    OpenStreams,
    OwnedHostMemory,
    OwnedMemory,
    close_after,
    close_all,
    own,
)
from odin_runtime.pycuda_bridge import DISABLE_TIMING, KeptContext
from odin_runtime.pycuda_objects import (
    PycudaEvent,
    PycudaForeignStream,
    PycudaKernel,
    PycudaModule,
    PycudaStream,
)

NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING


class PycudaDriver:
    """See `odin_runtime.driver.Driver`."""

    name = "pycuda"
    has_graphs = False

    def __init__(self, device: int) -> None:
        """Open the device.

        Raises:
            OdinError: CUDA refuses.
        """
        self.cuda: Any = import_module("pycuda.driver")
        self._ledger = Ledger()
        self._context: Any = None
        self._thread = threading.get_ident()
        self._streams = OpenStreams()
        with self.telling("starting CUDA"):
            self.cuda.init()
        with self.telling(f"opening device {device}"):
            opened = self.cuda.Device(device)
            self.device_name: str = opened.name()
        doing = f"opening the primary context of device {device}"
        self._kept = KeptContext(doing, device)
        try:
            with self.telling(doing):
                self._context = opened.retain_primary_context()
        except OdinError:
            self._kept.release(doing)
            raise
        atexit.register(self._end_with_process)

    @contextmanager
    def telling(self, doing: str) -> Iterator[None]:
        """Turn pycuda's errors in a block into ours."""
        try:
            yield
        except (self.cuda.Error, UnicodeDecodeError) as error:
            said = _said(error)
            text = said.partition("failed: ")[2].partition(" - ")[0] or said
            name = driver_reasons.names_by_text().get(text, type(error).__name__)
            # pycuda's frames would keep streams and modules alive beyond their context.
            traceback.clear_frames(error.__traceback__)
            raise driver_reasons.failure(doing, name, text) from error

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the primary context current for a block."""
        if self._context is None:
            raise OdinError("the CUDA driver has been closed; open it again with open_driver")
        with self.telling("entering the device's context"):
            self._context.push()
        try:
            yield
        except BaseException:
            # A device that has failed fails here too; the error of the block must not be hidden.
            with suppress(self.cuda.Error):
                self.cuda.Context.pop()
            raise
        with self.telling("leaving the device's context"):
            self.cuda.Context.pop()

    @contextmanager
    def within(self, doing: str) -> Iterator[None]:
        """As `telling`, in the device's context."""
        with self.current(), self.telling(doing):
            yield

    @contextmanager
    def _turn(self, doing: str, stream: Stream) -> Iterator[PycudaStream]:
        """As `within`, for one piece of work of a stream."""
        queue = own(stream, PycudaStream)
        with self.within(doing), queue.turn():
            yield queue

    def allocate(self, size: int) -> OwnedMemory:
        """Return uninitialised device memory."""
        check_size(size)
        if not size:
            return OwnedMemory(self._ledger, 0, 0, _nothing, self.settle)
        with self.within(f"allocating {size} bytes on {self.device_name}"):
            allocation = self.cuda.mem_alloc(size)

        def give_back() -> None:
            with self.within("freeing device memory"):
                allocation.free()

        return OwnedMemory(self._ledger, int(allocation), size, give_back, self.settle)

    def pinned(self, size: int) -> OwnedHostMemory:
        """Return uninitialised page-locked host memory."""
        check_size(size)
        if not size:
            return OwnedHostMemory(self._ledger, 0, 0, _nothing, self.settle)
        with self.within(f"allocating {size} bytes of page-locked memory"):
            array = self.cuda.pagelocked_empty(size, "uint8")

        def give_back() -> None:
            with self.within("freeing page-locked memory"):
                array.base.free()

        return OwnedHostMemory(self._ledger, array.ctypes.data, size, give_back, self.settle)

    def settle(self) -> None:
        """Wait for the work of all streams that are in use and not being captured."""
        self._streams.settle()

    def stream(self) -> PycudaStream:
        """Return a new stream."""
        with self.within("creating a stream"):
            stream = PycudaStream(self, self._ledger, self.cuda.Stream(NON_BLOCKING))
        self._streams.add(stream)
        return stream

    def foreign_stream(self, handle: int) -> PycudaForeignStream:
        """Return the caller's stream."""
        with self.within("creating a stream"):
            ours = self.cuda.Stream(NON_BLOCKING)
            stream = PycudaForeignStream(self, self._ledger, ours, handle)
            del ours  # see PycudaObject
        self._streams.add(stream)
        return stream

    def event(self, timing: bool = False) -> PycudaEvent:
        """Return a new event."""
        with self.within("creating an event"):
            return PycudaEvent(self, self._ledger, self.cuda.Event(0 if timing else DISABLE_TIMING))

    def copy_to_device(self, device: int, host: int, size: int, stream: Stream) -> None:
        """Queue a copy."""
        if size:
            source = (ctypes.c_uint8 * size).from_address(host)
            with self._turn(f"copying {size} bytes to the device", stream) as queue:
                self.cuda.memcpy_htod_async(device, source, queue.raw)

    def copy_to_host(self, host: int, device: int, size: int, stream: Stream) -> None:
        """Queue a copy."""
        if size:
            target = (ctypes.c_uint8 * size).from_address(host)
            with self._turn(f"copying {size} bytes from the device", stream) as queue:
                self.cuda.memcpy_dtoh_async(target, device, queue.raw)

    def copy_on_device(self, to: int, source: int, size: int, stream: Stream) -> None:
        """Queue a copy."""
        if size:
            with self._turn(f"copying {size} bytes on the device", stream) as queue:
                self.cuda.memcpy_dtod_async(to, source, size, queue.raw)

    def load(self, image: bytes) -> PycudaModule:
        """Load a fat binary, a cubin or PTX."""
        with self.within(f"loading the kernels for {self.device_name}"):
            return PycudaModule(self, self._ledger, self.cuda.module_from_buffer(image))

    def launch(
        self,
        kernel: Kernel,
        grid: int,
        block: int,
        arguments: Sequence[Argument],
        stream: Stream,
    ) -> None:
        """Queue a kernel."""
        work = own(kernel, PycudaKernel)
        work.check_open()
        check_launch(kernel.name, grid, block)
        scalars = launch_arguments(kernel.name, arguments)
        doing = f"launching {kernel.name} on {grid} blocks of {block} threads"
        with self._turn(doing, stream) as queue:
            work.function(*scalars, grid=(grid, 1), block=(block, 1, 1), stream=queue.raw)

    def capture(self, stream: Stream) -> AbstractContextManager[Any]:
        """Refuse: pycuda has no graphs.

        Raises:
            OdinError: always.
        """
        raise OdinError(
            "pycuda has no CUDA graphs; install cuda-core, which has: "
            'pip install "cuda-core[cu13]", or run without graphs'
        )

    def close(self) -> None:
        """Wait for the device's work, free what is left and release the primary context."""
        if self._context is None:
            return
        if self._thread != threading.get_ident():
            raise OdinError(
                "pycuda releases a context only in the thread that opened it; close the driver "
                "there, or use cuda-core"
            )
        atexit.unregister(self._end_with_process)
        close_all(self.settle, self._ledger, self._end)

    def _end_with_process(self) -> None:
        """Close what nobody has closed: pycuda itself would not release a primary context well."""
        with suppress(OdinError):  # nobody is left to be told
            self.close()

    def _end(self) -> None:
        context, self._context = self._context, None
        doing = "releasing the primary context"
        try:
            with self.telling(doing):
                context.detach()
            self._kept.leave(doing)
        finally:
            self._kept.release(doing)

    def __enter__(self) -> PycudaDriver:
        return self

    def __exit__(self, *raised: Any) -> None:
        close_after(raised[1], self.close)


def _said(error: Exception) -> str:
    """The text of an error of pycuda's.

    That of a load that CUDA refuses at once ends with a buffer that nobody has written to. Where
    this is no UTF-8, Python's own error takes the place of pycuda's, and holds its text.
    """
    if isinstance(error, UnicodeDecodeError):
        return error.object.decode(errors="replace")
    return str(error)


def _nothing() -> None:
    """Memory of no bytes has nothing to give back."""
