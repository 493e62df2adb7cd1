"""ONNX Runtime on the CPU, in float32.

A graph with float16 in it runs too: its weights and casts are as it says, and where ONNX Runtime
has no float16 kernel, which is nearly everywhere, it computes in float32.
"""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from odin_engines.cores import physical_cores, streams_of, threads_of
from odin_engines.engine import Arrays, Session, Tuning, missing_package
from odin_engines.errors import OdinError
from odin_engines.spec import Precision

# Function, file and line of its source: before the code of the error, or around one of CUDA's.
_PLACE = re.compile(
    r"^.*\[ONNXRuntimeError\] : \d+ : |^/\S+\.cc:\d+ .*\] (?=CU\w+ failure)| ; GPU=.*$"
)
_ERRORS_ONLY = 3  # severity: what it warns of concerns its own optimiser, not the user


def unavailable(precision: Precision) -> str | None:
    """Why ONNX Runtime cannot be used here, and the remedy; None if it can."""
    if precision == "bf16":
        return (
            "ONNX Runtime computes in fp32 on a CPU, not in bf16, for which it has no kernels: use "
            "--engine openvino, or a bundle in fp32 or fp16"
        )
    return missing_package("onnxruntime", "pip install 'odin-ood[cpu]'")


def open_graph(graph: Path, precision: Precision, tuning: Tuning) -> Session:
    """Open an ONNX file on the CPU.

    Raises:
        OdinError: ONNX Runtime refuses the file.
    """
    import onnxruntime

    def opened(threads: int | None) -> Any:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
        options.intra_op_num_threads = threads or 0
        try:
            return onnxruntime.InferenceSession(
                str(graph), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise OdinError(f"ONNX Runtime cannot open {graph}: {one_line(error)}") from error

    session = opened(threads_of(tuning))
    threads, streams = tuning.threads or physical_cores(), streams_of(tuning)
    if streams == 1:
        return OrtSession(session, graph)
    return _Streams(session, graph, lambda: opened(max(threads // streams, 1)), streams)


class OrtSession(Session):
    """An `onnxruntime.InferenceSession` of a graph, on whatever device."""

    def __init__(self, session: Any, graph: Path) -> None:
        self._session = session
        self._graph = graph
        self._names = [output.name for output in session.get_outputs()]

    def run(self, feeds: Arrays) -> dict[str, np.ndarray]:
        """Return the graph's outputs, by name, for these inputs, by name.

        Raises:
            OdinError: ONNX Runtime refuses the inputs, or fails.
        """
        try:
            values = self._session.run(self._names, dict(feeds))
        except Exception as error:
            shapes = {name: array.shape for name, array in feeds.items()}
            raise OdinError(
                f"ONNX Runtime failed on {self._graph}, {shapes}: {one_line(error)}"
            ) from error
        return dict(zip(self._names, values, strict=True))


class _Streams(OrtSession):
    """Computes several batches at once, each in a thread of ours that has few of the session's."""

    def __init__(
        self, session: Any, graph: Path, open_again: Callable[[], Any], streams: int
    ) -> None:
        super().__init__(session, graph)
        self._open_again = open_again
        self.streams = streams
        self._several: OrtSession | None = None
        self._lock = threading.Lock()

    def run_all(self, batches: Iterable[Arrays]) -> Iterator[dict[str, np.ndarray]]:
        """One batch a stream is computed, and one more waits, so that no stream ever does."""
        with self._lock:
            if self._several is None:
                self._several = OrtSession(self._open_again(), self._graph)
        at_work: deque[Future[dict[str, np.ndarray]]] = deque()
        with ThreadPoolExecutor(self.streams) as pool:
            for feeds in batches:
                at_work.append(pool.submit(self._several.run, feeds))
                if len(at_work) > self.streams:
                    yield at_work.popleft().result()
            while at_work:
                yield at_work.popleft().result()


def one_line(error: Exception) -> str:
    """What ONNX Runtime says, in one line, without the places in its source code."""
    return _PLACE.sub("", " ".join(str(error).split()))
