"""CUDA graphs of batches that come again: one launch in place of hundreds.

TensorRT ties a captured graph to an execution context, its shapes and its addresses, and wants one
run of the same shape before the capture. So each kind of job has contexts of its own, is run
directly when it comes first, and is captured for a slot when it comes to that slot again.
"""

from __future__ import annotations

from contextlib import ExitStack

from odin_engines.errors import OdinError
from odin_runtime.driver import Driver, Graph, Stream
from odin_runtime.gpu_buffers import Regions
from odin_runtime.gpu_forms import Form, Job, Places

# Each has execution contexts of its own, which take memory; further kinds are run directly, as are
# those for whose contexts there is no memory.
MOST_KINDS = 12
# Up to here launches take longer than the work, and padding to the next bucket costs nothing.
_SMALL = 8
_FULL = 0.75


def bucket(count: int, least: int, most: int) -> int:
    """The size that a batch is padded to so that a graph serves it, or `count` for none.

    Buckets are the powers of two and `most`. A batch is padded to the next one if that is small,
    or if three quarters of it are full; otherwise padding costs more than the launches.
    """
    size = min(max(1 << (count - 1).bit_length(), least), most)
    return size if size <= _SMALL or count >= _FULL * size else count


def is_bucket(count: int, least: int, most: int) -> bool:
    """Whether a graph is made for batches of this size."""
    return count in (least, most) or count & (count - 1) == 0


class Graphs:
    """Queues jobs, as graphs where they come again."""

    def __init__(self, driver: Driver, form: Form, work: Regions) -> None:
        self._driver = driver
        self._form = form
        self._work = work
        self._most_kinds = MOST_KINDS
        self._forms: dict[Job, Form] = {}
        self._graphs: dict[tuple[Job, int], Graph] = {}

    def run(self, job: Job, places: Places, slot: int, stream: Stream) -> None:
        """Queue a job on a stream.

        Args:
            job: the work.
            places: addresses, the same ones for the same slot.
            slot: number of the slot.
            stream: of ours.

        Raises:
            OdinError: it cannot be queued, or not captured.
        """
        graph = self._graphs.get((job, slot))
        if graph is None:
            graph = self._direct_or_captured(job, places, slot, stream)
        if graph is not None:
            graph.launch(stream)

    def _direct_or_captured(
        self, job: Job, places: Places, slot: int, stream: Stream
    ) -> Graph | None:
        """Queue the job, or return its graph that is now to be launched."""
        form = self._forms.get(job)
        if form is None:
            own = self._own_contexts(job)
            (own or self._form).enqueue(job, places, self._work, stream)
            if own is not None:  # only now: what has not run once cannot be captured
                self._forms[job] = own
            return None
        try:
            with self._driver.capture(stream) as capture:
                form.enqueue(job, places, self._work, stream)
        except OdinError as error:
            raise OdinError(
                f"a batch of {job.count} cannot be captured as a CUDA graph: {error}; open the "
                "bundle with graphs=False"
            ) from error
        graph = self._graphs[job, slot] = capture.graph()
        return graph

    def _own_contexts(self, job: Job) -> Form | None:
        """The form for a kind of job that is to become graphs; None for one that is not."""
        limits = self._form.limits
        if len(self._forms) >= self._most_kinds:
            return None
        if not is_bucket(job.count, limits.minimum[0], limits.maximum[0]):
            return None
        try:
            return self._form.another()
        except OdinError:  # the GPU has no memory left for contexts, and runs the job without
            self._most_kinds = len(self._forms)
            return None

    def forget(self, work: Regions) -> None:
        """Close all graphs, as addresses change; nothing may be running."""
        self.close()
        self._work = work

    def close(self) -> None:
        """Close all graphs, and let go of the contexts."""
        with ExitStack() as stack:
            for graph in self._graphs.values():
                stack.callback(graph.close)
            self._graphs = {}
        with self._driver.current():  # where TensorRT frees their memory
            self._forms = {}
        self._most_kinds = MOST_KINDS


class Direct:
    """Queues jobs without graphs."""

    def __init__(self, form: Form, work: Regions) -> None:
        self._form = form
        self._work = work

    def run(self, job: Job, places: Places, slot: int, stream: Stream) -> None:
        """Queue a job on a stream."""
        self._form.enqueue(job, places, self._work, stream)

    def forget(self, work: Regions) -> None:
        """Take other memory to work in."""
        self._work = work

    def close(self) -> None:
        """There is nothing to close."""
