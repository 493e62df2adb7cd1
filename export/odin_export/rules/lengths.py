"""Arithmetic on sizes of which some are numbers and others known at run time only.

What is known stays a number, so that graphs of fixed image size carry no shape arithmetic at all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir

from odin_export.emit import Emitter, constant_value, dims
from odin_export.rules.common import sizes_of

# A number, or an int64 vector of one element.
Size = int | ir.Value

# Since this opset Reshape can be told that a size of 0 is meant literally.
OPSET_OF_ALLOWZERO = 14
# As good as infinity for an index, and safe to add to.
FAR = 2**31 - 1


def size_of(e: Emitter, value: ir.Value, axis: int) -> Size:
    """Return the size of a value along one axis."""
    size = dims(value)[axis]
    return size if isinstance(size, int) else sizes_of(e, value, [axis])


def known_sizes(value: ir.Value) -> list[int] | None:
    """Return the sizes of a value if all of them are known."""
    sizes = [size for size in dims(value) if isinstance(size, int)]
    return sizes if len(sizes) == len(dims(value)) else None


def as_vector(e: Emitter, size: Size) -> ir.Value:
    return e.integers([size], "size") if isinstance(size, int) else size


def joined(e: Emitter, sizes: Sequence[Size]) -> ir.Value:
    """Return sizes as one int64 vector, a constant where all are numbers."""
    parts: list[ir.Value] = []
    numbers: list[int] = []
    for size in sizes:
        if isinstance(size, int):
            numbers.append(size)
            continue
        if numbers:
            parts.append(e.integers(numbers, "sizes"))
            numbers = []
        parts.append(size)
    if numbers or not parts:
        parts.append(e.integers(numbers, "sizes"))
    return parts[0] if len(parts) == 1 else e.op("Concat", *parts, axis=0)


def element(e: Emitter, vector: ir.Value, index: int) -> Size:
    """Return one element of an integer vector: axes, bounds, repeats."""
    values = constant_value(vector)
    if values is not None:
        return int(values.reshape(-1)[index])
    chosen = e.op("Gather", vector, e.integers([index], "index"), axis=0)
    if vector.dtype == ir.DataType.INT64:
        return chosen
    return e.op("Cast", chosen, to=int(ir.DataType.INT64))


def plus(e: Emitter, a: Size, b: Size) -> Size:
    if isinstance(a, int) and isinstance(b, int):
        return a + b
    if a == 0:
        return b
    return a if b == 0 else e.op("Add", as_vector(e, a), as_vector(e, b))


def minus(e: Emitter, a: Size, b: Size) -> Size:
    if isinstance(a, int) and isinstance(b, int):
        return a - b
    return a if b == 0 else e.op("Sub", as_vector(e, a), as_vector(e, b))


def times(e: Emitter, a: Size, factor: int) -> Size:
    if isinstance(a, int):
        return a * factor
    return a if factor == 1 else e.op("Mul", a, e.integers([factor], "factor"))


def product(e: Emitter, sizes: Sequence[Size]) -> Size:
    result: Size = math.prod(size for size in sizes if isinstance(size, int))
    for size in sizes:
        if isinstance(size, int):
            continue
        result = times(e, size, result) if isinstance(result, int) else e.op("Mul", result, size)
    return result


def at_least(e: Emitter, a: Size, least: int) -> Size:
    if isinstance(a, int):
        return max(a, least)
    return e.op("Max", a, e.integers([least], "least"))


def at_most(e: Emitter, a: Size, most: Size) -> Size:
    if isinstance(a, int) and isinstance(most, int):
        return min(a, most)
    return a if a == 0 else e.op("Min", as_vector(e, a), as_vector(e, most))


def from_start(e: Emitter, index: Size, size: Size) -> Size:
    """Return an index that counts from the end where it is negative, counted from the start."""
    if isinstance(index, int):
        return plus(e, size, index) if index < 0 else index
    return all_from_start(e, index, as_vector(e, size))


def all_from_start(e: Emitter, indices: ir.Value, sizes: ir.Value) -> ir.Value:
    """`from_start` of many indices at once; `sizes` broadcasts to them."""
    if indices.dtype not in (None, ir.DataType.INT64):
        indices = e.op("Cast", indices, to=int(ir.DataType.INT64))
    negative = e.op("Less", indices, e.integers([0], "zero"))
    return e.op("Where", negative, e.op("Add", indices, sizes), indices)


def reshaped(e: Emitter, value: ir.Value, sizes: Sequence[Size]) -> ir.Value:
    """Reshape a value to these sizes; a single one that is not known is left to Reshape."""
    numbers = [size if isinstance(size, int) else -1 for size in sizes]
    if 0 not in numbers and numbers.count(-1) <= 1:
        return e.op("Reshape", value, e.integers(numbers, "shape"))
    return reshaped_to(e, value, joined(e, sizes))


def reshaped_to(e: Emitter, value: ir.Value, shape: ir.Value) -> ir.Value:
    """Reshape a value to the sizes in a vector, in which 0 means an empty axis."""
    if e.graph.opset_imports.get("", 0) >= OPSET_OF_ALLOWZERO:
        return e.op("Reshape", value, shape, allowzero=1)
    return e.op("Reshape", value, shape)


def zeros_like(e: Emitter, value: ir.Value) -> ir.Value:
    """Return zeros in the shape of a value of the forward graph."""
    return e.op("Expand", e.floats(0, "zero"), sizes_of(e, value))
