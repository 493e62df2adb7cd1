"""What the rules share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from odin_engines.errors import OdinError
from odin_export.emit import constant_value

Gradients = list[ir.Value | None]
Rule = Callable[..., Gradients]


def refused(node: ir.Node, why: str, remedy: str) -> OdinError:
    """Return the error for a node that cannot be differentiated."""
    return OdinError(
        f"node {node.name!r} ({node.op_type}) cannot be differentiated: {why}; {remedy}"
    )


def operand(node: ir.Node, index: int) -> ir.Value:
    """Return an input that the op requires."""
    value = optional_operand(node, index)
    if value is None:
        raise refused(node, f"its input {index} is missing", "check the model with onnx.checker")
    return value


def optional_operand(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def type_of(node: ir.Node, value: ir.Value) -> ir.DataType:
    if value.dtype is None:
        raise refused(
            node, "the type of its input is not known", "run shape inference on the model"
        )
    return value.dtype


def reduced_axes(node: ir.Node, rank: int) -> list[int] | None:
    """The axes of a reduction, from its second input (opset 18) or its attribute."""
    if optional_operand(node, 1) is not None:
        values = constant_value(node.inputs[1])
        if values is None:
            raise refused(node, "its axes are computed at run time", "make them constants")
        axes: Sequence[int] = [int(axis) for axis in values]
    else:
        axes = node.attributes.get_ints("axes", [])
    return sorted(axis % rank for axis in axes) or None
