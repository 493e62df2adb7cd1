"""Rules of reductions over axes: sums, means, extremes, norms, products; and running sums.

Where no axis is reduced (`noop_with_empty_axes`) what a reduction does to single elements remains:
ReduceSumSquare squares, ReduceLogSum takes logarithms.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from odin_export.emit import Emitter, dims
from odin_export.rules.common import (
    Gradients,
    narrowed,
    operand,
    reduced_axes,
    sizes_of,
    widened,
)


def global_average_pool(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = mean of x over the spatial axes; dx = dy / (number of cells), everywhere."""
    axes = list(range(2, len(dims(operand(node, 0)))))
    return [_spread_mean(e, operand(node, 0), dy, axes)]


def reduce_mean(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = mean of x over some axes; dx = dy / (number of elements averaged), everywhere."""
    axes = _axes(node)
    dy = _restored(e, node, axes, dy)
    dx = _spread_mean(e, operand(node, 0), dy, axes) if axes else dy
    return _of_first(node, dx)


def reduce_sum(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = sum of x over some axes; dx = dy, everywhere."""
    axes = _axes(node)
    dy = _restored(e, node, axes, dy)
    return _of_first(node, e.op("Expand", dy, sizes_of(e, operand(node, 0))) if axes else dy)


def reduce_extremum(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = the largest (smallest) of x over some axes; dx = dy where x = y, else 0.

    Where several elements are equal to y each gets the same share of dy, as of torch.amax.
    """
    x, axes = operand(node, 0), _axes(node)
    y, dy = (_restored(e, node, axes, value) for value in (node.outputs[0], dy))
    if not axes:
        return _of_first(node, dy)
    chosen = e.op("Equal", x, y)
    (dy,) = widened(e, dy)  # float16 counts to 2048
    count = _sum(e, e.op("Cast", chosen, to=int(e.dtype)), axes)
    share = narrowed(e, e.op("Div", dy, count), x)
    e.dtype = x.dtype or e.dtype
    return _of_first(node, e.op("Where", chosen, share, e.floats(0, "zero")))


def reduce_l1(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = sum(|x|) over some axes; dx = dy sign(x), which is 0 at x = 0."""
    dy = _restored(e, node, _axes(node), dy)
    return _of_first(node, e.op("Mul", e.op("Sign", operand(node, 0)), dy))


def reduce_l2(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = sqrt(sum(x^2)) over some axes; dx = dy x / y. At a zero vector it is 0."""
    axes = _axes(node)
    if not axes:  # y = |x|
        return reduce_l1(e, node, dy)
    y, dy = (_restored(e, node, axes, value) for value in (node.outputs[0], dy))
    zero, one = e.floats(0, "zero"), e.floats(1, "one")
    divisor = e.op("Where", e.op("Equal", y, zero), one, y)
    return _of_first(node, e.op("Mul", e.op("Div", operand(node, 0), divisor), dy))


def reduce_sum_square(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = sum(x^2) over some axes; dx = 2 x dy."""
    dy = _restored(e, node, _axes(node), dy)
    twice = e.op("Mul", operand(node, 0), e.floats(2, "two"))
    return _of_first(node, e.op("Mul", twice, dy))


def reduce_log_sum(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = log(sum(x)) over some axes; dx = dy / sum(x), everywhere.

    The sum is computed anew: exp(y) loses digits where y is large.
    """
    x, axes = operand(node, 0), _axes(node)
    wide, dy = widened(e, x, _restored(e, node, axes, dy))
    dx = e.op("Div", dy, _sum(e, wide, axes))
    if axes:
        dx = e.op("Expand", dx, sizes_of(e, x))
    return _of_first(node, narrowed(e, dx, x))


def reduce_log_sum_exp(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = log(sum(exp(x))) over some axes; dx = dy p / sum(p) with p = exp(x - y).

    The sum is 1 but for the rounding of y, which matters where y is large.
    """
    x, axes = operand(node, 0), _axes(node)
    y, dy = (_restored(e, node, axes, value) for value in (node.outputs[0], dy))
    if not axes:
        return _of_first(node, dy)
    wide, y, dy = widened(e, x, y, dy)
    p = e.op("Exp", e.op("Sub", wide, y))
    dx = e.op("Mul", p, e.op("Div", dy, _sum(e, p, axes)))
    return _of_first(node, narrowed(e, dx, x))


def reduce_prod(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = product of x over some axes; dx = dy (product of the others).

    The product of the others is 0 if one of them is, and otherwise p / x, where p and x have 1 in
    the place of a zero.
    """
    x, axes = operand(node, 0), _axes(node)
    dy = _restored(e, node, axes, dy)
    if not axes:
        return _of_first(node, dy)
    wide, dy = widened(e, x, dy)
    zero, one = e.floats(0, "zero"), e.floats(1, "one")
    is_zero = e.op("Equal", wide, zero)
    nonzero = e.op("Where", is_zero, one, wide)
    zeros = e.op("Cast", is_zero, to=int(e.dtype))
    none_of_others = e.op("Equal", _sum(e, zeros, axes), zeros)
    others = e.op("Div", e.reduced("ReduceProd", nonzero, axes), nonzero)
    dx = e.op("Where", none_of_others, e.op("Mul", others, dy), zero)
    return _of_first(node, narrowed(e, dx, x))


def cum_sum(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y_i = sum of x_j up to j = i along an axis; dx_j = sum of dy_i from i = j on.

    That is the same op in the other direction, exclusive if y is.
    """
    dx = e.op(
        "CumSum",
        dy,
        operand(node, 1),
        exclusive=node.attributes.get_int("exclusive", 0),
        reverse=1 - node.attributes.get_int("reverse", 0),
    )
    return [dx, None]


def _of_first(node: ir.Node, dx: ir.Value) -> Gradients:
    """The gradient of a reduction's data; its axes, where they are an input, have none."""
    return [dx, None][: len(node.inputs)]


def _axes(node: ir.Node) -> list[int]:
    """The axes that a reduction reduces, in ascending order."""
    rank = len(dims(operand(node, 0)))
    axes = reduced_axes(node, rank)
    if axes is None:
        return [] if node.attributes.get_int("noop_with_empty_axes", 0) else list(range(rank))
    return axes


def _restored(e: Emitter, node: ir.Node, axes: Sequence[int], value: ir.Value) -> ir.Value:
    """What has the shape of the output, with each reduced axis as an axis of size one."""
    if not axes or node.attributes.get_int("keepdims", 1) != 0:
        return value
    return e.op("Unsqueeze", value, e.integers(axes, "axes"))


def _sum(e: Emitter, value: ir.Value, axes: Sequence[int]) -> ir.Value:
    if not axes:
        return value
    return e.op("ReduceSum", value, e.integers(axes, "axes"), keepdims=1)


def _spread_mean(e: Emitter, x: ir.Value, dy: ir.Value, axes: Sequence[int]) -> ir.Value:
    shape = sizes_of(e, x)
    sizes = [dims(x)[axis] for axis in axes]
    if all(isinstance(size, int) for size in sizes):
        dy = e.op("Mul", dy, e.floats(1 / np.prod([int(size or 0) for size in sizes])))
        return e.op("Expand", dy, shape)
    count = e.op("ReduceProd", sizes_of(e, x, axes), keepdims=0)
    (wide,) = widened(e, dy)  # float16 ends at 65504
    wide = e.op("Div", wide, e.op("Cast", count, to=int(e.dtype)))
    return e.op("Expand", narrowed(e, wide, x), shape)
