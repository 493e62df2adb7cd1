"""What the tests put into a bundle in place of graphs."""

from __future__ import annotations

from collections.abc import Callable

from odin_engines.spec import Spec

GRAPHS = {"odin.onnx": b"a graph", "gradient.onnx": b"another graph", "forward.onnx": b""}

SpecMaker = Callable[..., Spec]
