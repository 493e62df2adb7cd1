"""Rules of convolution and pooling: ops that slide a window over the image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from odin_export.emit import Emitter, dims
from odin_export.rules.common import Gradients, operand, own_copy, refused


class Window:
    """Kernel, strides, dilations and pads of a convolution or pooling, spelled out."""

    def __init__(
        self, kernel: list[int], strides: list[int], dilations: list[int], pads: list[int]
    ) -> None:
        self.kernel, self.strides, self.dilations, self.pads = kernel, strides, dilations, pads
        self.rank = len(kernel)
        # How far a window reaches beyond its first cell.
        self.reach = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]

    @classmethod
    def of(cls, node: ir.Node, kernel: Sequence[int | str | None] | None) -> Window:
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
    window = Window.of(node, dims(weight)[2:])
    if window.strides == [1] * window.rank:
        return [_conv_stride_1(e, node, dy, window), None, None][: len(node.inputs)]
    if window.dilations != [1] * window.rank:
        raise refused(
            node, "it is strided and dilated, which engines do not transpose", "use one of the two"
        )
    group = node.attributes.get_int("group", 1)
    dx = _conv_transpose(e, dy, own_copy(e, weight), group, window, x)
    return [dx, None, None][: len(node.inputs)]


def _conv_stride_1(e: Emitter, node: ir.Node, dy: ir.Value, window: Window) -> ir.Value:
    group = node.attributes.get_int("group", 1)
    weight = _flipped(e, _exchanged_channels(e, operand(node, 1), group), window)
    reach = [d * (k - 1) for d, k in zip(window.dilations, window.kernel, strict=True)]
    pads = [r - p for r, p in zip(reach * 2, window.pads, strict=True)]
    if any(pad < 0 for pad in pads):  # the forward pass padded by more than the kernel's reach
        dy = _cropped(e, dy, [max(-pad, 0) for pad in pads])
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


def _flipped(e: Emitter, weight: ir.Value, window: Window) -> ir.Value:
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
    window = Window.of(node, node.attributes.get_ints("kernel_shape"))
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


def _repeated(e: Emitter, dy: ir.Value, window: Window, x: ir.Value) -> ir.Value:
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
    e: Emitter, dy: ir.Value, weight: ir.Value, group: int, window: Window, x: ir.Value
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


def _cropped(e: Emitter, value: ir.Value, crop: Sequence[int]) -> ir.Value:
    """Cut off cells at the start and at the end of each spatial axis; crop as ONNX orders pads."""
    rank = len(crop) // 2
    ends = [-cut if cut else np.iinfo(np.int64).max for cut in crop[rank:]]
    axes = [axis + 2 for axis in range(rank)]
    return e.op("Slice", value, *(e.integers(part, "bounds") for part in (crop[:rank], ends, axes)))
