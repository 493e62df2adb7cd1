"""Rules of normalizations: what is divided by a deviation or a norm of itself.

Mean, variance and norm are computed anew, because engines do not hand them out, and in float32
where the graph computes in 16 bits: squares of what float16 holds easily leave its range. That is
also what `stash_type` asks for where it has its default.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from odin_export.emit import Emitter, dims
from odin_export.rules.common import (
    Gradients,
    narrowed,
    operand,
    optional_operand,
    refused,
    widened,
)
from odin_export.rules.lengths import Size, as_vector, product, reshaped, size_of, zeros_like

Mean = Callable[[ir.Value], ir.Value]


def layer_normalization(e: Emitter, node: ir.Node, dys: Sequence[ir.Value | None]) -> Gradients:
    """y = s n + b with n = (x - m) / d, d = sqrt(v + eps), over the axes from `axis` on.

    dn = s dy; dx = (dn - mean(dn) - n mean(n dn)) / d; ds = n dy; db = dy
    (Ba, Kiros and Hinton, 2016, equation 3). The other two outputs are m and 1 / d.
    """
    x, scale, bias = operand(node, 0), operand(node, 1), optional_operand(node, 2)
    dy = dys[0] if dys[0] is not None else zeros_like(e, x)
    grads: Gradients = [None] * len(node.inputs)
    if bias is not None and e.wants(bias):
        grads[2] = dy
    if not e.wants(x) and not e.wants(scale):
        return grads
    axes, epsilon = _axes_from(node), node.attributes.get_float("epsilon", 1e-5)
    wide, s, dy = widened(e, x, scale, dy)
    mean = _mean_over(e, axes)
    n, deviation = _standardized(e, mean, wide, epsilon)
    if e.wants(scale):
        grads[1] = narrowed(e, e.op("Mul", n, dy), scale)
    if e.wants(x):
        dx = _through_standardized(e, mean, n, deviation, e.op("Mul", dy, s))
        count = product(e, [size_of(e, x, axis) for axis in axes])
        dx = _with_statistics(e, dx, dys[1:], n, deviation, count)
        grads[0] = narrowed(e, dx, x)
    return grads


def _with_statistics(
    e: Emitter,
    dx: ir.Value,
    dys: Sequence[ir.Value | None],
    n: ir.Value,
    deviation: ir.Value,
    count: Size,
) -> ir.Value:
    """dx and what comes through m, dm / count, and r = 1 / d, -dr n / (d^2 count)."""
    for index, dy in enumerate(dys):
        if dy is None:
            continue
        (part,) = widened(e, dy)
        if index == 1:
            slope = e.op("Div", n, e.op("Mul", deviation, deviation))
            part = e.op("Neg", e.op("Mul", slope, part))
        number = as_vector(e, count)
        dx = e.op("Add", dx, e.op("Div", part, e.op("Cast", number, to=int(e.dtype))))
    return dx


def rms_normalization(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = s n with n = x / d, d = sqrt(mean(x^2) + eps), over the axes from `axis` on.

    dn = s dy; dx = (dn - n mean(n dn)) / d; ds = n dy (Zhang and Sennrich, 2019, equation 4).
    """
    x, scale = operand(node, 0), operand(node, 1)
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    wide, s, dy = widened(e, x, scale, dy)
    mean = _mean_over(e, _axes_from(node))
    deviation = _root(e, mean(e.op("Mul", wide, wide)), epsilon)
    n = e.op("Div", wide, deviation)
    grads: Gradients = [None, None]
    if e.wants(scale):
        grads[1] = narrowed(e, e.op("Mul", n, dy), scale)
    if e.wants(x):
        dn = e.op("Mul", dy, s)
        along = e.op("Mul", n, mean(e.op("Mul", n, dn)))
        grads[0] = narrowed(e, e.op("Div", e.op("Sub", dn, along), deviation), x)
    return grads


def instance_normalization(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = s n + b with n = (x - m) / sqrt(v + eps), over the spatial axes; s and b per channel.

    As layer normalization; ds and db are summed over all axes but that of the channels
    (Ulyanov, Vedaldi and Lempitsky, 2016, equation 2).
    """
    x, scale = operand(node, 0), operand(node, 1)
    rank = len(dims(x))
    if rank < 3:
        raise refused(node, "its input has no spatial axes", "give it three axes or more")
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    spatial, others = list(range(2, rank)), [0, *range(2, rank)]
    wide, s, dy = widened(e, x, scale, dy)
    mean = _mean_over(e, spatial)
    n, deviation = _standardized(e, mean, wide, epsilon)
    per_channel = e.op("Unsqueeze", s, e.integers(range(1, rank - 1), "axes"))
    dx = _through_standardized(e, mean, n, deviation, e.op("Mul", dy, per_channel))
    return _of_scale_and_bias(e, node, dx, n, dy, others)


def group_normalization(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = s n + b with n = (x - m) / sqrt(v + eps), over the channels of a group and all cells.

    As layer normalization; s and b are per channel (Wu and He, 2018, equation 7).
    """
    x, scale = operand(node, 0), operand(node, 1)
    groups, channels = node.attributes.get_int("num_groups", 1), dims(x)[1]
    if not isinstance(channels, int):
        raise refused(node, "its number of channels is not fixed", "export with fixed channels")
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    wide, s, dy = widened(e, x, scale, dy)
    whole = _sizes(e, x)
    apart = [whole[0], groups, channels // groups, *whole[2:]]
    wide, dy = reshaped(e, wide, apart), reshaped(e, dy, apart)
    cells = list(range(3, len(apart)))
    s = reshaped(e, s, [groups, channels // groups, *[1] * len(cells)])
    mean = _mean_over(e, [2, *cells])
    n, deviation = _standardized(e, mean, wide, epsilon)
    dx = _through_standardized(e, mean, n, deviation, e.op("Mul", dy, s))
    return _of_scale_and_bias(e, node, reshaped(e, dx, whole), n, dy, [0, *cells])


def mean_variance_normalization(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = c / d with c = x - mean(x), d = s + 1e-9, s = sqrt(mean(c^2)), over some axes.

    dx = (dy - mean(dy) - y mean(c dy) / s) / d. Where x is constant and s is 0, so is c, and the
    last term is taken to be 0.
    """
    x = operand(node, 0)
    rank = len(dims(x))
    axes = sorted({axis % rank for axis in node.attributes.get_ints("axes", [0, 2, 3])})
    wide, dy = widened(e, x, dy)
    mean = _mean_over(e, axes)
    centred = e.op("Sub", wide, mean(wide))
    root = e.op("Sqrt", mean(e.op("Mul", centred, centred)))
    deviation = e.op("Add", root, e.floats(1e-9, "epsilon"))
    y = e.op("Div", centred, deviation)
    divisor = e.op("Where", e.op("Greater", root, e.floats(0, "zero")), root, e.floats(1, "one"))
    along = e.op("Mul", y, e.op("Div", mean(e.op("Mul", centred, dy)), divisor))
    dx = e.op("Div", e.op("Sub", e.op("Sub", dy, mean(dy)), along), deviation)
    return [narrowed(e, dx, x)]


def lp_normalization(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x / ||x||_p along an axis, p = 1 or 2; dx = (dy - g sum(y dy)) / ||x||_p.

    g is the gradient of the norm: sign(x) for p = 1, y for p = 2. At a zero vector y is 0 by
    definition, and dx is taken to be 0.
    """
    x = operand(node, 0)
    axes = e.integers([node.attributes.get_int("axis", -1) % len(dims(x))], "axes")
    wide, dy = widened(e, x, dy)
    if node.attributes.get_int("p", 2) == 1:
        norm = e.op("ReduceSum", e.op("Abs", wide), axes, keepdims=1)
    else:
        norm = e.op("Sqrt", e.op("ReduceSum", e.op("Mul", wide, wide), axes, keepdims=1))
    zero, one = e.floats(0, "zero"), e.floats(1, "one")
    positive = e.op("Greater", norm, zero)
    inverse = e.op("Where", positive, e.op("Div", one, norm), zero)
    y = e.op("Mul", wide, inverse)
    along = e.op("ReduceSum", e.op("Mul", y, dy), axes, keepdims=1)
    of_norm = e.op("Sign", wide) if node.attributes.get_int("p", 2) == 1 else y
    dx = e.op("Mul", e.op("Sub", dy, e.op("Mul", of_norm, along)), inverse)
    return [narrowed(e, dx, x)]


def lrn(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x / d^beta with d = bias + alpha m, m = the mean of x^2 over a window of channels.

    What lies beyond the first and the last channel counts as 0 (Krizhevsky et al., 2012, section
    3.3). dx = dy / d^beta - 2 alpha beta x m'(x dy / d^(beta + 1)); m' is the mean over the
    window the other way round, which is the same one for an odd size.
    """
    x = operand(node, 0)
    size = node.attributes.get_int("size", 1)
    alpha = node.attributes.get_float("alpha", 1e-4)
    beta = node.attributes.get_float("beta", 0.75)
    bias = node.attributes.get_float("bias", 1.0)
    before, after = (size - 1) // 2, size // 2
    wide, dy = widened(e, x, dy)
    mean = _mean_of_channels(e, x, e.op("Mul", wide, wide), before, after)
    d = e.op("Add", e.op("Mul", mean, e.floats(alpha, "alpha")), e.floats(bias, "bias"))
    straight = e.op("Mul", dy, e.op("Pow", d, e.floats(-beta, "exponent")))
    each = e.op("Div", e.op("Mul", wide, straight), d)
    spread = _mean_of_channels(e, x, each, after, before)
    factor = e.floats(2 * alpha * beta, "factor")
    dx = e.op("Sub", straight, e.op("Mul", e.op("Mul", wide, spread), factor))
    return [narrowed(e, dx, x)]


def _axes_from(node: ir.Node) -> list[int]:
    rank = len(dims(operand(node, 0)))
    return list(range(node.attributes.get_int("axis", -1) % rank, rank))


def _sizes(e: Emitter, x: ir.Value) -> list[Size]:
    return [size_of(e, x, axis) for axis in range(len(dims(x)))]


def _mean_over(e: Emitter, axes: Sequence[int]) -> Mean:
    """How to average over some axes, which stay as axes of size one."""
    return lambda value: e.reduced("ReduceMean", value, axes)


def _root(e: Emitter, variance: ir.Value, epsilon: float) -> ir.Value:
    return e.op("Sqrt", e.op("Add", variance, e.floats(epsilon, "epsilon")))


def _standardized(e: Emitter, mean: Mean, x: ir.Value, epsilon: float) -> tuple[ir.Value, ir.Value]:
    """x with mean 0 and variance 1, and what it was divided by."""
    centred = e.op("Sub", x, mean(x))
    deviation = _root(e, mean(e.op("Mul", centred, centred)), epsilon)
    return e.op("Div", centred, deviation), deviation


def _through_standardized(
    e: Emitter, mean: Mean, n: ir.Value, deviation: ir.Value, dn: ir.Value
) -> ir.Value:
    """The gradient of x, given that of `_standardized`'s n."""
    along = e.op("Mul", n, mean(e.op("Mul", n, dn)))
    return e.op("Div", e.op("Sub", e.op("Sub", dn, mean(dn)), along), deviation)


def _of_scale_and_bias(
    e: Emitter, node: ir.Node, dx: ir.Value, n: ir.Value, dy: ir.Value, others: Sequence[int]
) -> Gradients:
    """The gradients of x, scale and bias; these two are sums over the other axes, as vectors."""
    x, scale, bias = (operand(node, index) for index in range(3))
    axes = e.integers(others, "axes")

    def total(value: ir.Value, like: ir.Value) -> ir.Value:
        summed = e.op("ReduceSum", value, axes, keepdims=0)
        return narrowed(e, e.op("Reshape", summed, e.integers([-1], "shape")), like)

    return [
        narrowed(e, dx, x) if e.wants(x) else None,
        total(e.op("Mul", n, dy), scale) if e.wants(scale) else None,
        total(dy, bias) if e.wants(bias) else None,
    ]


def _mean_of_channels(
    e: Emitter, x: ir.Value, value: ir.Value, before: int, after: int
) -> ir.Value:
    """The mean, over a window of channels that reaches so far, of what has the shape of x.

    A pooling over the axis of channels, which therefore has to be one of two or three spatial axes.
    """

    def pooled(rows: ir.Value, cells: int) -> ir.Value:
        return e.op(
            "AveragePool",
            rows,
            kernel_shape=[before + 1 + after, *[1] * cells],
            strides=[1] * (1 + cells),
            pads=[before, *[0] * cells, after, *[0] * cells],
            count_include_pad=1,
        )

    rank = len(dims(x))
    if rank <= 4:
        added = e.integers([1] if rank > 2 else [1, 3], "axes")
        return e.op("Squeeze", pooled(e.op("Unsqueeze", value, added), max(rank - 2, 1)), added)
    whole = _sizes(e, x)
    rows = reshaped(e, value, [whole[0], 1, whole[1], product(e, whole[2:])])
    return reshaped(e, pooled(rows, 1), whole)
