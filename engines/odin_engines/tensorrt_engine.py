"""TensorRT and TensorRT for RTX: not part of this version, which says precisely why."""

from __future__ import annotations

import ctypes
from importlib.util import find_spec
from pathlib import Path

from odin_engines.engine import Session
from odin_engines.errors import OdinError
from odin_engines.spec import Precision


def unavailable(precision: Precision) -> str:
    """Why no plan can be built or run here, and the remedy."""
    missing = [name for name in ("tensorrt", "tensorrt_rtx") if find_spec(name) is None]
    also = [f"Python package {name} is not installed" for name in missing]
    if not _has_driver():
        also.append("no NVIDIA driver (libcuda.so.1) is found")
    found = f" (besides: {'; '.join(also)})" if also else ""
    return (
        f"this version of odin-ood builds and runs no TensorRT plans{found}; OpenVINO and ONNX "
        "Runtime run the same ONNX graph on the CPU"
    )


def open_graph(graph: Path, precision: Precision, threads: int | None) -> Session:
    """Refuse.

    Raises:
        OdinError: always, with the reason.
    """
    raise OdinError(f"{graph} cannot be opened: {unavailable(precision)}")


def parser_obstacle(graph: bytes) -> str | None:
    """The first node that the parser of TensorRT for RTX refuses, and why; None if it takes all.

    Parsing needs no GPU.

    Args:
        graph: an ONNX model, serialized.

    Raises:
        OdinError: tensorrt_rtx is not installed.
    """
    if find_spec("tensorrt_rtx") is None:
        raise OdinError("tensorrt_rtx is not installed: pip install 'odin-ood[rtx]'")
    import tensorrt_rtx as trt

    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if parser.parse(graph):
        return None
    error = parser.get_error(0)
    why = next((line for line in error.desc().splitlines() if "Error" in line), error.desc())
    return f"node {error.node_name()!r} ({error.node_operator()}): {' '.join(why.split())}"


def _has_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True
