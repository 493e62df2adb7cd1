"""Rules of ops that pick elements by index, or put them by index.

Their gradients are sums over the places that an element was picked for. Engines do not take scatter
with reduction, so the sums are formed by gathering where the indices are constants, and by products
with a matrix of zeros and ones where they are known at run time only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from odin_export.emit import Emitter, constant_value, dims
from odin_export.rules.common import Gradients, operand, refused
from odin_export.rules.lengths import (
    Size,
    all_from_start,
    as_vector,
    from_start,
    joined,
    known_sizes,
    minus,
    product,
    reshaped,
    size_of,
    zeros_like,
)
from odin_export.rules.slicing import Stretch, padded, placed

# Above this ratio of elements gathered to elements at hand, a matrix product is cheaper, if the
# matrix has no more elements than that.
WASTE = 8
LARGEST_MATRIX = 2**20


def gather(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = the elements of x at some indices along an axis; dx at j = the sum of dy over all k with
    index_k = j."""
    x, indices = operand(node, 0), operand(node, 1)
    axis = node.attributes.get_int("axis", 0) % len(dims(x))
    sizes = [size_of(e, x, each) for each in range(len(dims(x)))]
    return [_summed_at(e, dy, axis, sizes, indices), None]


def compress(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = the elements of x along an axis (or of all of x, in a row) where a constant condition
    holds; dx = dy at these, 0 at all others."""
    x, condition = operand(node, 0), constant_value(node.inputs[1])
    if condition is None:
        raise refused(node, "its condition is computed at run time", "make it a constant")
    rank = len(dims(x))
    sizes = [size_of(e, x, each) for each in range(rank)]
    chosen = e.integers([int(index) for index in np.flatnonzero(condition)], "chosen")
    if "axis" in node.attributes:
        axis = node.attributes.get_int("axis", 0) % rank
        return [_summed_at(e, dy, axis, sizes, chosen), None]
    return [reshaped(e, _summed_at(e, dy, 0, [product(e, sizes)], chosen), sizes), None]


def _summed_at(
    e: Emitter, value: ir.Value, axis: int, sizes: Sequence[Size], indices: ir.Value
) -> ir.Value:
    """Sum a value over all k with index_k = j, for each j along an axis.

    Args:
        e: appends the nodes.
        value: has, in place of the axis, the axes of `indices`.
        axis: of the result.
        sizes: of the result.
        indices: integers of any rank; negative ones count from the end.
    """
    rank = len(dims(indices))
    count = _count(e, indices)
    picked = [count if each == axis else size for each, size in enumerate(sizes)]
    if rank == 0:
        value = e.op("Unsqueeze", value, e.integers([axis], "axis"))
    elif rank > 1:
        value = reshaped(e, value, picked)
    numbers, size = constant_value(indices), sizes[axis]
    if numbers is not None:
        numbers = numbers.astype(np.int64).reshape(-1)
        if isinstance(size, int):
            numbers = np.where(numbers < 0, numbers + size, numbers)
        if (numbers >= 0).all() or (numbers < 0).all():
            return _summed_at_constants(e, value, axis, picked, size, numbers)
    return _summed_by_product(e, value, axis, len(sizes), size, _row(e, indices))


def _count(e: Emitter, indices: ir.Value) -> Size:
    sizes = known_sizes(indices)
    if sizes is not None:
        return int(np.prod(sizes, dtype=np.int64))
    return e.op("Reshape", e.op("Size", indices), e.integers([1], "shape"))


def _row(e: Emitter, indices: ir.Value) -> ir.Value:
    """Return indices as one row of int64."""
    if indices.dtype != ir.DataType.INT64:
        indices = e.op("Cast", indices, to=int(ir.DataType.INT64))
    return e.op("Reshape", indices, e.integers([-1], "shape"))


def _summed_at_constants(
    e: Emitter,
    value: ir.Value,
    axis: int,
    picked: Sequence[Size],
    size: Size,
    numbers: np.ndarray,
) -> ir.Value:
    """`_summed_at` for constants of one sign: by padding, or by gathering with the inverse."""
    count = len(numbers)
    step = int(numbers[1] - numbers[0]) if count > 1 else 1
    if count == 0 or (abs(step) == 1 and (np.diff(numbers) == step).all()):
        first = from_start(e, int(numbers[0]) if count else 0, size)
        return placed(e, value, picked, {axis: Stretch(first, step, count, size)})
    # The part of the axis that is reached, from its start or up to its end.
    reach = int(-numbers.min()) if numbers[0] < 0 else int(numbers.max()) + 1
    offset = minus(e, size, reach)
    before, after = (offset, 0) if numbers[0] < 0 else (0, offset)
    within = np.where(numbers < 0, numbers + reach, numbers)
    gathered = reach * int(np.bincount(within).max())
    if gathered > WASTE * (reach + count) and reach * count <= LARGEST_MATRIX:
        row = e.integers([int(number) for number in numbers], "indices")
        return _summed_by_product(e, value, axis, len(picked), size, row)
    table = _inverse(within, reach)
    rank = len(picked)
    if count in table:
        value = padded(e, value, [int(each == rank + axis) for each in range(2 * rank)])
    if table.shape[1] == 1:
        value = e.op("Gather", value, e.integers([int(k) for k in table[:, 0]]), axis=axis)
    else:
        value = e.op("Gather", value, e.constant(table, "places"), axis=axis)
        value = e.op("ReduceSum", value, e.integers([axis + 1], "axes"), keepdims=0)
    pads = {axis: before, rank + axis: after}
    return padded(e, value, [pads.get(each, 0) for each in range(2 * rank)])


def _inverse(numbers: np.ndarray, size: int) -> np.ndarray:
    """For each j below `size`, all k with numbers[k] = j, filled up with the count of numbers."""
    counts = np.bincount(numbers, minlength=size)
    table = np.full((size, counts.max()), len(numbers), np.int64)
    order = np.argsort(numbers, kind="stable")
    firsts = np.cumsum(counts) - counts
    rows = numbers[order]
    table[rows, np.arange(len(numbers)) - firsts[rows]] = order
    return table


def _summed_by_product(
    e: Emitter, value: ir.Value, axis: int, rank: int, size: Size, row: ir.Value
) -> ir.Value:
    """`_summed_at` for any indices: the product with a matrix of ones where index_k = j."""
    row = all_from_start(e, row, as_vector(e, size))
    if axis == rank - 2:  # the matrix goes on the left
        return e.op("MatMul", _matches(e, row, 0, _range(e, size), 1), value)
    matches = _matches(e, row, 1, _range(e, size), 0)
    if rank == 1:
        value = e.op("Unsqueeze", value, e.integers([0], "axis"))
        return e.op("Squeeze", e.op("MatMul", value, matches), e.integers([0], "axis"))
    if axis == rank - 1:
        return e.op("MatMul", value, matches)
    perm = list(range(rank))
    perm[axis], perm[-1] = perm[-1], perm[axis]
    product = e.op("MatMul", e.op("Transpose", value, perm=perm), matches)
    return e.op("Transpose", product, perm=perm)


def _matches(e: Emitter, a: ir.Value, axis_a: int, b: ir.Value, axis_b: int) -> ir.Value:
    """1 where a = b, else 0, after each got one more axis."""
    a = e.op("Unsqueeze", a, e.integers([axis_a], "axis"))
    b = e.op("Unsqueeze", b, e.integers([axis_b], "axis"))
    return e.op("Cast", e.op("Equal", a, b), to=int(e.dtype))


def _range(e: Emitter, size: Size) -> ir.Value:
    """0, 1, ... size - 1."""
    if isinstance(size, int):
        return e.integers(range(size), "range")
    end = e.op("Squeeze", size, e.integers([0], "axis"))
    return e.op("Range", e.constant(np.int64(0), "zero"), end, e.constant(np.int64(1), "one"))


def gather_elements(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y at (i, k) = x at (i, index_ik), along an axis; dx at (i, j) = the sum of dy_ik over all k
    with index_ik = j."""
    x, indices = operand(node, 0), operand(node, 1)
    rank = len(dims(x))
    axis = node.attributes.get_int("axis", 0) % rank
    if _are_unique(indices, axis, dims(x)[axis]):
        dx = e.op("ScatterElements", zeros_like(e, x), indices, dy, axis=axis)
        return [dx, None]
    size = size_of(e, x, axis)
    positive = all_from_start(e, indices, as_vector(e, size))
    places = e.op("Unsqueeze", positive, e.integers([axis], "axis"))
    targets = [-1 if each == axis else 1 for each in range(rank + 1)]
    target = e.op("Reshape", _range(e, size), e.integers(targets, "shape"))
    matches = e.op("Equal", places, target)
    spread = e.op("Unsqueeze", dy, e.integers([axis], "axis"))
    chosen = e.op("Where", matches, spread, e.floats(0, "zero"))
    dx = e.op("ReduceSum", chosen, e.integers([axis + 1], "axes"), keepdims=0)
    after: list[Size] = [0] * (2 * rank)  # indices may be fewer than x along the other axes
    for each, (own, picked) in enumerate(zip(dims(x), dims(indices), strict=True)):
        if each != axis and (own is None or own != picked):
            missing = minus(e, size_of(e, x, each), size_of(e, indices, each))
            after[rank + each] = missing
    return [padded(e, dx, after), None]


def _are_unique(indices: ir.Value, axis: int, size: int | str | None) -> bool:
    """Whether no index occurs twice along the axis, as far as is known before run time."""
    if dims(indices)[axis] == 1:
        return True
    numbers = constant_value(indices)
    if numbers is not None:
        if isinstance(size, int):
            numbers = np.where(numbers < 0, numbers + size, numbers)
        elif (numbers < 0).any() and (numbers >= 0).any():
            return False
        return bool((np.diff(np.sort(numbers, axis), axis=axis) != 0).all())
    producer = indices.producer()
    if producer is None or producer.op_type != "TopK" or indices is not producer.outputs[1]:
        return False
    return producer.attributes.get_int("axis", -1) % len(dims(indices)) == axis


def gather_nd(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = the elements of x at tuples of indices, batch by batch; dx = the sum of dy over all
    tuples that name an element.

    The axes that are indexed become one, and the tuples indices along it.
    """
    x = operand(node, 0)
    own = [size_of(e, x, axis) for axis in range(len(dims(x)))]
    if _are_numbered(node):
        return [e.op("ScatterND", zeros_like(e, x), operand(node, 1), dy), None]
    places = _constant_places(node, own)
    if places is None:
        return [_summed_by_batch(e, node, dy, own), None]
    flat, indexed = places
    rest = own[len(indexed) :]
    value = reshaped(e, dy, [flat.size, *rest])
    row = e.integers([int(place) for place in flat], "places")
    summed = _summed_at(e, value, 0, [int(np.prod(indexed)), *rest], row)
    return [reshaped(e, summed, own), None]


def _are_numbered(node: ir.Node) -> bool:
    """Whether the k-th of the tuples contains k, as in x[arange(n), indices]: no two are equal."""
    indices = operand(node, 1)
    joint = indices.producer()
    if joint is None or joint.op_type != "Concat" or len(dims(indices)) != 2:
        return False
    if node.attributes.get_int("batch_dims", 0) or joint.attributes.get_int("axis", 0) not in (
        1,
        -1,
    ):
        return False
    for column in joint.inputs:
        maker = column.producer() if column is not None else None
        while maker is not None and maker.op_type in ("Unsqueeze", "Reshape", "Cast"):
            maker = operand(maker, 0).producer()
        if maker is not None and maker.op_type == "Range":
            start, step = constant_value(maker.inputs[0]), constant_value(maker.inputs[2])
            # A column of one value for each tuple is the whole range.
            if start is not None and start == 0 and step is not None and step > 0:
                return column is not None and dims(column)[1] == 1
    return False


def _constant_places(node: ir.Node, own: Sequence[Size]) -> tuple[np.ndarray, list[int]] | None:
    """Constant tuples as places in the axes that they index, flattened; and those axes' sizes.

    The axes of a batch count as indexed too, each entry by itself.
    """
    numbers = constant_value(node.inputs[1])
    if numbers is None:
        return None
    batch = node.attributes.get_int("batch_dims", 0)
    sizes = [size for size in own[: batch + numbers.shape[-1]] if isinstance(size, int)]
    if len(sizes) < batch + numbers.shape[-1]:
        return None
    coordinates = np.indices(numbers.shape[:-1])[:batch]
    tuples = [*coordinates, *np.moveaxis(numbers, -1, 0)]
    positive = [np.where(k < 0, k + size, k) for k, size in zip(tuples, sizes, strict=True)]
    return np.ravel_multi_index(positive, sizes).reshape(-1), sizes


def _summed_by_batch(e: Emitter, node: ir.Node, dy: ir.Value, own: Sequence[Size]) -> ir.Value:
    """dx of GatherND as a product, batch by batch: a matrix of ones where a tuple names a place,
    of places x tuples, times dy, of tuples x what a tuple names."""
    indices = operand(node, 1)
    batch, length = node.attributes.get_int("batch_dims", 0), dims(indices)[-1]
    if not isinstance(length, int):
        raise refused(node, "the length of its tuples is not known", "fix the size of its indices")
    leading, indexed, rest = own[:batch], own[batch : batch + length], own[batch + length :]
    tuples = [size_of(e, indices, axis) for axis in range(batch, len(dims(indices)) - 1)]
    count, places = product(e, tuples), product(e, indexed)
    strides = [product(e, indexed[axis + 1 :]) for axis in range(length)]
    positive = all_from_start(e, indices, joined(e, indexed))
    flat = e.op("Mul", positive, joined(e, strides))
    flat = e.op("ReduceSum", flat, e.integers([-1], "axis"), keepdims=0)
    flat = reshaped(e, flat, [*leading, 1, count])
    every = e.op("Unsqueeze", _range(e, places), e.integers([1], "axis"))
    matches = e.op("Cast", e.op("Equal", flat, every), to=int(e.dtype))
    value = reshaped(e, dy, [*leading, count, product(e, rest)])
    return reshaped(e, e.op("MatMul", matches, value), own)


def scatter_elements(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = data with updates at some indices along an axis, in place of what is there or (reduction
    "add") added to it; d data = dy with zeros there, or dy; d updates = dy there.

    As in PyTorch each update gets dy even where several, against ONNX's rules, go to one place.
    """
    data, indices, updates = (operand(node, index) for index in range(3))
    axis = node.attributes.get_int("axis", 0)
    adds = _adds(node)
    d_data = d_updates = None
    if e.wants(data):
        d_data = dy
        if not adds:
            d_data = e.op("ScatterElements", dy, indices, zeros_like(e, updates), axis=axis)
    if e.wants(updates):
        d_updates = e.op("GatherElements", dy, indices, axis=axis)
    return [d_data, None, d_updates]


def scatter_nd(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = data with updates at some tuples of indices; as `scatter_elements`."""
    data, indices, updates = (operand(node, index) for index in range(3))
    adds = _adds(node)
    d_data = d_updates = None
    if e.wants(data):
        d_data = dy if adds else e.op("ScatterND", dy, indices, zeros_like(e, updates))
    if e.wants(updates):
        d_updates = e.op("GatherND", dy, indices)
    return [d_data, None, d_updates]


def _adds(node: ir.Node) -> bool:
    """Whether a scatter adds to what is there, rather than replaces it."""
    reduction = node.attributes.get_string("reduction", "none")
    if reduction not in ("none", "add"):
        raise refused(node, f"its reduction is {reduction!r}", "use 'none' or 'add'")
    return reduction == "add"


def top_k(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = the k largest or smallest elements along an axis; dx = dy at these, 0 at all others.

    Of equal elements those get dy that the engine picked.
    """
    x, indices = operand(node, 0), node.outputs[1]
    indices.name = indices.name or e.unique("indices")
    axis = node.attributes.get_int("axis", -1)
    return [e.op("ScatterElements", zeros_like(e, x), indices, dy, axis=axis), None]
