"""The driver on NVIDIA's cuda-core.

Memory, copies, events and captures go through cuda.bindings, on which cuda-core stands: these
calls say which CUDA error they met and leave lifetimes to us. (cuda-core 1.2 keeps a loaded
library and the primary context until the thread ends.) Kernels are launched by cuda-core.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
    OpenStreams,
    OwnedHostMemory,
    OwnedMemory,
    Resource,
    close_after,
    close_all,
    own,
)

NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING
DISABLE_TIMING = 2  # CU_EVENT_DISABLE_TIMING
INVALID_VALUE = 1  # CUDA_ERROR_INVALID_VALUE


class CudaCoreDriver:
    """See `odin_runtime.driver.Driver`."""

    name = "cuda-core"
    has_graphs = True

    def __init__(self, device: int) -> None:
        """Open the device.

        Raises:
            OdinError: CUDA refuses.
        """
        self._cuda: Any = import_module("cuda.bindings.driver")
        self._core: Any = import_module("cuda.core")
        self._ledger = Ledger()
        self._streams = OpenStreams()
        self._context: Any = None
        self.call("starting CUDA", "cuInit", 0)
        self._device = self.call(f"opening device {device}", "cuDeviceGet", device)
        name = self.call("reading the device's name", "cuDeviceGetName", 256, self._device)
        self.device_name = name.split(b"\0")[0].decode(errors="replace")
        self._context = self.call(
            f"opening the primary context of device {device}",
            "cuDevicePrimaryCtxRetain",
            self._device,
        )

    def call(self, doing: str, function: str, *arguments: Any) -> Any:
        """Call a function of the driver API and return what it returns beside the status.

        Raises:
            OdinError: the status is an error.
        """
        status, *values = getattr(self._cuda, function)(*arguments)
        driver_reasons.check(doing, int(status))
        return values[0] if values else None

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the primary context current for a block."""
        if self._context is None:
            raise OdinError("the CUDA driver has been closed; open it again with open_driver")
        self.call("entering the device's context", "cuCtxPushCurrent", self._context)
        try:
            yield
        except BaseException:
            # A device that has failed fails here too; the error of the block must not be hidden.
            self._cuda.cuCtxPopCurrent()
            raise
        self.call("leaving the device's context", "cuCtxPopCurrent")

    def within(self, doing: str, function: str, *arguments: Any) -> Any:
        """As `call`, in the device's context."""
        with self.current():
            return self.call(doing, function, *arguments)

    def allocate(self, size: int) -> OwnedMemory:
        """Return uninitialised device memory."""
        check_size(size)
        doing = f"allocating {size} bytes on {self.device_name}"
        address = int(self.within(doing, "cuMemAlloc", size)) if size else 0
        give_back = self._later("freeing device memory", "cuMemFree", address)
        return OwnedMemory(self._ledger, address, size, give_back, self.settle)

    def pinned(self, size: int) -> OwnedHostMemory:
        """Return uninitialised page-locked host memory."""
        check_size(size)
        doing = f"allocating {size} bytes of page-locked memory"
        address = int(self.within(doing, "cuMemHostAlloc", size, 0)) if size else 0
        give_back = self._later("freeing page-locked memory", "cuMemFreeHost", address)
        return OwnedHostMemory(self._ledger, address, size, give_back, self.settle)

    def _later(self, doing: str, function: str, *arguments: Any) -> Callable[[], None]:
        return lambda: self.within(doing, function, *arguments)

    def settle(self) -> None:
        """Wait for the work of all streams that are in use and not being captured."""
        self._streams.settle()

    def stream(self) -> CudaCoreStream:
        """Return a new stream."""
        handle = int(self.within("creating a stream", "cuStreamCreate", NON_BLOCKING))
        return self._remembered(CudaCoreStream(self, self._ledger, handle, owned=True))

    def foreign_stream(self, handle: int) -> CudaCoreStream:
        """Return the caller's stream."""
        return self._remembered(CudaCoreStream(self, self._ledger, handle, owned=False))

    def _remembered(self, stream: CudaCoreStream) -> CudaCoreStream:
        self._streams.add(stream)
        return stream

    def event(self, timing: bool = False) -> CudaCoreEvent:
        """Return a new event."""
        flags = 0 if timing else DISABLE_TIMING
        return CudaCoreEvent(
            self, self._ledger, self.within("creating an event", "cuEventCreate", flags)
        )

    def copy_to_device(self, device: int, host: int, size: int, stream: Stream) -> None:
        """Queue a copy."""
        if size:
            doing = f"copying {size} bytes to the device"
            self.within(doing, "cuMemcpyHtoDAsync", device, host, size, stream.handle)

    def copy_to_host(self, host: int, device: int, size: int, stream: Stream) -> None:
        """Queue a copy."""
        if size:
            doing = f"copying {size} bytes from the device"
            self.within(doing, "cuMemcpyDtoHAsync", host, device, size, stream.handle)

    def copy_on_device(self, to: int, source: int, size: int, stream: Stream) -> None:
        """Queue a copy."""
        if size:
            doing = f"copying {size} bytes on the device"
            self.within(doing, "cuMemcpyDtoDAsync", to, source, size, stream.handle)

    def load(self, image: bytes) -> CudaCoreModule:
        """Load a fat binary, a cubin or PTX."""
        doing = f"loading the kernels for {self.device_name}"
        arguments: tuple[Any, ...] = (image, [], [], 0, [], [], 0)
        library = self.within(doing, "cuLibraryLoadData", *arguments)
        return CudaCoreModule(self, self._ledger, self._core, library)

    def parameter_sizes(self, doing: str, kernel: Any) -> list[int]:
        """The sizes of a kernel's parameters in bytes, of a CUkernel."""
        sizes: list[int] = []
        with self.current():
            while True:
                status, _, size = self._cuda.cuKernelGetParamInfo(kernel, len(sizes))
                if int(status) == INVALID_VALUE:  # there are no more
                    return sizes
                driver_reasons.check(doing, int(status))
                sizes.append(int(size))

    def launch(
        self,
        kernel: Kernel,
        grid: int,
        block: int,
        arguments: Sequence[Argument],
        stream: Stream,
    ) -> None:
        """Queue a kernel."""
        work = own(kernel, CudaCoreKernel)
        core = work.core
        check_launch(kernel.name, grid, block)
        config = self._core.LaunchConfig(grid=grid, block=block)
        scalars = launch_arguments(kernel.name, arguments, work.sizes)
        queue = self._core.Stream.from_handle(stream.handle)
        with self.current():
            try:
                self._core.launch(queue, config, core, *scalars)
            except Exception as error:  # cuda-core's own class is private; its text is all we need
                name, _, text = str(error).partition(": ")
                doing = f"launching {kernel.name} on {grid} blocks of {block} threads"
                raise driver_reasons.failure(doing, name, text.rstrip(".")) from error

    @contextmanager
    def capture(self, stream: Stream) -> Iterator[CudaCoreCapture]:
        """Record what the block queues as a graph."""
        mode = self._cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        with own(stream, CudaCoreStream).lock:
            self.within("starting the capture", "cuStreamBeginCapture", stream.handle, mode)
        capture = CudaCoreCapture()
        try:
            yield capture
        except BaseException:
            with self.current():
                status, graph = self._cuda.cuStreamEndCapture(stream.handle)
                if not int(status):
                    self._cuda.cuGraphDestroy(graph)
            raise
        definition = self.within("ending the capture", "cuStreamEndCapture", stream.handle)
        try:
            made = self.within("making the graph", "cuGraphInstantiate", definition, 0)
            capture.finish(CudaCoreGraph(self, self._ledger, made))
        finally:
            self.within("freeing the captured graph", "cuGraphDestroy", definition)

    def close(self) -> None:
        """Wait for the device's work, free what is left and release the primary context."""
        if self._context is not None:
            close_all(self.settle, self._ledger, self._end)

    def _end(self) -> None:
        self._context = None
        self.call("releasing the primary context", "cuDevicePrimaryCtxRelease", self._device)

    def __enter__(self) -> CudaCoreDriver:
        return self

    def __exit__(self, *raised: Any) -> None:
        close_after(raised[1], self.close)


class CudaCoreHandle(Resource):
    """Something with a handle that a function of the driver API destroys."""

    destroyer = ""

    def __init__(self, driver: CudaCoreDriver, ledger: Ledger, handle: Any) -> None:
        super().__init__(ledger, handle)
        self._driver = driver

    def _destroy(self, doing: str) -> None:
        handle, self._raw = self._raw, None
        self._driver.within(doing, self.destroyer, handle)


class CudaCoreStream(CudaCoreHandle):
    """See `odin_runtime.driver.Stream`."""

    what = "a stream"
    destroyer = "cuStreamDestroy"

    def __init__(self, driver: CudaCoreDriver, ledger: Ledger, handle: int, owned: bool) -> None:
        super().__init__(driver, ledger, handle)
        self._owned = owned
        # Against closing or capturing it while another thread, that frees memory, waits for it.
        self.lock = threading.RLock()
        if not owned:
            ledger.remove(self)  # so that nothing of ours destroys it

    @property
    def handle(self) -> int:
        """The CUstream."""
        return int(self.raw)

    def settle(self) -> None:
        """Wait for the work, unless it is being captured: there is none to wait for then."""
        with self.lock:
            if self._raw is not None:
                with self._driver.current():
                    if not driver_reasons.is_capturing(self.handle):
                        self.synchronize()

    def close(self) -> None:
        """Wait for the work and destroy the stream if it is ours; a second call does nothing."""
        try:
            if self._owned:
                self.settle()
        finally:
            self.release()

    def release(self) -> None:
        """Destroy it if it is ours."""
        with self.lock:
            super().release()
            self._raw = None

    def wait(self, event: Event) -> None:
        """Let later work wait for the event."""
        self._driver.within(
            "waiting for an event", "cuStreamWaitEvent", self.raw, own(event, CudaCoreEvent).raw, 0
        )

    def synchronize(self) -> None:
        """Wait on the host."""
        self._driver.within("waiting for a stream's work", "cuStreamSynchronize", self.raw)


class CudaCoreEvent(CudaCoreHandle):
    """See `odin_runtime.driver.Event`."""

    what = "an event"
    destroyer = "cuEventDestroy"

    def record(self, stream: Stream) -> None:
        """Mark the end of what the stream holds."""
        self._driver.within("recording an event", "cuEventRecord", self.raw, stream.handle)

    def synchronize(self) -> None:
        """Wait on the host."""
        self._driver.within("waiting for an event", "cuEventSynchronize", self.raw)

    def elapsed_ms(self, since: Event) -> float:
        """Milliseconds on the device."""
        doing = "measuring the time between two events"
        return float(
            self._driver.within(
                doing, "cuEventElapsedTime", own(since, CudaCoreEvent).raw, self.raw
            )
        )


class CudaCoreKernel:
    """See `odin_runtime.driver.Kernel`."""

    def __init__(self, name: str, module: CudaCoreModule, core: Any, sizes: list[int]) -> None:
        self.name = name
        self.sizes = sizes  # of its parameters, in bytes
        self._module = module
        self._core = core

    @property
    def core(self) -> Any:
        """cuda-core's kernel.

        Raises:
            OdinError: the module has been closed.
        """
        self._module.check_open()
        return self._core


class CudaCoreModule(CudaCoreHandle):
    """See `odin_runtime.driver.Module`."""

    what = "a module"
    destroyer = "cuLibraryUnload"

    def __init__(self, driver: CudaCoreDriver, ledger: Ledger, core: Any, library: Any) -> None:
        super().__init__(driver, ledger, library)
        self._core = core

    def kernel(self, name: str) -> CudaCoreKernel:
        """Return an exported kernel."""
        doing, driver = f"looking for kernel {name}", self._driver
        handle = driver.within(doing, "cuLibraryGetKernel", self.raw, name.encode())
        # CUDA loads a kernel when it is first used. Now, so that what is wrong with it shows here,
        # and because a capture does not stand the loading.
        driver.within(f"loading kernel {name}", "cuKernelGetFunction", handle)
        sizes = driver.parameter_sizes(doing, handle)
        return CudaCoreKernel(name, self, self._core.Kernel.from_handle(int(handle)), sizes)


class CudaCoreGraph(CudaCoreHandle):
    """See `odin_runtime.driver.Graph`."""

    what = "a graph"
    destroyer = "cuGraphExecDestroy"

    def launch(self, stream: Stream) -> None:
        """Queue the graph."""
        self._driver.within("launching a graph", "cuGraphLaunch", self.raw, stream.handle)


class CudaCoreCapture:
    """See `odin_runtime.driver.Capture`."""

    def __init__(self) -> None:
        self._graph: CudaCoreGraph | None = None

    def finish(self, graph: CudaCoreGraph) -> None:
        """Take the graph at the end of the block."""
        self._graph = graph

    def graph(self) -> CudaCoreGraph:
        """Return the graph."""
        if self._graph is None:
            raise OdinError("the capture has not ended: call graph() after the with block")
        return self._graph
