"""The driver on pycuda, in the primary context and without pycuda.autoinit.

pycuda has no CUDA graphs and cannot wrap a stream of somebody else's. Work for such a stream is
queued on a stream of ours, tied to the foreign one by two events, so that it keeps its place in
the order. pycuda tells errors by their description alone; the driver library knows the names.
"""

from __future__ import annotations

import ctypes
import threading
import traceback
import weakref
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from importlib import import_module
from typing import Any

from odin_engines.errors import OdinError
from odin_runtime import driver_reasons
from odin_runtime.driver import (
    Argument,
    Event,
    Kernel,
    Stream,
    check_launch,
    check_size,
    launch_arguments,
)
from odin_runtime.driver_resources import (
    Ledger,
    OwnedHostMemory,
    OwnedMemory,
    close_after,
    close_all,
    own,
)
from odin_runtime.pycuda_bridge import DISABLE_TIMING, Bridge

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
        self._streams: weakref.WeakSet[PycudaStream] = weakref.WeakSet()
        with self.telling("starting CUDA"):
            self.cuda.init()
        with self.telling(f"opening device {device}"):
            opened = self.cuda.Device(device)
            self.device_name: str = opened.name()
            self.compute_capability: tuple[int, int] = opened.compute_capability()
            which = self.cuda.device_attribute.MULTIPROCESSOR_COUNT
            self.multiprocessors: int = opened.get_attribute(which)
        with self.telling(f"opening the primary context of device {device}"):
            self._context = opened.retain_primary_context()

    @contextmanager
    def telling(self, doing: str) -> Iterator[None]:
        """Turn pycuda's errors in a block into ours."""
        try:
            yield
        except self.cuda.Error as error:
            text = str(error).partition("failed: ")[2].partition(" - ")[0] or str(error)
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
        for stream in list(self._streams):
            stream.settle()

    def stream(self) -> PycudaStream:
        """Return a new stream."""
        with self.within("creating a stream"):
            stream = PycudaStream(self, self._ledger, self.cuda.Stream(NON_BLOCKING))
        self._streams.add(stream)
        return stream

    def foreign_stream(self, handle: int) -> PycudaForeignStream:
        """Return the caller's stream."""
        with self.within("creating a stream"):
            bridge, ours = Bridge(handle), self.cuda.Stream(NON_BLOCKING)
            stream = PycudaForeignStream(self, self._ledger, ours, bridge)
            del ours  # see PycudaObject
            bridge.open()
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
                self.cuda.memcpy_htod_async(device, source, queue.inner)

    def copy_to_host(self, host: int, device: int, size: int, stream: Stream) -> None:
        """Queue a copy."""
        if size:
            target = (ctypes.c_uint8 * size).from_address(host)
            with self._turn(f"copying {size} bytes from the device", stream) as queue:
                self.cuda.memcpy_dtoh_async(target, device, queue.inner)

    def copy_on_device(self, to: int, source: int, size: int, stream: Stream) -> None:
        """Queue a copy."""
        if size:
            with self._turn(f"copying {size} bytes on the device", stream) as queue:
                self.cuda.memcpy_dtod_async(to, source, size, queue.inner)

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
            work.function(*scalars, grid=(grid, 1), block=(block, 1, 1), stream=queue.inner)

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
        if self._context is not None:
            close_all(self.settle, self._ledger, self._end)

    def _end(self) -> None:
        if self._thread != threading.get_ident():
            raise OdinError(
                "pycuda releases a context only in the thread that opened it; close the driver "
                "there, or use cuda-core"
            )
        context, self._context = self._context, None
        with self.telling("releasing the primary context"):
            context.detach()
        # detach() makes the context current and then takes for granted that the release undoes it.
        context_left = ctypes.c_void_p()
        driver_reasons.call("leaving", "cuCtxPopCurrent_v2", ctypes.byref(context_left))

    def __enter__(self) -> PycudaDriver:
        return self

    def __exit__(self, *raised: Any) -> None:
        close_after(raised[1], self.close)


def _nothing() -> None:
    """Memory of no bytes has nothing to give back."""


class PycudaObject:
    """An object of pycuda's, which CUDA's is destroyed with.

    So nothing but this may hold it, not even a variable of a function: the traceback of an error
    would keep it alive beyond its context.
    """

    what = ""

    def __init__(self, driver: PycudaDriver, ledger: Ledger, inner: Any) -> None:
        self._driver = driver
        self._ledger = ledger
        self._inner = inner
        ledger.add(self)

    def check_open(self) -> None:
        """Check that it has not been closed.

        Raises:
            OdinError: it has.
        """
        if self._inner is None:
            raise OdinError(f"{self.what} is used after it was closed; close it later")

    @property
    def inner(self) -> Any:
        """pycuda's object.

        Raises:
            OdinError: it has been closed.
        """
        self.check_open()
        return self._inner

    def close(self) -> None:
        """Destroy it; a second call does nothing."""
        self.release()

    def release(self) -> None:
        """Destroy it, in its context."""
        if self._ledger.remove(self):
            with self._driver.within(f"closing {self.what}"):
                self._inner = None


class PycudaStream(PycudaObject):
    """See `odin_runtime.driver.Stream`."""

    what = "a stream"

    @property
    def handle(self) -> int:
        """The CUstream."""
        return int(self.inner.handle)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Around one piece of work; the context is current."""
        yield

    def settle(self) -> None:
        """Wait for our work, unless it is being captured: there is none to wait for then."""
        if self._inner is not None:
            with self._driver.within("waiting for a stream's work"):
                if not driver_reasons.is_capturing(self.inner.handle):
                    self.inner.synchronize()

    def close(self) -> None:
        """Wait for the work and destroy the stream; a second call does nothing."""
        try:
            self.settle()
        finally:
            self.release()

    def wait(self, event: Event) -> None:
        """Let later work wait for the event."""
        awaited = own(event, PycudaEvent)
        with self._driver.within("waiting for an event"), self.turn():
            self.inner.wait_for_event(awaited.inner)

    def synchronize(self) -> None:
        """Wait on the host."""
        with self._driver.within("waiting for a stream's work"), self.turn():
            self.inner.synchronize()


class PycudaForeignStream(PycudaStream):
    """The caller's stream; `inner` is ours, on which its work is queued."""

    def __init__(self, driver: PycudaDriver, ledger: Ledger, inner: Any, bridge: Bridge) -> None:
        super().__init__(driver, ledger, inner)
        self._bridge = bridge

    @property
    def handle(self) -> int:
        """The caller's CUstream."""
        return self._bridge.foreign

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Work starts after what the foreign stream holds, which then waits for the work."""
        self._bridge.cross(self._bridge.foreign, int(self.inner.handle))
        yield
        self._bridge.cross(int(self.inner.handle), self._bridge.foreign)

    def release(self) -> None:
        """Destroy what is ours."""
        if self._inner is not None:
            with self._driver.within("closing a stream"):
                self._bridge.close()
        super().release()


class PycudaEvent(PycudaObject):
    """See `odin_runtime.driver.Event`."""

    what = "an event"

    def record(self, stream: Stream) -> None:
        """Mark the end of what the stream holds."""
        queue = own(stream, PycudaStream)
        with self._driver.within("recording an event"), queue.turn():
            self.inner.record(queue.inner)

    def synchronize(self) -> None:
        """Wait on the host."""
        with self._driver.within("waiting for an event"):
            self.inner.synchronize()

    def elapsed_ms(self, since: Event) -> float:
        """Milliseconds on the device."""
        with self._driver.within("measuring the time between two events"):
            return float(self.inner.time_since(own(since, PycudaEvent).inner))


class PycudaKernel:
    """See `odin_runtime.driver.Kernel`."""

    def __init__(self, name: str, module: PycudaModule, function: Any) -> None:
        self.name = name
        self._module = module
        self._function = function

    @property
    def function(self) -> Any:
        """pycuda's function."""
        return self._function

    def check_open(self) -> None:
        """Check that the module has not been closed.

        Raises:
            OdinError: it has.
        """
        self._module.check_open()

    def forget(self) -> None:
        """Let go of pycuda's function, which would keep the module loaded."""
        self._function = None


class PycudaModule(PycudaObject):
    """See `odin_runtime.driver.Module`."""

    what = "a module"

    def __init__(self, driver: PycudaDriver, ledger: Ledger, inner: Any) -> None:
        super().__init__(driver, ledger, inner)
        self._kernels: list[PycudaKernel] = []

    def kernel(self, name: str) -> PycudaKernel:
        """Return an exported kernel."""
        with self._driver.within(f"looking for kernel {name}"):
            kernel = PycudaKernel(name, self, self.inner.get_function(name))
        self._kernels.append(kernel)
        return kernel

    def release(self) -> None:
        """Unload it: also its kernels hold it."""
        for kernel in self._kernels:
            kernel.forget()
        super().release()
