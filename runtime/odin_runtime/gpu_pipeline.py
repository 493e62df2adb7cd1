"""Scoring on a GPU: batches, copies that overlap with computing, CUDA graphs, arrays of others.

Two slots take turns. While one batch is computed, the next is copied to the device and the scores
of the one before are copied back, each on a stream of its own:

    upload    | batch 0 | batch 1 | batch 2 |
    compute             | batch 0 | batch 1 | batch 2 |
    download                      | batch 0 | batch 1 | batch 2 |

The host waits once a batch: for the download of the slot that it is about to fill again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from odin_runtime.gpu_arrays import LEGACY_STREAM, DeviceImages
from odin_runtime.gpu_buffers import ALIGNMENT, Slot, aligned
from odin_runtime.gpu_forms import Form, Job
from odin_runtime.gpu_resources import SLOTS, Chunk, Request, Resources
from odin_runtime.gpu_results import DeviceArray


@dataclass(frozen=True)
class Batch:
    """A chunk that is in a slot."""

    slot: Slot
    chunk: Chunk
    job: Job


class Pipeline(Resources):
    """Images to scores on one device, with one form of a bundle's plans.

    Safe to use from several threads: a lock lets one call in at a time, and the device computes one
    batch at a time in any case. All memory is allocated at the opening, but for more magnitudes
    than in any call before, and for results that stay on the device.

    Leaving it as a context manager closes it.
    """

    # Images of the host

    def score(
        self,
        images: np.ndarray,
        *,
        temperature: float | None = None,
        magnitudes: Sequence[float] | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> dict[str, np.ndarray]:
        """Score images of the host.

        Args:
            images: (N, H, W, C) uint8 or (N, C, H, W) float32.
            temperature, magnitudes: None takes the bundle's.
            progress: called after each batch with its number of images.

        Returns:
            `score` float32 (magnitudes, N), `baseline` float32 (N,), `label` int64 (N,), and
            further scores float32 (N,).

        Raises:
            OdinError: the plans do not take the images or the settings, or CUDA fails.
        """
        with self._lock:
            self._check(images)
            request = self.request(temperature, magnitudes)
            self._make_room(request)
            results = _empty_results(self._form, self._job(images, 1, request), len(images))
            with self._settling():
                self._upload.wait(self._idle)  # calls that nobody waited for use the same slot
                queued: deque[Batch] = deque()
                for number, chunk in enumerate(self._chunks(images, padding=True)):
                    if len(queued) == SLOTS:
                        self._collect(queued.popleft(), results, progress)
                    slot = self._slots[number % SLOTS]
                    queued.append(self._queue(slot, images, chunk, request))
                while queued:
                    self._collect(queued.popleft(), results, progress)
        return results

    def _queue(self, slot: Slot, images: np.ndarray, chunk: Chunk, request: Request) -> Batch:
        """Queue one batch on the three streams."""
        job = self._job(images, chunk.padded, request)
        staged = _staging(slot, images, chunk.padded)
        source = images[chunk.start : chunk.start + chunk.count]
        staged[: chunk.count] = source
        staged[chunk.count :] = source[-1]
        slot.set(request.temperature, self._repeated(job, request), self._upload)
        pinned, device = slot.host_input.pointer, slot.device["input"]
        self.driver.copy_to_device(device, pinned, staged.nbytes, self._upload)
        slot.uploaded.record(self._upload)
        self._compute.wait(slot.uploaded)
        assert slot.output is not None and slot.host_output is not None
        self._graphs.run(job, self._places(slot, device), slot.index, self._compute)
        slot.computed.record(self._compute)
        self._download.wait(slot.computed)
        size = self._form.layout(job).size
        host = slot.host_output.pointer
        self.driver.copy_to_host(host, slot.output.pointer, size, self._download)
        slot.downloaded.record(self._download)
        return Batch(slot, chunk, job)

    def _collect(
        self,
        batch: Batch,
        results: dict[str, np.ndarray],
        progress: Callable[[int], object] | None,
    ) -> None:
        """Wait for a batch and read its results."""
        slot, chunk, job = batch.slot, batch.chunk, batch.job
        slot.downloaded.synchronize()
        slot.reads_settings = False
        part = slice(chunk.start, chunk.start + chunk.count)
        layout = self._form.layout(job)
        assert slot.host_output is not None
        block = slot.host_output.array
        results["label"][part] = block[: 8 * chunk.count].view(np.int64)
        for name, row in self._form.names(job).items():
            for index, target in enumerate(np.atleast_2d(results[name])):
                begin = layout.row(row + index)
                target[part] = block[begin : begin + 4 * chunk.count].view(np.float32)
        if progress:
            progress(chunk.count)

    # Images on the device

    def score_on_device(
        self,
        images: DeviceImages,
        *,
        stream: int | None = None,
        temperature: float | None = None,
        magnitudes: Sequence[float] | None = None,
    ) -> dict[str, DeviceArray]:
        """Queue scoring images on the device; returns before it is done.

        The images are read where they lie and the scores stay on the device. Only images that the
        plan cannot take as they are, read by itself at an address that is no multiple of 256 or
        fewer than its smallest batch, are copied, on the device.

        The work is done on a stream of ours, after what the caller's stream holds now and before
        what comes to it later: for the caller it has its place in that stream.

        Args:
            images: as `score`, on the device; they must stay as they are until the work is done.
            stream: the caller's; None takes the images' own, or the default stream.
            temperature, magnitudes: None takes the bundle's.

        Returns:
            As `score`, on the device. Their memory is theirs until they are dropped: see
            `gpu_results.ResultPool`.

        Raises:
            OdinError: the plans do not take the images or the settings, a stream is being captured,
                or CUDA fails.
        """
        with self._lock:
            self._check(images)
            request = self.request(temperature, magnitudes)
            callers = images.stream if stream is None else stream
            callers = LEGACY_STREAM if callers is None else callers
            before = {callers} if images.stream is None else {callers, images.stream}
            self._refuse_capturing(*before)
            self._make_room(request)
            with self._settling():
                self._wait_for(*before)
                results = self._device_results(images, request, callers)
                for chunk in self._chunks(images, padding=False):
                    self._queue_on_device(images, chunk, request, results)
                self._idle.record(self._compute)
                self._hold_back(callers)
        return results

    @property
    def reader(self) -> int:
        """The stream on which all is computed."""
        return self._compute.handle

    def _device_results(
        self, images: DeviceImages, request: Request, stream: int
    ) -> dict[str, DeviceArray]:
        job = self._job(images, 1, request)
        count = len(images)
        names = self._form.names(job)
        shapes = dict.fromkeys(names, (count,)) | {"score": (job.magnitudes, count)}
        size = aligned(8 * count) + sum(aligned(4 * int(np.prod(s))) for s in shapes.values())
        with self.driver.current():
            memory = self._pool.take(max(size, 1), stream)
        results = {"label": DeviceArray(memory, 0, (count,), np.int64)}
        offset = aligned(8 * count)
        for name, shape in shapes.items():
            results[name] = DeviceArray(memory, offset, shape, np.float32)
            offset += aligned(4 * int(np.prod(shape)))
        return results

    def _queue_on_device(
        self,
        images: DeviceImages,
        chunk: Chunk,
        request: Request,
        results: dict[str, DeviceArray],
    ) -> None:
        """Queue one batch; batches follow each other in one slot."""
        slot, job, queue = self._slots[0], self._job(images, chunk.padded, request), self._compute
        slot.set(request.temperature, self._repeated(job, request), queue)
        places = self._places(slot, self._readable(images, chunk, slot))
        assert self._work is not None
        self._form.enqueue(job, places, self._work, queue)
        copy, layout = self.driver.copy_on_device, self._form.layout(job)
        label = results["label"].pointer + 8 * chunk.start
        copy(label, places.output, 8 * chunk.count, queue)
        for name, row in self._form.names(job).items():
            for index in range(job.magnitudes if name == "score" else 1):
                target = results[name].pointer + 4 * (index * len(images) + chunk.start)
                source = places.output + layout.row(row + index)
                copy(target, source, 4 * chunk.count, queue)

    def _readable(self, images: DeviceImages, chunk: Chunk, slot: Slot) -> int:
        """The address of a batch that a plan can read."""
        size = images.image_bytes
        begin = images.pointer + chunk.start * size
        by_kernel = images.dtype == np.uint8 and not self._form.raw_only  # which takes any address
        if chunk.padded == chunk.count and (by_kernel or begin % ALIGNMENT == 0):
            return begin
        address, copy = slot.device["input"], self.driver.copy_on_device
        copy(address, begin, chunk.count * size, self._compute)
        for index in range(chunk.count, chunk.padded):
            copy(address + index * size, begin + (chunk.count - 1) * size, size, self._compute)
        return address

    def to_host(self, results: dict[str, DeviceArray]) -> dict[str, np.ndarray]:
        """Copy results of one `score_on_device` to the host and wait for them.

        Raises:
            OdinError: CUDA fails, or the pipeline has been closed.
        """
        with self._lock:
            self._check_open()
            begin = min(array.pointer for array in results.values())
            size = max(array.pointer + array.nbytes for array in results.values()) - begin
            host = self.driver.pinned(size)
            with host, self._settling():
                self.driver.copy_to_host(host.pointer, begin, size, self._compute)
                self._compute.synchronize()
                return {
                    name: _part(host.array, array.pointer - begin, array).copy()
                    for name, array in results.items()
                }


def _part(block: np.ndarray, offset: int, array: DeviceArray) -> np.ndarray:
    """An array of the device in a copy of its memory."""
    part = block[offset : offset + array.nbytes]
    return part.view(array.dtype).reshape(array.shape)


def _empty_results(form: Form, job: Job, count: int) -> dict[str, np.ndarray]:
    results = {name: np.empty(count, np.float32) for name in form.names(job)}
    results["score"] = np.empty((job.magnitudes, count), np.float32)
    return results | {"label": np.empty(count, np.int64)}


def _staging(slot: Slot, images: np.ndarray, count: int) -> np.ndarray:
    """The slot's page-locked memory as a batch of images."""
    shape = (count, *images.shape[1:])
    size = int(np.prod(shape)) * images.dtype.itemsize
    return slot.host_input.array[:size].view(images.dtype).reshape(shape)
