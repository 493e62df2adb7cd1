"""TensorRT for RTX: the same as TensorRT, but its plans are built on any machine."""

from __future__ import annotations

from pathlib import Path

from odin_engines import tensorrt_engine
from odin_engines.engine import Session, Tuning
from odin_engines.spec import Precision


def unavailable(precision: Precision) -> str | None:
    """Why no plan can be run here, and what would run it; None if plans can be run."""
    return tensorrt_engine.unavailable(precision, "rtx")


def open_graph(graph: Path, precision: Precision, tuning: Tuning) -> Session:
    """Refuse: it is plans that are opened, with `tensorrt_engine.open_plan`.

    Raises:
        OdinError: always, with the reason.
    """
    return tensorrt_engine.open_graph(graph, precision, tuning)
