"""Rules of means and sums over axes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from odin_export.emit import Emitter, dims
from odin_export.rules.common import Gradients, operand, reduced_axes


def global_average_pool(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = mean of x over the spatial axes; dx = dy / (number of cells), everywhere."""
    axes = list(range(2, len(dims(operand(node, 0)))))
    return [_spread_mean(e, operand(node, 0), dy, axes)]


def reduce_mean(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = mean of x over some axes; dx = dy / (number of elements averaged), everywhere."""
    axes, dy = _restore_reduced_axes(e, node, dy)
    dx = _spread_mean(e, operand(node, 0), dy, axes) if axes else dy
    return [dx, None][: len(node.inputs)]


def reduce_sum(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = sum of x over some axes; dx = dy, everywhere."""
    _, dy = _restore_reduced_axes(e, node, dy)
    return [e.op("Expand", dy, e.op("Shape", operand(node, 0))), None][: len(node.inputs)]


def _spread_mean(e: Emitter, x: ir.Value, dy: ir.Value, axes: Sequence[int]) -> ir.Value:
    shape = e.op("Shape", x)
    sizes = [dims(x)[axis] for axis in axes]
    if all(isinstance(size, int) for size in sizes):
        dy = e.op("Mul", dy, e.floats(1 / np.prod([int(size or 0) for size in sizes])))
    else:
        reduced = e.op("Gather", shape, e.integers(axes, "axes"), axis=0)
        count = e.op("ReduceProd", reduced, keepdims=0)
        dy = e.op("Div", dy, e.op("Cast", count, to=int(e.dtype)))
    return e.op("Expand", dy, shape)


def _restore_reduced_axes(e: Emitter, node: ir.Node, dy: ir.Value) -> tuple[list[int], ir.Value]:
    """Return the reduced axes, and dy with each of them as an axis of size one."""
    rank = len(dims(operand(node, 0)))
    axes = reduced_axes(node, rank)
    if axes is None:
        axes = [] if node.attributes.get_int("noop_with_empty_axes", 0) else list(range(rank))
    if axes and not node.attributes.get_int("keepdims", 1):
        dy = e.op("Unsqueeze", dy, e.integers(axes, "axes"))
    return axes, dy
