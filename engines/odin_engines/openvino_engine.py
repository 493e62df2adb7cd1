"""OpenVINO on the CPU: a float32 graph in float32 or bfloat16, and others as they are written.

Of a graph with bfloat16 in it, what is bfloat16 is computed in it, and what is float32 in that. Of
one with float16 in it, weights and casts are as written, and everything is computed in float32.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np

from odin_engines.engine import Arrays, Session, missing_package
from odin_engines.errors import OdinError
from odin_engines.spec import Precision

_WRITTEN = ("f16", "bf16")  # element types that only a graph of such a precision holds


def unavailable(precision: Precision) -> str | None:
    """Why OpenVINO cannot be used here in this precision, and the remedy; None if it can."""
    missing = missing_package("openvino", "pip install openvino")
    if missing or precision != "bf16":
        return missing
    import openvino

    if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return None
    return "this CPU has no bfloat16 instructions: use --precision fp32"


def open_graph(graph: Path, precision: Precision, threads: int | None) -> Session:
    """Open an ONNX file on the CPU.

    Raises:
        OdinError: OpenVINO refuses the file, or it is a float32 graph and is to run in float16.
    """
    import openvino

    core = openvino.Core()
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads
    try:
        model = core.read_model(str(graph))
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
        settings["INFERENCE_PRECISION_HINT"] = "bf16" if hinted else "f32"
        compiled = core.compile_model(model, "CPU", settings)
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
