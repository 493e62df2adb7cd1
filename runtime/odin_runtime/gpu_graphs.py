"""CUDA graphs of batches that come again: one launch in place of hundreds.

TensorRT ties a captured graph to an execution context, its shapes and its addresses, and wants one
run of the same shape before the capture. So each kind of job has contexts of its own, which work in
the memory of all; it is run directly when it comes first, and is captured for a slot when it comes
to that slot again.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace

from odin_engines.errors import OdinError
from odin_engines.plan_messages import letting_go
from odin_runtime.driver import Driver, Graph, Stream
from odin_runtime.gpu_buffers import Regions
from odin_runtime.gpu_forms import Form, Job, Places

# Of more kinds, the one that has not come for longest has to start anew.
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


@dataclass
class Kind:
    """Jobs that equal each other.

    Attributes:
        form: with the contexts that they run in, which have run one of them.
        graphs: by number of the slot.
    """

    form: Form
    graphs: dict[int, Graph] = field(default_factory=dict)


class Graphs:
    """Queues jobs, as graphs where they come again."""

    def __init__(self, driver: Driver, form: Form, work: Regions, required: bool = False) -> None:
        """Start without graphs.

        Args:
            driver: one that has graphs.
            form: what is queued.
            work: memory that it works in.
            required: whether a job that cannot become a graph is an error. If not, it is run
                without, and a warning says so once.
        """
        self._driver = driver
        self._form = form
        self._work = work
        self._required = required
        self._kinds: dict[Job, Kind] = {}  # the one that came last is last
        self._refused: set[Job] = set()

    def run(self, job: Job, places: Places, slot: int, stream: Stream) -> None:
        """Queue a job on a stream.

        Args:
            job: the work.
            places: addresses, the same ones for the same slot.
            slot: number of the slot.
            stream: of ours, the same one for all jobs: they share memory.

        Raises:
            OdinError: it cannot be queued, or not captured where that is required.
        """
        limits = self._form.limits
        served = is_bucket(job.count, limits.minimum[0], limits.maximum[0])
        if not served or job in self._refused:
            self._form.enqueue(job, places, self._work, stream)
        elif job in self._kinds:
            self._run_again(job, places, slot, stream)
        else:
            self._run_first(job, places, stream)

    def _run_first(self, job: Job, places: Places, stream: Stream) -> None:
        if len(self._kinds) >= MOST_KINDS:
            stream.synchronize()  # it may be running
            self._drop([next(iter(self._kinds))])
        with self._driver.current():  # where TensorRT frees the contexts if this fails
            form = self._in_own_contexts(job, places, stream)
        if form is None:
            self._form.enqueue(job, places, self._work, stream)
        else:
            self._kinds[job] = Kind(form)

    @letting_go
    def _in_own_contexts(self, job: Job, places: Places, stream: Stream) -> Form | None:
        """Queue a job directly; return the form with its contexts, or None if there are none."""
        try:
            form = self._contexts(job)
        except OdinError as error:
            self._refuse(job, error)
            return None
        try:
            form.enqueue(job, places, self._work, stream)
        except BaseException:
            with suppress(OdinError):  # of a device that has failed; the first error is the cause
                stream.synchronize()  # what is queued may be using the contexts
            raise
        return form

    def _contexts(self, job: Job) -> Form:
        """Contexts for a kind of job; those for another temperature, which is no shape, will do."""
        for other, kind in self._kinds.items():
            if replace(other, temperature=job.temperature) == job:
                return kind.form
        return self._form.another()

    def _run_again(self, job: Job, places: Places, slot: int, stream: Stream) -> None:
        kind = self._kinds[job] = self._kinds.pop(job)
        if slot not in kind.graphs:
            try:
                kind.graphs[slot] = self._captured(kind.form, job, places, stream)
            except OdinError as error:
                self._refuse(job, error)
                kind.form.enqueue(job, places, self._work, stream)
                return
        kind.graphs[slot].launch(stream)

    def _captured(self, form: Form, job: Job, places: Places, stream: Stream) -> Graph:
        if not form.capturable(stream):
            raise OdinError("TensorRT for RTX rules it out")
        with self._driver.capture(stream) as capture:
            form.enqueue(job, places, self._work, stream)
        return capture.graph()

    def _refuse(self, job: Job, error: OdinError) -> None:
        """Run a kind of job directly from now on, or raise the error where that is none."""
        text = f"a batch of {job.count} cannot be captured as a CUDA graph: {error}"
        if self._required:
            raise OdinError(f"{text}; open the bundle with graphs=False") from error
        if not self._refused:
            warnings.warn(f"{text}; it runs without", RuntimeWarning, stacklevel=2)
        self._refused.add(job)

    def forget(self, work: Regions) -> None:
        """Close all graphs, as addresses change; nothing may be running."""
        self.close()
        self._work = work

    def close(self) -> None:
        """Close all graphs, and let go of the contexts; nothing may be running."""
        self._drop(list(self._kinds))

    def _drop(self, jobs: Sequence[Job]) -> None:
        graphs = [graph for job in jobs for graph in self._kinds[job].graphs.values()]
        with ExitStack() as stack:
            stack.callback(self._let_go, jobs)
            for graph in graphs:
                stack.callback(graph.close)

    def _let_go(self, jobs: Sequence[Job]) -> None:
        with self._driver.current():  # where TensorRT frees their memory
            for job in jobs:
                del self._kinds[job]


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
