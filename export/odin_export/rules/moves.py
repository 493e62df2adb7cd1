"""Rules of ops that move elements without changing them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from odin_export.emit import Emitter, dims
from odin_export.rules.common import Gradients, operand, refused


def reshape(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x in another shape; dx = dy in the shape of x. Also Flatten, Squeeze and Unsqueeze."""
    x = operand(node, 0)
    sizes = dims(x)
    if sum(not isinstance(size, int) for size in sizes) <= 1 and 0 not in sizes:
        known = [size if isinstance(size, int) else -1 for size in sizes]
        dx = e.op("Reshape", dy, e.integers(known, "shape"))
    else:
        dx = e.op("Reshape", dy, e.op("Shape", x))
    return [dx, None][: len(node.inputs)]


def transpose(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x with its axes permuted; dx = dy with the inverse permutation."""
    rank = len(dims(operand(node, 0)))
    perm = node.attributes.get_ints("perm", list(reversed(range(rank))))
    return [e.op("Transpose", dy, perm=[int(axis) for axis in np.argsort(perm)])]


def concat(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = the inputs one after the other along an axis; each dx = its slice of dy."""
    rank = len(dims(operand(node, 0)))
    axis = node.attributes.get_int("axis", 0) % rank
    sizes = [dims(x)[axis] for x in node.inputs if x is not None]
    if not all(isinstance(size, int) for size in sizes):
        raise refused(node, "the size of an input along its axis is not fixed", "fix that size")
    ends = np.cumsum([int(size or 0) for size in sizes])
    return [
        _range_of(e, dy, axis, int(end) - int(size or 0), int(end)) if e.wants(x) else None
        for x, size, end in zip(node.inputs, sizes, ends, strict=True)
    ]


def _range_of(e: Emitter, dy: ir.Value, axis: int, start: int, end: int) -> ir.Value:
    bounds = (e.integers([start], "start"), e.integers([end], "end"), e.integers([axis], "axis"))
    return e.op("Slice", dy, *bounds)
