"""Rules of ops that move or repeat whole axes without changing elements."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from odin_export.emit import Emitter, constant_value, dims
from odin_export.rules.common import Gradients, operand
from odin_export.rules.lengths import (
    FAR,
    Size,
    as_vector,
    element,
    plus,
    reshaped,
    reshaped_to,
    size_of,
)


def reshape(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x in another shape; dx = dy in the shape of x. Also Flatten, Squeeze and Unsqueeze."""
    x = operand(node, 0)
    sizes = dims(x)
    if sum(not isinstance(size, int) for size in sizes) <= 1 and 0 not in sizes:
        known = [size if isinstance(size, int) else -1 for size in sizes]
        dx = e.op("Reshape", dy, e.integers(known, "shape"))
    else:
        dx = reshaped_to(e, dy, e.op("Shape", x))
    return [dx, None][: len(node.inputs)]


def transpose(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x with its axes permuted; dx = dy with the inverse permutation."""
    rank = len(dims(operand(node, 0)))
    perm = node.attributes.get_ints("perm", list(reversed(range(rank))))
    return [e.op("Transpose", dy, perm=[int(axis) for axis in np.argsort(perm)])]


def concat(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = the inputs one after the other along an axis; each dx = its slice of dy."""
    inputs = [operand(node, index) for index in range(len(node.inputs))]
    if len(inputs) == 1:
        return [dy]
    axis = node.attributes.get_int("axis", 0) % len(dims(inputs[0]))
    sizes = [size_of(e, x, axis) for x in inputs]
    bounds = [as_vector(e, _boundary(e, sizes, index)) for index in range(len(sizes) + 1)]
    along = e.integers([axis], "axis")
    return [
        e.op("Slice", dy, start, end, along) if e.wants(x) else None
        for x, start, end in zip(inputs, bounds[:-1], bounds[1:], strict=True)
    ]


def _boundary(e: Emitter, sizes: Sequence[Size], index: int) -> Size:
    """Where an input begins and the one before it ends, as a bound for Slice.

    Counted from whichever end of the axis has only known sizes, so that a single input of unknown
    size needs no arithmetic at run time.
    """
    before = [size for size in sizes[:index] if isinstance(size, int)]
    after = [size for size in sizes[index:] if isinstance(size, int)]
    if len(before) < index and len(after) == len(sizes) - index:
        return -sum(after) or FAR
    total: Size = 0
    for size in sizes[:index]:
        total = plus(e, total, size)
    return total


def expand(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x repeated along axes of size 1; dx = dy, which the walker sums over those axes."""
    return [dy, None]


def tile(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x repeated as a whole, r times along an axis; dx = the sum of dy over the repetitions.

    An axis of size d is split into (r, d) and summed over r; where d is 1 it is summed as it is.
    """
    x = operand(node, 0)
    repeats = _repeats(e, node)
    repeated = [axis for axis, count in enumerate(repeats) if count != 1]
    single = [axis for axis in repeated if dims(x)[axis] == 1]
    if single:
        dy = e.op("ReduceSum", dy, e.integers(single, "axes"), keepdims=1)
    sizes: list[Size] = []
    summed = []
    for axis, count in enumerate(repeats):
        if axis in repeated and axis not in single:
            summed.append(len(sizes))
            sizes.append(count)
        sizes.append(size_of(e, x, axis))
    if summed:
        split = reshaped(e, dy, sizes)
        dy = e.op("ReduceSum", split, e.integers(summed, "axes"), keepdims=0)
    return [dy, None]


def _repeats(e: Emitter, node: ir.Node) -> list[Size]:
    """How often each axis is repeated; that it is once shows in the sizes of x and y too."""
    x, given = operand(node, 0), constant_value(node.inputs[1])
    if given is not None:
        return [int(count) for count in given]
    sizes = dims(x)
    results = dims(node.outputs[0]) if node.outputs[0].shape is not None else [None] * len(sizes)
    return [
        1 if size is not None and size == result else element(e, operand(node, 1), axis)
        for axis, (size, result) in enumerate(zip(sizes, results, strict=True))
    ]


def reverse_sequence(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x with the first elements along the time axis reversed, as many as `sequence_lens` says
    for each entry of the batch; dx = dy reversed alike, because twice is not at all."""
    batch_axis = node.attributes.get_int("batch_axis", 1)
    time_axis = node.attributes.get_int("time_axis", 0)
    lengths = operand(node, 1)
    dx = e.op("ReverseSequence", dy, lengths, batch_axis=batch_axis, time_axis=time_axis)
    return [dx, None]
