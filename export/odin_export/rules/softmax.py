"""Rules of the softmax and its logarithm."""

from __future__ import annotations

import onnx_ir as ir

from odin_export.emit import Emitter, dims
from odin_export.rules.common import Gradients, operand


def softmax(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = exp(x) / sum(exp(x)) along an axis; dx = dy y - y sum(dy y).

    Where all of x is -inf, as in a row of attention that is masked throughout, y is not a number.
    A network that then replaces y hands back dy = 0, and dx is 0.
    """
    y = node.outputs[0]
    if any(consumer.op_type in ("Where", "IsNaN") for consumer in y.consumers()):
        y = e.op("Where", e.op("IsNaN", y), e.floats(0, "zero"), y)
    weighted = e.op("Mul", dy, y)
    return [e.op("Sub", weighted, e.op("Mul", y, _sum(e, node, weighted)))]


def log_softmax(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x - log(sum(exp(x))) along an axis; dx = dy - exp(y) sum(dy)."""
    probability = e.op("Exp", node.outputs[0])
    return [e.op("Sub", dy, e.op("Mul", probability, _sum(e, node, dy)))]


def _sum(e: Emitter, node: ir.Node, value: ir.Value) -> ir.Value:
    rank = len(dims(operand(node, 0)))
    axis = node.attributes.get_int("axis", -1) % rank
    return e.op("ReduceSum", value, e.integers([axis], "axes"), keepdims=1)
