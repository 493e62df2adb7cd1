"""ONNX Runtime on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from odin_engines.engine import Arrays, Session, missing_package
from odin_engines.errors import OdinError
from odin_engines.spec import Precision

_ERRORS_ONLY = 3  # severity: what it warns of concerns its own optimiser, not the user


def unavailable(precision: Precision) -> str | None:
    """Why ONNX Runtime cannot be used here, and the remedy; None if it can."""
    if precision != "fp32":
        return (
            f"ONNX Runtime computes in fp32 on a CPU, not in {precision}: use --precision fp32, or "
            "--engine openvino for bf16"
        )
    return missing_package("onnxruntime", "pip install 'odin-ood[cpu]'")


def open_graph(graph: Path, precision: Precision, threads: int | None) -> Session:
    """Open an ONNX file on the CPU.

    Raises:
        OdinError: ONNX Runtime refuses the file.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.intra_op_num_threads = threads or 0
    try:
        session = onnxruntime.InferenceSession(
            str(graph), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        raise OdinError(f"ONNX Runtime cannot open {graph}: {error}") from error
    return _OrtSession(session, graph)


class _OrtSession:
    def __init__(self, session: Any, graph: Path) -> None:
        self._session = session
        self._graph = graph
        self._names = [output.name for output in session.get_outputs()]

    def run(self, feeds: Arrays) -> dict[str, np.ndarray]:
        try:
            values = self._session.run(self._names, dict(feeds))
        except Exception as error:
            shapes = {name: array.shape for name, array in feeds.items()}
            raise OdinError(f"ONNX Runtime failed on {self._graph}, {shapes}: {error}") from error
        return dict(zip(self._names, values, strict=True))
