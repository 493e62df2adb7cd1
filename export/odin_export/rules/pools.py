"""Rules of pools."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from odin_export.emit import Emitter, dims
from odin_export.rules.common import Gradients, operand, refused, sizes_of
from odin_export.rules.lengths import joined
from odin_export.rules.windows import (
    LARGEST,
    Taps,
    Window,
    count_along,
    fitted,
    padded,
    pads_before,
    placed,
    separated,
    spatial_axes,
    spread,
)

# A maximum over more cells than this is taken axis by axis: the sum of the sizes of the kernel,
# rather than their product, is then what its gradient costs.
MOST_TAPS = 12


def average_pool(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = mean of x over the cells of a window, those in the padding counted with
    count_include_pad only and those beyond it, with ceil_mode, never; dx = each dy / (number of
    cells) spread over its window. Cells that no window covers get 0.
    """
    x, y = operand(node, 0), node.outputs[0]
    window = _window(node, x)
    dy = _over_cells(e, node, dy, window)
    padded_or_dilated = any(window.pads) or window.same or window.dilated
    if window.kernel == window.strides and window.rank == 2 and not padded_or_dilated:
        return [_repeated(e, dy, window, x, y)]
    return [_window_sum(e, dy, window, x, y)]


def lp_pool(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = (sum of |x|^p over a window)^(1/p); dx = sign(x) |x|^(p - 1) times the sum of
    dy / y^(p - 1) of the windows on x. At the kink x = 0: 0, also where all of a window is 0.
    """
    x, y = operand(node, 0), node.outputs[0]
    p = node.attributes.get_int("p", 2)
    total = _window_sum(e, _over_norm(e, y, dy, p), _window(node, x), x, y)
    return [_times_power(e, x, total, p)]


def global_lp_pool(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = (sum of |x|^p over the spatial axes)^(1/p); dx = sign(x) |x|^(p - 1) dy / y^(p - 1).

    At the kink x = 0: 0, also where all of an image is 0.
    """
    x = operand(node, 0)
    p = node.attributes.get_int("p", 2)
    return [_times_power(e, x, _over_norm(e, node.outputs[0], dy, p), p)]


def max_pool(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = maximum of x over a window; dx = the sum of the dy of the windows whose first maximum,
    in row-major order, x is (as PyTorch breaks ties). Cells of the padding are no maximum.

    A window of which NaN is the maximum gives no gradient.
    """
    x, y = operand(node, 0), node.outputs[0]
    window = _window(node, x)
    axes = [
        axis
        for axis, size in enumerate(window.kernel)
        if size > 1 or window.strides[axis] > 1 or window.before[axis] or window.after[axis]
    ]
    if math.prod(window.kernel) <= MOST_TAPS or len(axes) < 2:
        return [_to_first_maximum(e, node, dy, window, x, y)]
    # First the maximum along the last axis, and so on: the first axis that has the maximum of all
    # is found first on the way back, as in row-major order.
    stages = [x]
    for axis in axes[:0:-1]:
        stages.append(_maximum_along(e, node, stages[-1], window.along(axis), axis))
    stages.append(y)
    for axis, source, maximum in zip(axes, stages[-2::-1], stages[:0:-1], strict=True):
        dy = _to_first_maximum(e, node, dy, window.along(axis), source, maximum)
    return [dy]


def global_max_pool(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = maximum of x over the spatial axes; dx = dy where x is the first maximum in row-major
    order, 0 elsewhere (as PyTorch's adaptive_max_pool breaks ties).
    """
    x = operand(node, 0)
    rank = len(dims(x))
    sizes = [size for size in dims(x)[2:] if isinstance(size, int)]
    if len(sizes) == rank - 2:
        numbers = e.constant(np.arange(math.prod(sizes)), "numbers")
        cells = e.integers([0, 0, math.prod(sizes)], "shape")
    else:
        count = e.op("ReduceProd", sizes_of(e, x, list(range(2, rank))), keepdims=0)
        numbers = e.op("Range", e.constant(np.int64(0)), count, e.constant(np.int64(1)))
        cells = joined(e, [0, 0, e.op("Reshape", count, e.integers([1], "shape"))])
    first = e.op("ArgMax", e.op("Reshape", x, cells), axis=2, keepdims=1)
    alone = e.op("Reshape", dy, e.integers([0, 0, 1], "shape"))
    dx = e.op("Where", e.op("Equal", first, numbers), alone, e.floats(0, "zero"))
    return [e.op("Reshape", dx, sizes_of(e, x))]


def _window(node: ir.Node, x: ir.Value) -> Window:
    """The window of a pool, checked for whether all agree how many there are.

    Before opset 22 ONNX counts one that starts in the padding at the end, which ceil_mode may
    lead to; PyTorch and ONNX Runtime never do.
    """
    sizes = dims(x)[2:]
    window = Window.of(node, node.attributes.get_ints("kernel_shape", []), sizes)
    if not node.attributes.get_int("ceil_mode", 0) or window.same:
        return window
    for axis, (size, count) in enumerate(zip(sizes, dims(node.outputs[0])[2:], strict=True)):
        if not isinstance(size, int) or not isinstance(count, int):
            continue
        if (count - 1) * window.strides[axis] >= size + window.before[axis]:
            why = "ceil_mode leads to a window that starts in the padding"
            raise refused(node, why, "convert the model to opset 22 or choose other pads")
    return window


# --- sums over windows --------------------------------------------------------------------------


def _window_sum(e: Emitter, dy: ir.Value, window: Window, x: ir.Value, y: ir.Value) -> ir.Value:
    """Add dy of each window to every cell that it covers.

    With stride 1 that is a sum over the windows of dy, for which engines have AveragePool.
    """
    pads = [far - pad for far, pad in zip(window.reach * 2, window.pads, strict=True)]
    if window.strided or window.dilated or min(pads) < 0:
        return spread(e, dy, window, x, y)
    # With ceil_mode, too, there are as many windows as without, stride 1 leaves no remainder.
    mean = e.op("AveragePool", dy, kernel_shape=window.kernel, pads=pads, count_include_pad=1)
    return e.op("Mul", mean, e.floats(math.prod(window.kernel), "cells"))


def _repeated(e: Emitter, dy: ir.Value, window: Window, x: ir.Value, y: ir.Value) -> ir.Value:
    """Repeat each element over its window, and pad with zeros at the end to x's size."""
    scales = e.constant(np.array([1, 1, *window.strides], np.float32), "scales")
    dx = e.op(
        "Resize",
        dy,
        None,
        scales,
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
    sizes = dims(y)[2:]
    lengths = [
        size * stride if isinstance(size, int) else None
        for size, stride in zip(sizes, window.strides, strict=True)
    ]
    return fitted(e, dx, window, x, [0, 0], lengths)


def _over_cells(e: Emitter, node: ir.Node, dy: ir.Value, window: Window) -> ir.Value:
    """dy / (number of cells in the mean), which is a product of one number for each axis."""
    include = bool(node.attributes.get_int("count_include_pad", 0))
    ceil_mode = bool(node.attributes.get_int("ceil_mode", 0))
    x, y = operand(node, 0), node.outputs[0]
    factor = np.ones([1] * window.rank)
    for axis in range(window.rank):
        size, count = dims(x)[2 + axis], dims(y)[2 + axis]
        shape = [-1 if a == axis else 1 for a in range(window.rank)]
        unpadded = not window.same and not window.before[axis] and not window.after[axis]
        if not ceil_mode and (include or unpadded):
            factor = factor / window.kernel[axis]
        elif isinstance(size, int) and isinstance(count, int) and not window.same:
            cells = _cells(window, axis, size, count, include)
            factor = factor / np.maximum(cells, 1).reshape(shape)
        else:
            number = _cells_at_run_time(e, window, axis, x, y, include)
            dy = e.op("Div", dy, e.op("Reshape", number, e.integers(shape, "shape")))
    if np.ptp(factor) == 0:
        factor = factor.reshape(-1)[0]
    return dy if np.all(factor == 1) else e.op("Mul", dy, e.floats(factor, "share"))


def _cells(window: Window, axis: int, size: int, count: int, include: bool) -> np.ndarray:
    """How many cells of each window, along one axis, lie in the image (and its padding)."""
    kernel, dilation, before = window.kernel[axis], window.dilations[axis], window.before[axis]
    start = np.arange(count) * window.strides[axis]
    low, high = before, before + size
    if include:
        low, high = 0, high + window.after[axis]
    first = np.maximum(-(-(low - start) // dilation), 0)
    return np.minimum(-(-(high - start) // dilation), kernel) - first


def _cells_at_run_time(
    e: Emitter, window: Window, axis: int, x: ir.Value, y: ir.Value, include: bool
) -> ir.Value:
    """As `_cells`, as a float vector."""
    zero, one = e.constant(np.int64(0)), e.constant(np.int64(1))
    count = e.op("Squeeze", sizes_of(e, y, [2 + axis]))
    start = e.op("Mul", e.op("Range", zero, count, one), e.integers([window.strides[axis]]))
    low = e.op("Gather", pads_before(e, window, x), e.integers([axis]), axis=0)
    high = e.op("Add", sizes_of(e, x, [2 + axis]), low)
    if include:
        low, high = e.integers([0]), e.op("Add", high, e.integers([window.after[axis]]))
    last = e.op(
        "Min",
        _taps_until(e, high, start, window.dilations[axis]),
        e.integers([window.kernel[axis]]),
    )
    cells = e.op("Sub", last, _taps_until(e, low, start, window.dilations[axis]))
    return e.op("Cast", e.op("Max", cells, e.integers([1])), to=int(e.dtype))


def _taps_until(e: Emitter, end: ir.Value, start: ir.Value, dilation: int) -> ir.Value:
    """ceil((end - start) / dilation), at least 0: the taps of each window before a cell."""
    distance = e.op("Max", e.op("Sub", end, start), e.integers([0]))
    if dilation == 1:
        return distance
    rounded = e.op("Add", distance, e.integers([dilation - 1]))
    return e.op("Div", rounded, e.integers([dilation]))


def _over_norm(e: Emitter, y: ir.Value, dy: ir.Value, p: int) -> ir.Value:
    """dy / y^(p - 1), and 0 where that power is 0."""
    if p == 1:
        return dy
    power = y if p == 2 else e.op("Pow", y, e.floats(p - 1, "exponent"))
    zero = e.floats(0, "zero")
    return e.op("Where", e.op("Equal", power, zero), zero, e.op("Div", dy, power))


def _times_power(e: Emitter, x: ir.Value, factor: ir.Value, p: int) -> ir.Value:
    """sign(x) |x|^(p - 1) * factor."""
    if p == 1:
        return e.op("Mul", e.op("Sign", x), factor)
    if p > 2:
        x = e.op("Mul", x, e.op("Pow", e.op("Abs", x), e.floats(p - 2, "exponent")))
    return e.op("Mul", x, factor)


# --- maxima -------------------------------------------------------------------------------------


def _to_first_maximum(
    e: Emitter, node: ir.Node, dy: ir.Value, window: Window, x: ir.Value, y: ir.Value
) -> ir.Value:
    """Hand each dy to the first cell of its window that equals y.

    Tap by tap, for all windows at once: the tap takes what is left of dy where it equals y.
    """
    zero = e.floats(0, "zero")
    taps: Taps = {}
    for tap, cells in _cells_of_taps(e, node, window, x, y).items():
        found = e.op("Equal", cells, y)
        taps[tap] = e.op("Where", found, dy, zero)
        dy = e.op("Where", found, zero, dy)
    return placed(e, taps, window, x, y)


def _cells_of_taps(e: Emitter, node: ir.Node, window: Window, x: ir.Value, y: ir.Value) -> Taps:
    """For each tap, in row-major order, the cells of x it stands on, in the shape of y.

    The padding is NaN, which equals nothing, where -inf would equal the maximum of -inf.
    """
    channels = dims(x)[1]
    if not isinstance(channels, int) and window.strided:
        raise refused(node, "its number of channels is not fixed", "export with fixed channels")
    furthest = [far // stride for far, stride in zip(window.reach, window.strides, strict=True)]
    counts = [count_along(e, y, 2 + axis, extra=far) for axis, far in enumerate(furthest)]
    image = _padded_to(e, x, y, window, furthest)
    if window.strided:
        image = separated(e, image, window.strides, count_along(e, x, 1), counts)
    return {
        tap: _shifted(e, image, tap, window, furthest, channels)
        for tap in np.ndindex(*window.kernel)
    }


def _padded_to(
    e: Emitter, x: ir.Value, y: ir.Value, window: Window, furthest: list[int]
) -> ir.Value:
    """Pad or cut x so that it is windows + furthest strides long."""
    sizes, counts = dims(x)[2:], dims(y)[2:]
    after = [
        (count + far) * stride - size - before
        for size, count, far, stride, before in zip(
            sizes, counts, furthest, window.strides, window.before, strict=True
        )
        if isinstance(size, int) and isinstance(count, int)
    ]
    if len(after) == window.rank and not window.same:
        return padded(e, x, window.before, after, np.nan)
    before, axes = pads_before(e, window, x), spatial_axes(window)
    count = e.op("Add", sizes_of(e, y, axes), e.integers(furthest))
    length = e.op("Mul", count, e.integers(window.strides, "strides"))
    end = e.op("Sub", e.op("Sub", length, sizes_of(e, x, axes)), before)
    none = e.integers([0, 0], "no_pads")
    pads = e.op("Concat", none, before, none, end, axis=0)
    return e.op("Pad", x, pads, e.floats(np.nan, "nothing"))


def _shifted(
    e: Emitter,
    image: ir.Value,
    tap: tuple[int, ...],
    window: Window,
    furthest: list[int],
    channels: int | str | None,
) -> ir.Value:
    """The cells of one tap: those of its residue, which are a block of channels, shifted."""
    starts, ends, axes, block = [], [], [], 0
    for axis, number in enumerate(tap):
        shift, residue = divmod(number * window.dilations[axis], window.strides[axis])
        block = block * window.strides[axis] + residue
        if furthest[axis]:
            starts.append(shift)
            ends.append(shift - furthest[axis] or LARGEST)
            axes.append(2 + axis)
    if window.strided:
        assert isinstance(channels, int)
        starts, ends = [block * channels, *starts], [(block + 1) * channels, *ends]
        axes = [1, *axes]
    if not axes:
        return image
    return e.op("Slice", image, *(e.integers(part, "bounds") for part in (starts, ends, axes)))


def _maximum_along(e: Emitter, node: ir.Node, x: ir.Value, window: Window, axis: int) -> ir.Value:
    """The maximum of x over windows along one axis."""
    pads = {"auto_pad": window.same} if window.same else {"pads": window.pads}
    y = e.op(
        "MaxPool",
        x,
        kernel_shape=window.kernel,
        strides=window.strides,
        dilations=window.dilations,
        ceil_mode=node.attributes.get_int("ceil_mode", 0),
        **pads,
    )
    sizes = dims(x)
    sizes[2 + axis] = dims(node.outputs[0])[2 + axis]
    y.shape = ir.Shape(sizes)
    return y
