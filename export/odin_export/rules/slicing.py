"""Rules of ops that cut out a part or add a margin: Slice, Split, Pad."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from odin_export.emit import Emitter, constant_value, dims
from odin_export.rules.common import Gradients, operand, optional_operand, refused
from odin_export.rules.lengths import (
    FAR,
    Size,
    at_least,
    at_most,
    element,
    from_start,
    joined,
    minus,
    plus,
    reshaped,
    size_of,
    times,
    zeros_like,
)


@dataclass(frozen=True)
class Stretch:
    """Every step-th element along an axis: first, first + step, ... (count of them) of size.

    A step may be negative. `size` is that of the whole axis.
    """

    first: Size
    step: int
    count: Size
    size: Size


def slice_(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = every step-th element between bounds; dx = dy at these elements, 0 at all others."""
    x, y, starts = operand(node, 0), node.outputs[0], operand(node, 1)
    sizes = [size_of(e, y, axis) for axis in range(len(dims(x)))]
    stretches, turned = {}, []
    for index, (axis, step) in enumerate(_axes_and_steps(node)):
        if abs(step) == 1 and _takes_all(node, index, step):
            turned += [axis] if step < 0 else []
            continue
        size = size_of(e, x, axis)
        if isinstance(size, int):  # a longer step than that takes one element too
            step = max(min(step, max(size, 1)), -max(size, 1))
        else:  # bounds beyond the ends make the number of elements depend on the size
            sizes[axis] = e.op("Gather", e.op("Shape", y), e.integers([axis], "axis"), axis=0)
        first = from_start(e, element(e, starts, index), size)
        stretches[axis] = Stretch(
            first=at_most(e, at_least(e, first, 0), minus(e, size, int(step < 0))),
            step=step,
            count=sizes[axis],
            size=size,
        )
    none: Gradients = [None] * (len(node.inputs) - 1)
    dy = flipped(e, dy, turned)
    return [placed(e, dy, sizes, stretches), *none]


def _takes_all(node: ir.Node, index: int, step: int) -> bool:
    """Whether constant bounds leave out nothing, however long the axis is."""
    starts, ends = (constant_value(value) for value in node.inputs[1:3])
    if starts is None or ends is None:
        return False
    start, end = int(starts[index]), int(ends[index])
    if step > 0:
        return (start == 0 or start <= -FAR) and end >= FAR
    return (start == -1 or start >= FAR) and end <= -FAR


def _axes_and_steps(node: ir.Node) -> list[tuple[int, int]]:
    count, *_ = dims(operand(node, 1))
    axes, steps = (_constants(node, index) for index in (3, 4))
    if axes is None:
        if not isinstance(count, int):
            raise refused(node, "how many axes it cuts is not known", "give it constant axes")
        axes = list(range(count))
    rank = len(dims(operand(node, 0)))
    return list(zip([axis % rank for axis in axes], steps or [1] * len(axes), strict=True))


def _constants(node: ir.Node, index: int) -> list[int] | None:
    """The numbers of an optional input, which must not depend on anything."""
    value = optional_operand(node, index)
    if value is None:
        return None
    numbers = constant_value(value)
    if numbers is None:
        raise refused(
            node, f"its input {index} is computed at run time", "make that input a constant"
        )
    return [int(number) for number in numbers]


def placed(
    e: Emitter, value: ir.Value, sizes: Sequence[Size], stretches: Mapping[int, Stretch]
) -> ir.Value:
    """Put a value's elements where these stretches (by axis) took them from; zeros elsewhere.

    Args:
        e: appends the nodes.
        value: what to place; along each of the axes it has the stretch's count.
        sizes: of `value`.
        stretches: by axis; all other axes stay as they are.
    """
    # A single element has no steps.
    steps = {axis: 1 if each.count in (0, 1) else each.step for axis, each in stretches.items()}
    value = flipped(e, value, [axis for axis, step in steps.items() if step < 0])
    value = _spaced(e, value, sizes, {axis: abs(step) for axis, step in steps.items()})
    before: list[Size] = [0] * len(sizes)
    after: list[Size] = [0] * len(sizes)
    for axis, each in stretches.items():
        lowest = each.first
        if steps[axis] < 0:
            reach = times(e, plus(e, each.count, -1), -steps[axis])
            lowest = at_most(e, minus(e, lowest, reach), each.size)
        before[axis] = 0 if each.count == 0 else lowest
        filled = times(e, each.count, abs(steps[axis]))
        after[axis] = minus(e, minus(e, each.size, before[axis]), filled)
    return padded(e, value, [*before, *after])


def _spaced(
    e: Emitter, value: ir.Value, sizes: Sequence[Size], steps: Mapping[int, int]
) -> ir.Value:
    """Follow each element along an axis by step - 1 zeros: (d) -> (d, 1) -> (d, step) -> d step."""
    strided = sorted(axis for axis, step in steps.items() if step > 1)
    if not strided:
        return value
    new = [axis + 1 + index for index, axis in enumerate(strided)]
    pads = [0] * (len(sizes) + len(new))
    spaced = list(sizes)
    for axis, position in zip(strided, new, strict=True):
        pads[position] = steps[axis] - 1
        spaced[axis] = times(e, sizes[axis], steps[axis])
    value = e.op("Unsqueeze", value, e.integers(new, "axes"))
    return reshaped(e, padded(e, value, [*([0] * len(pads)), *pads]), spaced)


def padded(e: Emitter, value: ir.Value, pads: Sequence[Size]) -> ir.Value:
    """Add zeros around a value, or cut off where a pad is negative."""
    if all(isinstance(pad, int) and pad == 0 for pad in pads):
        return value
    return e.op("Pad", value, joined(e, pads), e.floats(0, "zero"))


def flipped(e: Emitter, value: ir.Value, axes: Sequence[int]) -> ir.Value:
    """Reverse a value along some axes."""
    if not axes:
        return value
    bounds = ([-1] * len(axes), [np.iinfo(np.int64).min] * len(axes), axes, [-1] * len(axes))
    return e.op("Slice", value, *(e.integers(part, "bounds") for part in bounds))


def split(e: Emitter, node: ir.Node, dys: list[ir.Value | None]) -> Gradients:
    """y_1, y_2 ... = x cut along an axis; dx = dy_1, dy_2 ... joined, 0 for what nobody uses."""
    axis = node.attributes.get_int("axis", 0) % len(dims(operand(node, 0)))
    parts = []
    for y, dy in zip(node.outputs, dys, strict=True):
        y.name = y.name or e.unique("unused_part")
        parts.append(zeros_like(e, y) if dy is None else dy)
    dx = parts[0] if len(parts) == 1 else e.op("Concat", *parts, axis=axis)
    return [dx, None][: len(node.inputs)]


def pad(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x with a margin, of x's own elements unless the mode is "constant"; dx = dy without its
    margin, plus what the margin repeats. A negative pad cuts off; dx is 0 there."""
    mode = node.attributes.get_string("mode", "constant")
    given = constant_value(node.inputs[1])
    if mode == "constant":
        dx = _unpadded(e, node, dy)
    elif given is not None:
        dx = _unfolded(e, node, dy, mode, [int(amount) for amount in given])
    else:
        raise refused(
            node, f"it pads in mode {mode!r} by what is computed at run time", "use constant pads"
        )
    return [dx, *[None] * (len(node.inputs) - 1)]


def _unpadded(e: Emitter, node: ir.Node, dy: ir.Value) -> ir.Value:
    """dx of a Pad with a constant: a Pad by the opposite."""
    given, axes = constant_value(node.inputs[1]), optional_operand(node, 3)
    if given is not None:
        pads = e.integers([-int(amount) for amount in given], "pads")
    else:
        pads = e.op("Neg", operand(node, 1))
    return e.op("Pad", dy, pads, e.floats(0, "zero"), *([] if axes is None else [axes]))


def _unfolded(
    e: Emitter, node: ir.Node, dy: ir.Value, mode: str, amounts: Sequence[int]
) -> ir.Value:
    """dx of a Pad with elements of x itself, axis after axis."""
    x = operand(node, 0)
    rank, half = len(dims(x)), len(amounts) // 2
    given = _constants(node, 3)
    axes = [axis % rank for axis in (range(rank) if given is None else given)]
    uncut: list[Size] = [0] * (2 * rank)
    for axis, before, after in zip(axes, amounts[:half], amounts[half:], strict=True):
        size = plus(e, size_of(e, x, axis), min(before, 0) + min(after, 0))
        dy = _folded(e, node, dy, mode, Margin(axis, max(before, 0), max(after, 0), size))
        uncut[axis], uncut[rank + axis] = max(-before, 0), max(-after, 0)
    return padded(e, dy, uncut)


@dataclass(frozen=True)
class Margin:
    """How many elements of margin lie before and after the `size` elements of an axis."""

    axis: int
    before: int
    after: int
    size: Size


def _folded(e: Emitter, node: ir.Node, dy: ir.Value, mode: str, margin: Margin) -> ir.Value:
    """Cut the margin off and add it to the elements that it repeats, along one axis.

    edge: all of it repeats the first, or the last. reflect: the elements next to the edge, in
    reverse, without the edge itself. wrap: those at the other end, in order.
    """
    if not margin.before and not margin.after:
        return dy
    rank, axis, size = len(dims(operand(node, 0))), margin.axis, margin.size
    longest = max(margin.before, margin.after)
    if mode != "edge" and isinstance(size, int) and longest > size - (mode == "reflect"):
        raise refused(node, f"in mode {mode!r} it repeats an element twice", "pad by less")

    def part(start: int, end: int) -> ir.Value:
        piece = _cut(e, dy, axis, start, end)
        if mode == "reflect":
            return flipped(e, piece, [axis])
        if mode == "edge":
            return e.op("ReduceSum", piece, e.integers([axis], "axes"), keepdims=1)
        return piece

    def at(piece: ir.Value, before: Size, length: int) -> ir.Value:
        pads: list[Size] = [0] * (2 * rank)
        rest = minus(e, minus(e, size, before), length)
        pads[axis], pads[rank + axis] = at_least(e, before, 0), at_least(e, rest, 0)
        return padded(e, piece, pads)

    dx = _cut(e, dy, axis, margin.before, -margin.after or FAR)
    if margin.before:
        length = 1 if mode == "edge" else margin.before
        start = {"edge": 0, "reflect": 1, "wrap": minus(e, size, length)}[mode]
        dx = e.op("Add", dx, at(part(0, margin.before), start, length))
    if margin.after:
        length = 1 if mode == "edge" else margin.after
        start = {"edge": -1, "reflect": -1 - length, "wrap": 0}[mode]
        start = plus(e, size, start) if start else 0
        dx = e.op("Add", dx, at(part(-margin.after, FAR), start, length))
    return dx


def _cut(e: Emitter, value: ir.Value, axis: int, start: int, end: int) -> ir.Value:
    return e.op("Slice", value, *(e.integers([bound], "bound") for bound in (start, end, axis)))
