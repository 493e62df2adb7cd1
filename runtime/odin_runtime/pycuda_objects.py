"""What the driver on pycuda hands out: streams, events, modules and kernels."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from odin_runtime import driver_reasons
from odin_runtime.driver import Event, Stream
from odin_runtime.driver_resources import Ledger, Resource, own
from odin_runtime.pycuda_bridge import order, synchronize

if TYPE_CHECKING:
    from odin_runtime.pycuda_driver import PycudaDriver


class PycudaObject(Resource):
    """An object of pycuda's, which CUDA's is destroyed with.

    So nothing but this may hold it, not even a variable of a function: the traceback of an error
    would keep it alive beyond its context.
    """

    def __init__(self, driver: PycudaDriver, ledger: Ledger, raw: Any) -> None:
        super().__init__(ledger, raw)
        self._driver = driver

    def _destroy(self, doing: str) -> None:
        with self._driver.within(doing):
            self._raw = None


class PycudaStream(PycudaObject):
    """See `odin_runtime.driver.Stream`."""

    what = "a stream"

    def __init__(self, driver: PycudaDriver, ledger: Ledger, raw: Any) -> None:
        super().__init__(driver, ledger, raw)
        # Against closing it while another thread, that frees memory, waits for it.
        self._lock = threading.RLock()

    @property
    def handle(self) -> int:
        """The CUstream."""
        return int(self.raw.handle)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Around one piece of work; the context is current."""
        yield

    def settle(self) -> None:
        """Wait for our work, unless it is being captured: there is none to wait for then."""
        with self._lock:
            if self._raw is not None:
                with self._driver.within("waiting for a stream's work"):
                    if not driver_reasons.is_capturing(self.raw.handle):
                        self.raw.synchronize()

    def close(self) -> None:
        """Wait for the work and destroy the stream; a second call does nothing."""
        try:
            self.settle()
        finally:
            self.release()

    def release(self) -> None:
        """Destroy it."""
        with self._lock:
            super().release()

    def wait(self, event: Event) -> None:
        """Let later work wait for the event."""
        awaited = own(event, PycudaEvent)
        with self._driver.within("waiting for an event"), self.turn():
            self.raw.wait_for_event(awaited.raw)

    def synchronize(self) -> None:
        """Wait on the host."""
        with self._driver.within("waiting for a stream's work"):
            self.raw.synchronize()


class PycudaForeignStream(PycudaStream):
    """The caller's stream; `raw` is ours, on which its work is queued."""

    def __init__(self, driver: PycudaDriver, ledger: Ledger, raw: Any, foreign: int) -> None:
        super().__init__(driver, ledger, raw)
        self._foreign = foreign

    @property
    def handle(self) -> int:
        """The caller's CUstream."""
        return self._foreign

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Work starts after what the foreign stream holds, which then waits for the work."""
        order(self._foreign, int(self.raw.handle))
        yield
        order(int(self.raw.handle), self._foreign)

    def synchronize(self) -> None:
        """Wait on the host, for the caller's own work too."""
        self.check_open()
        with self._driver.current():
            synchronize(self._foreign)

    def close(self) -> None:
        """Destroy what is ours, without waiting: its work goes on; a second call does nothing."""
        self.release()


class PycudaEvent(PycudaObject):
    """See `odin_runtime.driver.Event`."""

    what = "an event"

    def record(self, stream: Stream) -> None:
        """Mark the end of what the stream holds."""
        queue = own(stream, PycudaStream)
        with self._driver.within("recording an event"), queue.turn():
            self.raw.record(queue.raw)

    def synchronize(self) -> None:
        """Wait on the host."""
        with self._driver.within("waiting for an event"):
            self.raw.synchronize()

    def elapsed_ms(self, since: Event) -> float:
        """Milliseconds on the device."""
        with self._driver.within("measuring the time between two events"):
            return float(self.raw.time_since(own(since, PycudaEvent).raw))


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

    def __init__(self, driver: PycudaDriver, ledger: Ledger, raw: Any) -> None:
        super().__init__(driver, ledger, raw)
        self._kernels: list[PycudaKernel] = []

    def kernel(self, name: str) -> PycudaKernel:
        """Return an exported kernel."""
        with self._driver.within(f"looking for kernel {name}"):
            kernel = PycudaKernel(name, self, self.raw.get_function(name))
        self._kernels.append(kernel)
        return kernel

    def release(self) -> None:
        """Unload it: also its kernels hold it."""
        for kernel in self._kernels:
            kernel.forget()
        super().release()
