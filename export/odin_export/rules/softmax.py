"""Rules of the softmax and its logarithm."""

from __future__ import annotations

import onnx_ir as ir

from odin_export.emit import Emitter, dims
from odin_export.rules.common import Gradients, operand


def softmax(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = exp(x) / sum(exp(x)) along an axis; dx = dy y - y sum(dy y)."""
    weighted = e.op("Mul", dy, node.outputs[0])
    return [e.op("Sub", weighted, e.op("Mul", node.outputs[0], _sum(e, node, weighted)))]


def log_softmax(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x - log(sum(exp(x))) along an axis; dx = dy - exp(y) sum(dy)."""
    probability = e.op("Exp", node.outputs[0])
    return [e.op("Sub", dy, e.op("Mul", probability, _sum(e, node, dy)))]


def _sum(e: Emitter, node: ir.Node, value: ir.Value) -> ir.Value:
    rank = len(dims(operand(node, 0)))
    axis = node.attributes.get_int("axis", -1) % rank
    return e.op("ReduceSum", value, e.integers([axis], "axes"), keepdims=1)
