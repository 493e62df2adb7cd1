"""What a GPU pipeline holds: streams, memory, plans, kernels and graphs, and when each is free."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from odin_engines.errors import OdinError
from odin_engines.plan_records import Limits, shape_text
from odin_engines.spec import Spec
from odin_runtime.driver import Driver, Event, Stream
from odin_runtime.driver_memory import ResultHeap
from odin_runtime.driver_reasons import OutOfMemory, refuse_capturing
from odin_runtime.gpu_arrays import DeviceImages
from odin_runtime.gpu_buffers import MOST_MAGNITUDES, OutputLayout, Regions, Slot, constants
from odin_runtime.gpu_forms import Device, Form, Job, Places
from odin_runtime.gpu_graphs import Direct, Graphs, bucket
from odin_runtime.gpu_results import ResultPool
from odin_runtime.kernels import Kernels
from odin_runtime.settings import check_range

SLOTS = 2
Images = np.ndarray | DeviceImages


@dataclass(frozen=True)
class Request:
    """The settings of one call."""

    temperature: float
    magnitudes: tuple[float, ...]


@dataclass(frozen=True)
class Chunk:
    """Images `start` to `start + count` of a call, padded to `padded`."""

    start: int
    count: int
    padded: int


class Resources:
    """What a pipeline holds, from opening to closing.

    Attributes:
        driver: on which it was opened.
        device: its number.
        batch_size: the most images computed at once.
    """

    def __init__(
        self,
        driver: Driver,
        image: bytes,
        spec: Spec,
        make_form: Callable[[Device], Form],
        *,
        device: int = 0,
        graphs: bool | None = None,
        batch_size: int | None = None,
    ) -> None:
        """Allocate everything.

        Args:
            driver: stays the caller's, who closes it after the pipeline.
            image: the kernels' fat binary.
            spec: of the bundle.
            make_form: Fused or Split with its plans.
            device: the number of the driver's device.
            graphs: whether batches of a size that comes again are replayed as CUDA graphs. None:
                where the driver (cuda-core) and TensorRT can; a warning says once where TensorRT
                cannot. True: an error where they cannot. Images on the device always run directly.
            batch_size: the most images at once; None takes the largest batch that the plans take.

        Raises:
            OdinError: CUDA refuses, there is not enough memory, or the driver has no graphs.
        """
        self.driver = driver
        self._spec = spec
        self.device = device
        self._lock = threading.Lock()
        self._closed = False
        with ExitStack() as stack:
            self._upload, self._compute, self._download = (self._stream(stack) for _ in range(3))
            self._arrived, self._idle = (self._event(stack) for _ in range(2))
            self._pool = ResultPool(ResultHeap(device), self.hold_back, self._settle)
            stack.callback(self._pool.free)
            kernels = Kernels(driver, image)
            stack.callback(kernels.close)
            self._open_form(stack, kernels, make_form, batch_size)
            self.batch_size = self._form.limits.maximum[0]
            self._slots = [self._slot(stack, index) for index in range(SLOTS)]
            self._rows = 0
            self._work: Regions | None = None
            stack.callback(self._free_work)
            self._graphs = self._make_graphs(stack, graphs)
            self._make_room(Request(spec.temperature, (spec.magnitude,)))
            self._stack = stack.pop_all()

    def _stream(self, stack: ExitStack) -> Stream:
        stream = self.driver.stream()
        stack.callback(stream.close)
        return stream

    def _event(self, stack: ExitStack) -> Event:
        event = self.driver.event()
        stack.callback(event.close)
        return event

    def _open_form(
        self,
        stack: ExitStack,
        kernels: Kernels,
        make_form: Callable[[Device], Form],
        batch_size: int | None,
    ) -> None:
        zeros = MOST_MAGNITUDES
        fixed = constants(self.driver, self._spec, zeros, self._compute)
        stack.callback(fixed.free)
        self._form = make_form(Device(self.driver, kernels, fixed, self._spec))
        stack.callback(self._form.close)
        # All memory is made for these limits.
        self._form.limits = _at_most(self._form.limits, batch_size)
        most = self._form.limits.maximum[0]
        if most > zeros:
            raise OdinError(
                f"the plans take batches of {most}; open the bundle with batch_size={zeros}, or "
                "build the plans for fewer images with --maxShapes"
            )

    def _slot(self, stack: ExitStack, index: int) -> Slot:
        slot = Slot(self.driver, index, 4 * int(np.prod(self._form.limits.maximum)))
        stack.callback(slot.free)
        return slot

    def _make_graphs(self, stack: ExitStack, wanted: bool | None) -> Graphs | Direct:
        empty = Regions(self.driver, {})
        runner: Graphs | Direct
        if wanted or (wanted is None and self.driver.has_graphs):
            if not self.driver.has_graphs:
                raise OdinError(
                    f"CUDA graphs are asked for, and {self.driver.name} has none; install "
                    "cuda-core, which has, or open the bundle with graphs=False"
                )
            runner = Graphs(self.driver, self._form, empty, required=bool(wanted))
        else:
            runner = Direct(self._form, empty)
        stack.callback(runner.close)
        return runner

    # Settings and memory

    def request(self, temperature: float | None, magnitudes: Sequence[float] | None) -> Request:
        """What is asked for, checked; None takes the bundle's.

        Raises:
            OdinError: a value is out of range, or the plans have another built in.
        """
        spec = self._spec
        chosen = (spec.magnitude,) if magnitudes is None else tuple(map(float, magnitudes))
        request = Request(spec.temperature if temperature is None else float(temperature), chosen)
        if not 1 <= len(chosen) <= MOST_MAGNITUDES // 2:
            raise OdinError(f"{len(chosen)} magnitudes: give 1 to {MOST_MAGNITUDES // 2}")
        check_range(request.temperature, chosen)
        self._form.check(request.temperature, chosen)
        return request

    def _job(self, images: Images, padded: int, request: Request) -> Job:
        raw = images.dtype == np.uint8
        height, width = images.shape[1:3] if raw else images.shape[2:4]
        temperature = self._form.kernel_temperature(request.temperature)
        return Job(padded, height, width, raw, len(request.magnitudes), temperature)

    def _make_room(self, request: Request) -> None:
        """Make room for the results of one batch of any size; keeps what is large enough."""
        _, _, height, width = self._form.limits.maximum
        job = Job(self.batch_size, height, width, False, len(request.magnitudes), 1.0)
        # In smaller batches the last magnitude may be repeated, up to twice their number in all.
        rows = max(self._form.layout(job).rows, 2 * len(request.magnitudes))
        if rows <= self._rows:
            return
        self._settle()
        self._rows = 0
        self._free_work()
        for slot in self._slots:
            slot.grow(OutputLayout(self._form.limits.maximum[0], rows).size)
        self._work = self._regions(rows)
        self._graphs.forget(self._work)
        self._rows = rows

    def _regions(self, rows: int) -> Regions:
        sizes = self._form.work_sizes(rows)
        try:
            return Regions(self.driver, sizes)
        except OutOfMemory as error:
            raise OutOfMemory(
                f"{error}; {sizes['plans']} of the bytes are for the layers of the plans, whatever "
                "batch_size is: to need fewer, build the plans again with a smaller --maxShapes"
            ) from error

    def _free_work(self) -> None:
        work, self._work = self._work, None
        if work is not None:
            work.free()

    def _chunks(self, images: Images, *, padding: bool) -> Iterator[Chunk]:
        """Cut a call into batches that the plans take."""
        least, most = self._form.limits.minimum[0], self.batch_size
        for start in range(0, len(images), most):
            count = min(most, len(images) - start)
            padded = max(count, least)
            if padding and isinstance(self._graphs, Graphs):
                padded = bucket(padded, least, most)
            yield Chunk(start, count, padded)

    def _check_open(self) -> None:
        if self._closed:
            raise OdinError("the scorer has been closed; open the bundle again")

    def _check(self, images: Images) -> None:
        self._check_open()
        raw = images.dtype == np.uint8
        if self._form.raw_only and not raw:
            raise OdinError(
                "the plan takes raw uint8 images and normalises them itself; give it (N, H, W, C) "
                "uint8, or export the bundle with --input-type float32"
            )
        limits = self._form.limits
        size = tuple(images.shape[1:3] if raw else images.shape[2:4])
        low, high = limits.minimum[2:], limits.maximum[2:]
        if any(not a <= b <= c for a, b, c in zip(low, size, high, strict=True)):
            raise OdinError(
                f"the plans take images of {shape_text(low)} to {shape_text(high)} pixels, not "
                f"{shape_text(size)}; resize them, or build the plans again with --minShapes and "
                "--maxShapes"
            )

    def _repeated(self, job: Job, request: Request) -> tuple[float, ...]:
        """The magnitudes, the last one as often as a whole number of forward passes takes."""
        missing = self._form.steps(job) - len(request.magnitudes)
        return request.magnitudes + request.magnitudes[-1:] * missing

    def _places(self, slot: Slot, images: int) -> Places:
        assert slot.output is not None
        return Places(images, slot.device["settings"], slot.output.pointer)

    # Streams of callers: their owners may destroy them after any call, so none is kept.

    def _wait_for(self, *handles: int) -> None:
        """Let our computing come after the work of these streams."""
        for handle in handles:
            if handle != self._compute.handle:
                with closing(self.driver.foreign_stream(handle)) as stream:
                    self._arrived.record(stream)
                self._compute.wait(self._arrived)

    def _refuse_capturing(self, *handles: int) -> None:
        """Check that callers' streams are not being captured, before anything is queued."""
        with self.driver.current():
            for handle in handles:
                refuse_capturing(handle)

    def _hold_back(self, handle: int) -> None:
        """Let later work of a stream wait for our computing."""
        if handle != self._compute.handle:
            with closing(self.driver.foreign_stream(handle)) as stream:
                stream.wait(self._idle)

    def hold_back(self, handle: int) -> None:
        """As `_hold_back`, for those who ask from outside; after closing all work is done."""
        with self._lock:
            if not self._closed:
                self._refuse_capturing(handle)
                self._hold_back(handle)

    # Ending

    @contextmanager
    def _settling(self) -> Iterator[None]:
        """After an error, wait for what was queued, so that the next call finds all at rest."""
        try:
            yield
        except BaseException as error:
            try:
                self._settle()
            except OdinError as second:
                error.add_note(f"waiting for the device failed too: {second}")
            raise

    def _settle(self) -> None:
        with ExitStack() as stack:
            for stream in (self._upload, self._compute, self._download):
                stack.callback(stream.synchronize)
        for slot in self._slots:
            slot.reads_settings = False

    def close(self) -> None:
        """Wait for the work and free everything but results that are held; then do nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            with self._stack as stack:  # the last one first
                stack.callback(self._settle)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def _at_most(limits: Limits, batch_size: int | None) -> Limits:
    """The limits with a smaller largest batch; not below the smallest that the plans take."""
    most = limits.maximum[0]
    most = min(max(batch_size or most, limits.minimum[0]), most)
    optimum = (min(limits.optimum[0], most), *limits.optimum[1:])
    return Limits(limits.minimum, optimum, (most, *limits.maximum[1:]))
