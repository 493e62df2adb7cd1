"""Tracing one of the four networks takes as long as many tests: once in a session is enough."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import pytest
from torch import nn

from native.fixtures import made_once
from odin_export import exporter
from odin_export.forward import forward_graph

Trace = Callable[[nn.Module, int], onnx.ModelProto]


@pytest.fixture(scope="session")
def trace_once(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    """A function as `forward_graph`, whose results parallel test processes share."""

    def trace(network: nn.Module, max_size: int) -> onnx.ModelProto:
        def make(folder: Path) -> None:
            onnx.save(forward_graph(network, max_size), folder / "forward.onnx")

        folder = made_once(tmp_path_factory, f"traced-{_identity(network, max_size)}", make)
        return onnx.load(folder / "forward.onnx")

    return trace


@pytest.fixture(autouse=True, scope="session")
def exports_trace_once(trace_once: Trace) -> Iterator[None]:
    """The exporter of this process does so too; the tests of commands start their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporter, "forward_graph", trace_once)
        yield


def _identity(network: nn.Module, max_size: int) -> str:
    """Of layers, weights and types, so of the graph."""
    digest = hashlib.sha256(f"{max_size} {network.training} {network!r}".encode())
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().numpy().tobytes())
    return digest.hexdigest()[:24]
