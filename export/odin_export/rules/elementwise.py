"""Rules of ops that work element by element, with broadcasting where the op has it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from odin_export.emit import Emitter, constant_value, dims
from odin_export.rules.common import (
    Gradients,
    narrowed,
    operand,
    optional_operand,
    refused,
    sizes_of,
    type_of,
    widened,
)


def identity(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x; dx = dy."""
    return [dy]


def dropout(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x in inference, which is all that is differentiated; dx = dy."""
    training = constant_value(optional_operand(node, 2))
    if optional_operand(node, 2) is not None and (training is None or bool(training)):
        raise refused(node, "it is in training mode", "export the network in evaluation mode")
    return [dy, None, None][: len(node.inputs)]


def cast_like(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x in the type of another value; dx = dy in the type of x.

    Of that other value nothing but the type matters: its gradient, should it depend on the image,
    is 0.
    """
    target = operand(node, 1)
    unmoved = None
    if e.wants(target):
        zero = e.constant(np.zeros((), type_of(node, target).numpy()), "zero")
        unmoved = e.op("Expand", zero, sizes_of(e, target))
    return [*cast(e, node, dy), unmoved]


def neg(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = -x; dx = -dy."""
    return [e.op("Neg", dy)]


def cast(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x in another floating type; dx = dy in the type of x."""
    return [e.op("Cast", dy, to=int(type_of(node, operand(node, 0))))]


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
    """y = s (x - m) / sqrt(v + eps) + b with s, b, m, v that no image changes.

    dx = dy s / sqrt(v + eps). Inference mode (Ioffe and Szegedy, 2015, algorithm 2). The factor is
    a constant where s and v are, and computed at run time where the graph computes them.
    """
    # Until opset 13 it is the number of outputs that tells training mode.
    training = node.attributes.get_int("training_mode", 0) == 1 or len(node.outputs) > 1
    if training or any(e.wants(value) for value in node.inputs[1:]):
        raise refused(
            node,
            "its statistics, scale or bias are not constants",
            "export the network in evaluation mode",
        )
    return [e.op("Mul", dy, _scale_of_channels(e, node)), None, None, None, None]


def _scale_of_channels(e: Emitter, node: ir.Node) -> ir.Value:
    """s / sqrt(v + eps), in a shape that broadcasts with x."""
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    columns = [-1, *[1] * (len(dims(operand(node, 0))) - 2)]
    scale, variance = (constant_value(node.inputs[index]) for index in (1, 4))
    if scale is not None and variance is not None:
        factor = scale.astype(np.float64) / np.sqrt(variance.astype(np.float64) + epsilon)
        return e.floats(factor.reshape(columns), f"{node.name}_factor")
    s, v = widened(e, operand(node, 1), operand(node, 4))  # they may be of other types than x
    ratio = e.op("Div", s, e.op("Sqrt", e.op("Add", v, e.floats(epsilon))))
    columns_of_ratio = e.op("Reshape", ratio, e.integers(columns, "shape"))
    return narrowed(e, columns_of_ratio, operand(node, 0))
