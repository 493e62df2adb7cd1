"""Rules of ops that work element by element, with broadcasting where the op has it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from odin_export.emit import Emitter, constant_value, dims
from odin_export.rules.common import Gradients, operand, optional_operand, refused, type_of


def identity(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x; dx = dy."""
    return [dy]


def dropout(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x in inference, which is all that is differentiated; dx = dy."""
    training = constant_value(optional_operand(node, 2))
    if optional_operand(node, 2) is not None and (training is None or bool(training)):
        raise refused(node, "it is in training mode", "export the network in evaluation mode")
    return [dy, None, None][: len(node.inputs)]


def neg(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = -x; dx = -dy."""
    return [e.op("Neg", dy)]


def cast(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x in another floating type; dx = dy in the type of x."""
    return [e.op("Cast", dy, to=int(type_of(node, operand(node, 0))))]


def relu(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = max(x, 0); dx = dy where y > 0, else 0. At x = 0 the gradient is 0, as in PyTorch."""
    zero = e.floats(0, "zero")
    positive = e.op("Greater", node.outputs[0], zero)
    return [e.op("Where", positive, dy, zero)]


def add(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = a + b; da = dy, db = dy."""
    return [dy, dy]


def sub(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = a - b; da = dy, db = -dy."""
    return [dy, e.op("Neg", dy) if e.wants(node.inputs[1]) else None]


def mul(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = a b; da = dy b, db = dy a."""
    a, b = operand(node, 0), operand(node, 1)
    return [
        e.op("Mul", dy, b) if e.wants(a) else None,
        e.op("Mul", dy, a) if e.wants(b) else None,
    ]


def div(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = a / b; da = dy / b, db = -dy y / b."""
    a, b = operand(node, 0), operand(node, 1)
    da = e.op("Div", dy, b)
    db = e.op("Neg", e.op("Mul", da, node.outputs[0])) if e.wants(b) else None
    return [da if e.wants(a) else None, db]


def batch_normalization(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = s (x - m) / sqrt(v + eps) + b with constant s, b, m, v; dx = dy s / sqrt(v + eps).

    Inference mode (Ioffe and Szegedy, 2015, algorithm 2): the statistics do not depend on x.
    """
    scale, variance = (constant_value(node.inputs[i]) for i in (1, 4))
    training = node.attributes.get_int("training_mode", 0) == 1
    changing = any(e.wants(value) for value in node.inputs[1:])
    if scale is None or variance is None or changing or training:
        raise refused(
            node,
            "its statistics, scale or bias are not constants",
            "export the network in evaluation mode",
        )
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    factor = scale.astype(np.float64) / np.sqrt(variance.astype(np.float64) + epsilon)
    spatial = len(dims(operand(node, 0))) - 2
    dx = e.op("Mul", dy, e.floats(factor.reshape(-1, *[1] * spatial), f"{node.name}_factor"))
    return [dx, None, None, None, None]
