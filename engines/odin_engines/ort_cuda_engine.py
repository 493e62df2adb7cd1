"""ONNX Runtime on an NVIDIA GPU, through its CUDA provider."""

from __future__ import annotations

from pathlib import Path

from odin_engines import ort_gpu
from odin_engines.engine import Session, Tuning
from odin_engines.spec import Precision


def unavailable(precision: Precision) -> str | None:
    """Why the provider cannot be used here, each thing with its remedy a line; None if it can.

    The precision is a matter of the graph, so `precision` changes nothing.
    """
    return ort_gpu.unavailable(ort_gpu.CUDA)


def open_graph(graph: Path, precision: Precision, tuning: Tuning) -> Session:
    """Open an ONNX file on the first GPU; CUDA_VISIBLE_DEVICES chooses another.

    Raises:
        OdinError: the graph computes in another precision, or the GPU would not compute all of it.
    """
    from odin_engines.ort_gpu_session import open_session

    return open_session(ort_gpu.CUDA, graph, precision, tuning)
