"""Gradient rules: for each ONNX op, how the gradient of its output becomes that of its inputs.

A rule is `rule(e, node, dy) -> [dx, ...]`: `e` appends nodes, `dy` is the gradient of the node's
output, and one entry is returned for each input of the node, `None` for an input that carries no
gradient or whose gradient nobody asked for (`e.wants(x)` tells). Rules of ops with several outputs
take one `dy` each; `None` stands for an output that the loss does not depend on. The walker in
`backward` accumulates, sums over broadcast dimensions and assigns shapes; rules do none of this.

Kinks follow PyTorch and are told in each rule. What is emitted stays within what TensorRT's parser
accepts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from odin_engines.errors import OdinError
from odin_export.emit import Emitter, constant_value, dims

Gradients = list[ir.Value | None]
Rule = Callable[..., Gradients]


# --- element by element -----------------------------------------------------------------------


def identity(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x; dx = dy."""
    return [dy]


def dropout(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x in inference, which is all that is differentiated; dx = dy."""
    training = constant_value(_input(node, 2))
    if _input(node, 2) is not None and (training is None or bool(training)):
        raise refused(node, "it is in training mode", "export the network in evaluation mode")
    return [dy, None, None][: len(node.inputs)]


def neg(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = -x; dx = -dy."""
    return [e.op("Neg", dy)]


def cast(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x in another floating type; dx = dy in the type of x."""
    return [e.op("Cast", dy, to=int(_typed(node, operand(node, 0))))]


def relu(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = max(x, 0); dx = dy where y > 0, else 0. At x = 0 the gradient is 0, as in PyTorch."""
    zero = e.floats(0, "zero")
    positive = e.op("Greater", node.outputs[0], zero)
    return [e.op("Where", positive, dy, zero)]


def add(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = a + b; da = dy, db = dy."""
    return [dy, dy]


def sub(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = a - b; da = dy, db = -dy."""
    return [dy, e.op("Neg", dy) if e.wants(node.inputs[1]) else None]


def mul(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = a b; da = dy b, db = dy a."""
    a, b = operand(node, 0), operand(node, 1)
    return [
        e.op("Mul", dy, b) if e.wants(a) else None,
        e.op("Mul", dy, a) if e.wants(b) else None,
    ]


def div(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = a / b; da = dy / b, db = -dy y / b."""
    a, b = operand(node, 0), operand(node, 1)
    da = e.op("Div", dy, b)
    db = e.op("Neg", e.op("Mul", da, node.outputs[0])) if e.wants(b) else None
    return [da if e.wants(a) else None, db]


def batch_normalization(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = s (x - m) / sqrt(v + eps) + b with constant s, b, m, v; dx = dy s / sqrt(v + eps).

    Inference mode (Ioffe and Szegedy, 2015, algorithm 2): the statistics do not depend on x.
    """
    scale, variance = (constant_value(node.inputs[i]) for i in (1, 4))
    training = node.attributes.get_int("training_mode", 0) == 1
    if scale is None or variance is None or training:
        raise refused(
            node,
            "its scale or variance is not a constant",
            "export the network in evaluation mode",
        )
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    factor = scale.astype(np.float64) / np.sqrt(variance.astype(np.float64) + epsilon)
    spatial = len(dims(operand(node, 0))) - 2
    dx = e.op("Mul", dy, e.floats(factor.reshape(-1, *[1] * spatial), f"{node.name}_factor"))
    return [dx, None, None, None, None]


# --- products -----------------------------------------------------------------------------------


def gemm(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = alpha A' B' + beta C; dA' = alpha dy B'^T, dB' = alpha A'^T dy, dC = beta dy.

    A' is A or A^T. Where it is A^T, dA = dA'^T = alpha B' dy^T; likewise B.
    """
    a, b = operand(node, 0), operand(node, 1)
    trans_a = int(node.attributes.get_int("transA", 0))
    trans_b = int(node.attributes.get_int("transB", 0))
    alpha = node.attributes.get_float("alpha", 1.0)
    beta = node.attributes.get_float("beta", 1.0)
    grads: Gradients = [None] * len(node.inputs)
    if e.wants(a) and trans_a:
        grads[0] = e.op("Gemm", b, dy, alpha=alpha, transA=trans_b, transB=1)
    elif e.wants(a):
        grads[0] = e.op("Gemm", dy, b, alpha=alpha, transB=1 - trans_b)
    if e.wants(b) and trans_b:
        grads[1] = e.op("Gemm", dy, a, alpha=alpha, transA=1, transB=trans_a)
    elif e.wants(b):
        grads[1] = e.op("Gemm", a, dy, alpha=alpha, transA=1 - trans_a)
    if len(node.inputs) > 2 and e.wants(node.inputs[2]):
        grads[2] = dy if beta == 1.0 else e.op("Mul", dy, e.floats(beta))
    return grads


def matmul(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = A B over the last two axes; dA = dy B^T, dB = A^T dy; leading axes broadcast."""
    a, b = operand(node, 0), operand(node, 1)
    for value in (a, b):
        if len(dims(value)) < 2:
            raise refused(node, "an operand is a vector", "give both operands two axes or more")
    return [
        e.op("MatMul", dy, _swap_last(e, b)) if e.wants(a) else None,
        e.op("MatMul", _swap_last(e, a), dy) if e.wants(b) else None,
    ]


def _swap_last(e: Emitter, value: ir.Value) -> ir.Value:
    axes = list(range(len(dims(value))))
    return e.op("Transpose", value, perm=[*axes[:-2], axes[-1], axes[-2]])


# --- convolution and pooling ------------------------------------------------------------------


def conv(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = W * x (cross-correlation); dx = the transposed convolution of dy with W.

    With stride 1 it is a convolution of dy with W flipped in space and with its channel axes
    exchanged, padded by dilation (k - 1) - pad: faster than ConvTranspose in most engines.
    Otherwise it is ConvTranspose with W as it is. W is stored once: the flip is part of the graph,
    on constants, and engines fold it when they load the graph.
    """
    x, weight = operand(node, 0), operand(node, 1)
    if any(e.wants(value) for value in node.inputs[1:]):
        raise refused(node, "its weight depends on the image", "make the weight a constant")
    window = _Window.of(node, dims(weight)[2:])
    if window.strides == [1] * window.rank:
        return [_conv_stride_1(e, node, dy, window), None, None][: len(node.inputs)]
    if window.dilations != [1] * window.rank:
        raise refused(
            node, "it is strided and dilated, which engines do not transpose", "use one of the two"
        )
    group = node.attributes.get_int("group", 1)
    dx = _conv_transpose(e, dy, weight, group, window, x)
    return [dx, None, None][: len(node.inputs)]


def _conv_stride_1(e: Emitter, node: ir.Node, dy: ir.Value, window: _Window) -> ir.Value:
    group = node.attributes.get_int("group", 1)
    weight = _flipped(e, _exchanged_channels(e, operand(node, 1), group), window)
    reach = [d * (k - 1) for d, k in zip(window.dilations, window.kernel, strict=True)]
    pads = [r - p for r, p in zip(reach * 2, window.pads, strict=True)]
    if any(pad < 0 for pad in pads):  # the forward pass padded by more than the kernel's reach
        crop = [min(pad, 0) for pad in pads]
        dy = e.op("Pad", dy, e.integers(_pads_of_all_axes(crop), "crop"), e.floats(0, "zero"))
        pads = [max(pad, 0) for pad in pads]
    return e.op(
        "Conv",
        dy,
        weight,
        group=group,
        kernel_shape=window.kernel,
        dilations=window.dilations,
        pads=pads,
    )


def _exchanged_channels(e: Emitter, weight: ir.Value, group: int) -> ir.Value:
    """(O, I/g, k...) -> (I, O/g, k...), group by group."""
    out_channels, in_channels, *kernel = (int(dim) for dim in dims(weight) if dim is not None)
    spatial = list(range(2, 2 + len(kernel)))
    if group == 1:
        return e.op("Transpose", weight, perm=[1, 0, *spatial])
    if in_channels == 1 and out_channels == group:  # depthwise: nothing to exchange
        return weight
    grouped = [group, out_channels // group, in_channels, *kernel]
    split = e.op("Reshape", weight, e.integers(grouped, "shape"))
    exchanged = e.op("Transpose", split, perm=[0, 2, 1, *[axis + 1 for axis in spatial]])
    merged = [group * in_channels, out_channels // group, *kernel]
    return e.op("Reshape", exchanged, e.integers(merged, "shape"))


def _flipped(e: Emitter, weight: ir.Value, window: _Window) -> ir.Value:
    axes = [axis + 2 for axis, size in enumerate(window.kernel) if size > 1]
    if not axes:
        return weight
    count = len(axes)
    return e.op(
        "Slice",
        weight,
        e.integers([-1] * count, "starts"),
        e.integers([np.iinfo(np.int64).min] * count, "ends"),
        e.integers(axes, "axes"),
        e.integers([-1] * count, "steps"),
    )


def average_pool(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = mean of x over a window of k cells, padding counted; dx = each dy / k spread over its
    window. Cells that no window covers get 0.

    Windows that tile the image repeat dy / k, which engines do faster than the depthwise
    transposed convolution that overlapping windows need.
    """
    x = operand(node, 0)
    window = _Window.of(node, node.attributes.get_ints("kernel_shape"))
    if node.attributes.get_int("ceil_mode", 0):
        raise refused(node, "it has ceil_mode", "export with ceil_mode off")
    if any(window.pads) and not node.attributes.get_int("count_include_pad", 0):
        raise refused(node, "it leaves padding out of the mean", "use count_include_pad=1")
    if window.dilations != [1] * window.rank:
        raise refused(node, "it is dilated", "use a depthwise convolution instead")
    channels = dims(x)[1]
    if not isinstance(channels, int):
        raise refused(node, "its number of channels is not fixed", "export with fixed channels")
    cells = np.prod(window.kernel)
    if window.kernel == window.strides and not any(window.pads) and window.rank == 2:
        return [_repeated(e, e.op("Mul", dy, e.floats(1 / cells)), window, x)]
    weight = np.full((channels, 1, *window.kernel), 1 / cells)
    mean = e.floats(weight, "mean_weight")
    return [_conv_transpose(e, dy, mean, channels, window, x)]


def _repeated(e: Emitter, dy: ir.Value, window: _Window, x: ir.Value) -> ir.Value:
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
    sizes = dims(x)[2:]
    if all(
        isinstance(size, int) and size % stride == 0
        for size, stride in zip(sizes, window.strides, strict=True)
    ):
        return dx
    missing = e.op("Sub", e.op("Shape", x), e.op("Shape", dx))
    pads = e.op("Concat", e.integers([0] * len(dims(x)), "no_pads"), missing, axis=0)
    return e.op("Pad", dx, pads, e.floats(0, "zero"))


def _conv_transpose(
    e: Emitter, dy: ir.Value, weight: ir.Value, group: int, window: _Window, x: ir.Value
) -> ir.Value:
    """Spread dy over the windows it came from and give the result x's spatial size.

    A size S leads to (S + pads - reach - 1) // stride + 1 windows, so `output_padding` restores
    what the division dropped. Where S is not known before run time the most that can have been
    dropped, stride - 1, is restored and the excess cut off.
    """
    sizes = dims(x)[2:]
    lost = [
        (size + before + after - reach - 1) % stride if isinstance(size, int) else stride - 1
        for size, before, after, reach, stride in zip(
            sizes,
            window.pads[: window.rank],
            window.pads[window.rank :],
            window.reach,
            window.strides,
            strict=True,
        )
    ]
    dx = e.op(
        "ConvTranspose",
        dy,
        weight,
        group=group,
        kernel_shape=window.kernel,
        strides=window.strides,
        pads=window.pads,
        output_padding=lost,
    )
    cut = [axis + 2 for axis, size in enumerate(sizes) if not isinstance(size, int)]
    cut = [axis for axis in cut if window.strides[axis - 2] > 1]
    if not cut:
        return dx
    ends = e.op("Gather", e.op("Shape", x), e.integers(cut, "axes"), axis=0)
    return e.op("Slice", dx, e.integers([0] * len(cut), "starts"), ends, e.integers(cut, "axes"))


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
    axes = _axes(node, rank)
    if axes is None:
        axes = [] if node.attributes.get_int("noop_with_empty_axes", 0) else list(range(rank))
    if axes and not node.attributes.get_int("keepdims", 1):
        dy = e.op("Unsqueeze", dy, e.integers(axes, "axes"))
    return axes, dy


# --- moving elements ----------------------------------------------------------------------------


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


# --- the tables -----------------------------------------------------------------------------------

RULES: dict[str, Rule] = {
    "Identity": identity,
    "Dropout": dropout,
    "Neg": neg,
    "Cast": cast,
    "Relu": relu,
    "Add": add,
    "Sub": sub,
    "Mul": mul,
    "Div": div,
    "BatchNormalization": batch_normalization,
    "Gemm": gemm,
    "MatMul": matmul,
    "Conv": conv,
    "AveragePool": average_pool,
    "GlobalAveragePool": global_average_pool,
    "ReduceMean": reduce_mean,
    "ReduceSum": reduce_sum,
    "Reshape": reshape,
    "Flatten": reshape,
    "Squeeze": reshape,
    "Unsqueeze": reshape,
    "Transpose": transpose,
    "Concat": concat,
}

# The inputs that broadcast: their gradients come out in the shape of the node's output, and the
# walker sums them over the axes along which the input was repeated.
BROADCASTING: dict[str, tuple[int, ...]] = {
    "Add": (0, 1),
    "Sub": (0, 1),
    "Mul": (0, 1),
    "Div": (0, 1),
    "MatMul": (0, 1),
    "Gemm": (2,),
}

# Their outputs are integers, truth values or piecewise constant: they carry no gradient.
NO_GRADIENT = frozenset(
    {
        *("Shape", "Size", "Range", "ConstantOfShape", "ArgMax", "ArgMin", "NonZero", "OneHot"),
        *("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "And", "Or", "Xor"),
        *("IsNaN", "IsInf", "Sign", "Floor", "Ceil", "Round"),
    }
)


# --- shared by the rules ------------------------------------------------------------------------


def refused(node: ir.Node, why: str, remedy: str) -> OdinError:
    """Return the error for a node that cannot be differentiated."""
    return OdinError(
        f"node {node.name!r} ({node.op_type}) cannot be differentiated: {why}; {remedy}"
    )


def operand(node: ir.Node, index: int) -> ir.Value:
    """Return an input that the op requires."""
    value = _input(node, index)
    if value is None:
        raise refused(node, f"its input {index} is missing", "check the model with onnx.checker")
    return value


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _typed(node: ir.Node, value: ir.Value) -> ir.DataType:
    if value.dtype is None:
        raise refused(
            node, "the type of its input is not known", "run shape inference on the model"
        )
    return value.dtype


def _axes(node: ir.Node, rank: int) -> list[int] | None:
    """The axes of a reduction, from its second input (opset 18) or its attribute."""
    if _input(node, 1) is not None:
        values = constant_value(node.inputs[1])
        if values is None:
            raise refused(node, "its axes are computed at run time", "make them constants")
        axes: Sequence[int] = [int(axis) for axis in values]
    else:
        axes = node.attributes.get_ints("axes", [])
    return sorted(axis % rank for axis in axes) or None


def _pads_of_all_axes(pads: Sequence[int]) -> list[int]:
    """Pads of the spatial axes -> pads of all axes, none for batch and channels."""
    rank = len(pads) // 2
    return [0, 0, *pads[:rank], 0, 0, *pads[rank:]]


class _Window:
    """Kernel, strides, dilations and pads of a convolution or pooling, spelled out."""

    def __init__(
        self, kernel: list[int], strides: list[int], dilations: list[int], pads: list[int]
    ) -> None:
        self.kernel, self.strides, self.dilations, self.pads = kernel, strides, dilations, pads
        self.rank = len(kernel)
        # How far a window reaches beyond its first cell.
        self.reach = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]

    @classmethod
    def of(cls, node: ir.Node, kernel: Sequence[int | str | None] | None) -> _Window:
        if kernel is None or not all(isinstance(size, int) for size in kernel):
            raise refused(node, "its kernel size is not known", "run shape inference on the model")
        sizes = [int(size or 0) for size in kernel]
        rank = len(sizes)
        auto_pad = node.attributes.get_string("auto_pad", "NOTSET")
        if auto_pad not in ("NOTSET", "VALID"):
            raise refused(node, f"auto_pad={auto_pad}", "export with explicit pads")
        return cls(
            sizes,
            list(node.attributes.get_ints("strides", [1] * rank)),
            list(node.attributes.get_ints("dilations", [1] * rank)),
            list(node.attributes.get_ints("pads", [0] * (2 * rank))),
        )
