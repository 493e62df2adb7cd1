"""What the rules share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from odin_engines.errors import OdinError
from odin_export.emit import Emitter, constant_value, dims

Gradients = list[ir.Value | None]
Rule = Callable[..., Gradients]


def own_copy(e: Emitter, weight: ir.Value) -> ir.Value:
    """Return a constant square weight as a constant of its own, computed from the stored one.

    OpenVINO 2026.4 caches a layer's weight by where it lies and by its shape: a square one that is
    used as it is in the forward pass and transposed in the backward pass is taken for one and the
    same, and the gradient comes out wrong. Reversing it twice changes nothing, stores nothing, and
    gives it a place of its own once the engine folds constants.
    """
    sizes = dims(weight)
    if constant_value(weight) is None or len(sizes) < 2 or sizes[0] != sizes[1]:
        return weight
    bounds = [e.integers([value], "bound") for value in (-1, np.iinfo(np.int64).min, 0, -1)]
    return e.op("Slice", e.op("Slice", weight, *bounds), *bounds)


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


def sizes_of(e: Emitter, value: ir.Value, axes: Sequence[int] | None = None) -> ir.Value:
    """Return the sizes of a value along some axes, or all, as an int64 vector.

    It is a constant where the sizes are known, and computed at run time otherwise.
    """
    sizes = dims(value)
    chosen = list(range(len(sizes))) if axes is None else [axis % len(sizes) for axis in axes]
    known = [size for axis in chosen if isinstance(size := sizes[axis], int)]
    if len(known) == len(chosen):
        return e.integers(known, "sizes")
    shape = e.op("Shape", value)
    if axes is None:
        return shape
    return e.op("Gather", shape, e.integers(chosen, "axes"), axis=0)


def widened(e: Emitter, *values: ir.Value) -> tuple[ir.Value, ...]:
    """Return float values in one type of 32 bits or more, in which `e` computes from here on."""
    types = {e.dtype, *(value.dtype for value in values)}
    wide = ir.DataType.DOUBLE if ir.DataType.DOUBLE in types else ir.DataType.FLOAT
    had, e.dtype = e.dtype, wide
    return tuple(
        value if (value.dtype or had) == wide else e.op("Cast", value, to=int(wide))
        for value in values
    )


def narrowed(e: Emitter, value: ir.Value, like: ir.Value) -> ir.Value:
    """Return what was computed from `widened` values in the type of another value."""
    if like.dtype is None or like.dtype == e.dtype:
        return value
    return e.op("Cast", value, to=int(like.dtype))


def summed_to(e: Emitter, dx: ir.Value, have: Sequence[int | str | None], x: ir.Value) -> ir.Value:
    """Sum dx, of the sizes `have`, over the leading axes that x lacks and those it was repeated on.

    Where it is not known whether an axis was repeated, it is taken not to be: a Reshape to the
    shape of x then makes the graph fail at run time, rather than give a wrong gradient.
    """
    want = dims(x)
    extra = len(have) - len(want)
    axes = list(range(extra))
    sure = True
    for axis, (size, own) in enumerate(zip(have[extra:], want, strict=True), start=extra):
        if own == 1 and size != 1:
            axes.append(axis)
        elif own is None or own != size:
            sure = False
    if axes:
        dx = e.op("ReduceSum", dx, e.integers(axes, "axes"), keepdims=1)
    if extra:
        dx = e.op("Squeeze", dx, e.integers(range(extra), "axes"))
    return dx if sure else e.op("Reshape", dx, e.op("Shape", x))
