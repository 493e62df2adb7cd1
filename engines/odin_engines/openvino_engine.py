"""OpenVINO on the CPU, in float32 or with bfloat16 as inference precision."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np

from odin_engines.engine import Arrays, Session, missing_package
from odin_engines.errors import OdinError
from odin_engines.spec import Precision

_HINTS = {"fp32": "f32", "bf16": "bf16"}


def unavailable(precision: Precision) -> str | None:
    """Why OpenVINO cannot be used here in this precision, and the remedy; None if it can."""
    missing = missing_package("openvino", "pip install 'odin-ood[cpu]'")
    if missing or precision == "fp32":
        return missing
    if precision not in _HINTS:
        return f"OpenVINO on a CPU computes in fp32 or bf16, not in {precision}: use one of these"
    import openvino

    if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return None
    return "this CPU has no bfloat16 instructions: use --precision fp32"


def open_graph(graph: Path, precision: Precision, threads: int | None) -> Session:
    """Open an ONNX file on the CPU.

    Raises:
        OdinError: OpenVINO refuses the file.
    """
    import openvino

    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
        "PERFORMANCE_HINT": "LATENCY",
    }
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads
    try:
        compiled = openvino.Core().compile_model(str(graph), "CPU", settings)
    except RuntimeError as error:
        raise OdinError(f"OpenVINO cannot open {graph}: {error}") from error
    return _OpenVinoSession(compiled, graph)


class _OpenVinoSession:
    def __init__(self, compiled: Any, graph: Path) -> None:
        self._compiled = compiled
        self._graph = graph
        # An output that OpenVINO simplified away shares its tensor, which then has several names.
        self._names = [output.get_names() for output in compiled.outputs]
        # An inference request serves one call at a time, so each thread gets its own.
        self._local = threading.local()

    def run(self, feeds: Arrays) -> dict[str, np.ndarray]:
        if not hasattr(self._local, "request"):
            self._local.request = self._compiled.create_infer_request()
        try:
            values = self._local.request.infer(dict(feeds))
        except RuntimeError as error:
            shapes = {name: array.shape for name, array in feeds.items()}
            why = " ".join(str(error).split())
            raise OdinError(f"OpenVINO failed on {self._graph}, {shapes}: {why}") from error
        return {name: values[index] for index, names in enumerate(self._names) for name in names}
