"""OpenVINO on the CPU: a float32 graph in float32 or bfloat16, and others as they are written.

Of a graph with bfloat16 in it, what is bfloat16 is computed in it, and what is float32 in that. Of
one with float16 in it, weights and casts are as written, and everything is computed in float32.

A graph is compiled for the sizes that it is given: OpenVINO then fuses the element-wise parts of
the backward pass, which it does not for sizes that may change. After many sizes, one that comes
once goes to a graph that takes any.
"""

from __future__ import annotations

import functools
import re
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from odin_engines.cores import streams_of, threads_of
from odin_engines.engine import Arrays, Session, Tuning, missing_package
from odin_engines.errors import OdinError
from odin_engines.files import keep_within
from odin_engines.spec import Precision

_WRITTEN = ("f16", "bf16")  # element types that only a graph of such a precision holds
# Each takes the memory of its weights anew, and seconds to compile.
_MOST_SIZES = 12
_MOST_BYTES = 2 << 30  # of weights
_IDLE_CALLS = 100  # without which a size keeps its graph when there is no room for others
_CACHE_BYTES = 2 << 30

# Where in its source code OpenVINO raised what it tells.
_PLACE = re.compile(r"(Exception from|Check '.*?' failed at) src/\S+:\d+:|\[ GENERAL_ERROR \]")

_Sizes = tuple[tuple[str, tuple[int, ...]], ...]
_Key = tuple[_Sizes | None, bool]  # of any sizes: None; whether several batches come at once


_core_lock = threading.Lock()


def the_core() -> Any:
    """The openvino.Core of this process, which is never freed.

    The CPU plugin of a core gives the thread a stack for signals, and puts the one before in its
    place when it is freed. Of two cores freed in the order they were made, the second puts back the
    first one's, which is gone: the next Ctrl-C then ends the process with a segmentation fault.
    """
    with _core_lock:
        return _made_core()


@functools.cache
def _made_core() -> Any:
    import openvino

    return openvino.Core()


def unavailable(precision: Precision) -> str | None:
    """Why OpenVINO cannot be used here in this precision, and the remedy; None if it can."""
    missing = missing_package("openvino", "pip install openvino")
    if missing or precision != "bf16":
        return missing
    if "BF16" in the_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return None
    return "this CPU has no bfloat16 instructions: use --precision fp32"


def open_graph(graph: Path, precision: Precision, tuning: Tuning) -> Session:
    """Open an ONNX file on the CPU; it is compiled when it is first given something of a size.

    Raises:
        OdinError: OpenVINO refuses the file, or it is a float32 graph and is to run in float16.
    """
    try:
        model = the_core().read_model(str(graph))
    except RuntimeError as error:
        raise OdinError(f"OpenVINO cannot open {graph}: {error}") from error
    written = any(
        output.get_element_type().get_type_name() in _WRITTEN
        for op in model.get_ops()
        for output in op.outputs()
    )
    if precision == "fp16" and not written:
        raise OdinError(
            f"{graph} is a float32 graph, which OpenVINO does not compute in fp16; use "
            "--precision fp32 or bf16"
        )
    hinted = precision == "bf16" and not written
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "bf16" if hinted else "f32"}
    if threads := threads_of(tuning):
        settings["INFERENCE_NUM_THREADS"] = threads
    if tuning.cache:
        keep_within(tuning.cache, "*.blob", _CACHE_BYTES)
    return _OpenVinoSession(model, settings, tuning, graph)


class _OpenVinoSession(Session):
    def __init__(self, model: Any, settings: dict[str, Any], tuning: Tuning, graph: Path) -> None:
        self._model = model
        self._settings = settings
        self._cache = tuning.cache
        self.streams = streams_of(tuning)
        self._graph = graph
        self._most = min(_MOST_SIZES, _MOST_BYTES // max(graph.stat().st_size, 1))
        self._slots: dict[_Key, _Slot] = {}
        self._once: deque[_Key] = deque(maxlen=64)
        self._calls = 0
        self._lock = threading.Lock()

    def run(self, feeds: Arrays) -> dict[str, np.ndarray]:
        compiled = self._compiled_for(feeds, several=False)
        request = compiled.request()
        try:
            request.infer(dict(feeds))
            return compiled.outputs(request)
        except RuntimeError as error:
            raise self._failed(feeds, error) from error
        finally:
            compiled.idle.append(request)

    def run_all(self, batches: Iterable[Arrays]) -> Iterator[dict[str, np.ndarray]]:
        """One batch a stream is computed, and one more waits, so that no stream ever does."""
        at_work: deque[tuple[_Compiled, Any, Arrays]] = deque()
        try:
            for feeds in batches:
                at_work.append(self._started(feeds))
                if len(at_work) > self.streams:
                    yield self._finished(*at_work.popleft())
            while at_work:
                yield self._finished(*at_work.popleft())
        finally:
            for compiled, request, _ in at_work:  # after an error, or left early
                with suppress(RuntimeError):
                    request.wait()
                    compiled.idle.append(request)

    def _started(self, feeds: Arrays) -> tuple[_Compiled, Any, Arrays]:
        compiled = self._compiled_for(feeds, several=True)
        request = compiled.request()
        try:
            request.start_async(dict(feeds))  # which copies the arrays
        except RuntimeError as error:
            raise self._failed(feeds, error) from error
        return compiled, request, feeds

    def _finished(self, compiled: _Compiled, request: Any, feeds: Arrays) -> dict[str, np.ndarray]:
        try:
            request.wait()
            return compiled.outputs(request)
        except RuntimeError as error:
            raise self._failed(feeds, error) from error
        finally:
            compiled.idle.append(request)

    def _compiled_for(self, feeds: Arrays, several: bool) -> _Compiled:
        """The graph for inputs of these sizes, to compute one batch at a time, or several.

        Who needs one that is being compiled waits for it, and nobody else does.
        """
        sizes = tuple((name, array.shape) for name, array in feeds.items())
        with self._lock:
            key, slot = self._slot((sizes, several))
        with slot.lock:
            if slot.compiled is None:
                try:
                    slot.compiled = self._compile(*key)
                except RuntimeError as error:
                    with self._lock:
                        self._slots.pop(key, None)
                    raise self._failed(feeds, error) from error
            return slot.compiled

    def _slot(self, key: _Key) -> tuple[_Key, _Slot]:
        """Room for the graph of these sizes, or where there is none left, of any sizes.

        A size that comes again then takes the place of one that has long not come.
        """
        self._calls += 1
        own = [known for known in self._slots if known[0] is not None]
        if key not in self._slots and len(own) >= self._most:
            oldest = min(own, key=lambda known: self._slots[known].used, default=None)
            idle = oldest and self._calls - self._slots[oldest].used > _IDLE_CALLS
            if oldest and idle and key in self._once:
                del self._slots[oldest]
            else:
                self._once.append(key)
                key = (None, key[1])
        slot = self._slots.setdefault(key, _Slot())
        slot.used = self._calls
        return key, slot

    def _compile(self, sizes: _Sizes | None, several: bool) -> _Compiled:
        model = self._model
        if sizes is not None:
            model = model.clone()
            model.reshape({name: list(shape) for name, shape in sizes})
        latency = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1"}
        use = {"NUM_STREAMS": str(self.streams)} if several else latency
        settings = self._settings | use
        if self._cache is not None:
            # OpenVINO's own key holds neither precision nor threads, which the content depends on.
            names = ("INFERENCE_PRECISION_HINT", "NUM_STREAMS", "INFERENCE_NUM_THREADS")
            key = "-".join(str(settings.get(name, "all")) for name in names)
            settings["CACHE_DIR"] = str(self._cache / key)
        return _Compiled(the_core().compile_model(model, "CPU", settings))

    def _failed(self, feeds: Arrays, error: RuntimeError) -> OdinError:
        shapes = {name: array.shape for name, array in feeds.items()}
        why = _PLACE.sub("", " ".join(str(error).split())).strip()
        return OdinError(f"OpenVINO failed on {self._graph}, {shapes}: {why}")


class _Slot:
    """Room for a compiled graph, the lock of those who wait for it, and the call that used it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.used = 0
        self.compiled: _Compiled | None = None


class _Compiled:
    """A graph compiled for inputs of some size, and requests that are not at work."""

    def __init__(self, model: Any) -> None:
        self._model = model
        # An output that OpenVINO simplified away shares its tensor, which then has several names.
        self._names = [output.get_names() for output in model.outputs]
        self.idle: deque[Any] = deque()

    def request(self) -> Any:
        """An inference request, which serves one call at a time."""
        try:
            return self.idle.pop()
        except IndexError:
            return self._model.create_infer_request()

    def outputs(self, request: Any) -> dict[str, np.ndarray]:
        """What a request has computed, copied, since the request is used again."""
        values = [tensor.data.copy() for tensor in request.output_tensors]
        return {name: values[index] for index, names in enumerate(self._names) for name in names}
