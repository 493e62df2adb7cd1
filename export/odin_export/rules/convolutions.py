"""Rules of convolutions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from odin_export.emit import Emitter, dims
from odin_export.rules.common import Gradients, operand, own_copy, refused
from odin_export.rules.windows import LARGEST, Sizes, Window, count_along, cut, with_gaps


def conv(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = W * x (cross-correlation); dx = the transposed convolution of dy with W.

    With stride 1 it is a convolution of dy with W flipped in space and with its channel axes
    exchanged, padded by dilation (k - 1) - pad: faster than ConvTranspose in most engines.
    Windows that tile the image (patches) are a convolution of kernel 1, whose channels are the
    cells of a tile. Otherwise it is ConvTranspose with W as it is; where engines have no such
    ConvTranspose (strided and dilated at once, or bfloat16), stride - 1 zeros behind each cell of
    dy make it one of stride 1. W is stored once: flipping and reordering it is part of the graph,
    on constants, and engines fold it when they load the graph.
    """
    x, weight = operand(node, 0), operand(node, 1)
    _refuse_weights_of_the_image(e, node)
    window = Window.of(node, _kernel(node, weight), dims(x)[2:])
    if not window.strided:
        pads = [r - p for r, p in zip(window.reach * 2, window.pads, strict=True)]
        dx = _flipped_conv(e, node, dy, window, pads)
    elif _tiles(window, dims(x)[2:]) and node.attributes.get_int("group", 1) == 1:
        dx = _conv_of_tiles(e, node, dy, window)
    elif window.dilated or e.dtype == ir.DataType.BFLOAT16:
        dx = _conv_of_gaps(e, node, dy, window)
    else:
        dx = _conv_transpose(e, node, dy, window)
    return [dx, None, None][: len(node.inputs)]


def conv_transpose(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = the transposed convolution of x with W, cut by pads; dx = W * dy, padded alike.

    W is (inputs, outputs / group, k ...), just as the convolution of dy wants it.
    """
    x, weight = operand(node, 0), operand(node, 1)
    _refuse_weights_of_the_image(e, node)
    window = _transposed_window(node, _kernel(node, weight), x)
    rank = window.rank
    # A last window that only output padding made possible is none of x's.
    extra = node.attributes.get_ints("output_padding", [0] * rank) or [0] * rank
    surplus = [
        more if more >= stride else 0 for more, stride in zip(extra, window.strides, strict=True)
    ]
    pads = window.before + [p - more for p, more in zip(window.after, surplus, strict=True)]
    dy, pads = _without_negative_pads(e, dy, pads)
    dx = e.op(
        "Conv",
        dy,
        own_copy(e, weight),
        group=node.attributes.get_int("group", 1),
        kernel_shape=window.kernel,
        strides=window.strides,
        dilations=window.dilations,
        pads=pads,
    )
    return [dx, None, None][: len(node.inputs)]


def _refuse_weights_of_the_image(e: Emitter, node: ir.Node) -> None:
    if any(e.wants(value) for value in node.inputs[1:]):
        raise refused(node, "its weight depends on the image", "make the weight a constant")


def _kernel(node: ir.Node, weight: ir.Value) -> Sizes:
    return node.attributes.get_ints("kernel_shape", []) or dims(weight)[2:]


def _transposed_window(node: ir.Node, kernel: Sizes, x: ir.Value) -> Window:
    """The window of a ConvTranspose, whose pads may follow from the size of its output.

    With auto_pad SAME that is size * stride, so pads do not depend on the size of the image.
    """
    sizes, wanted = dims(x)[2:], node.attributes.get_ints("output_shape", [])
    plain = Window.of(_without_auto_pad(node), kernel, sizes)
    auto_pad = node.attributes.get_string("auto_pad", "NOTSET")
    if not wanted and not auto_pad.startswith("SAME"):
        return plain
    extra = node.attributes.get_ints("output_padding", []) or [0] * plain.rank
    # What the windows reach beyond size * stride is cut off, and more for another output_shape.
    total = [
        far + 1 + more - stride
        for far, more, stride in zip(plain.reach, extra, plain.strides, strict=True)
    ]
    for axis, size in enumerate(wanted[-plain.rank :]):
        own = sizes[axis]
        if not isinstance(own, int):
            why = "its output_shape is fixed, but not the size of its input"
            raise refused(node, why, "use pads and output_padding")
        total[axis] += own * plain.strides[axis] - size
    if min(total) < 0 or (any(extra) and not wanted):
        why = "ONNX and engines disagree about the size of its output"
        raise refused(node, why, "use pads and output_padding, without auto_pad")
    less, more = [t // 2 for t in total], [t - t // 2 for t in total]
    pads = less + more if auto_pad == "SAME_UPPER" else more + less
    return Window(plain.kernel, plain.strides, plain.dilations, pads)


def _without_auto_pad(node: ir.Node) -> ir.Node:
    """A node with the attributes of a ConvTranspose, VALID in place of SAME."""
    attributes = [
        attribute
        for name, attribute in node.attributes.items()
        if name != "auto_pad" and not (name == "pads" and "output_shape" in node.attributes)
    ]
    return ir.Node("", node.op_type, [], attributes, num_outputs=1, name=node.name)


def _conv_transpose(e: Emitter, node: ir.Node, dy: ir.Value, window: Window) -> ir.Value:
    """Spread dy over the windows it came from and give the result x's spatial size.

    A size S leads to (S + pads - reach - 1) // stride + 1 windows, so `output_padding` restores
    what the division dropped. Where S is not known before run time the most that can have been
    dropped, stride - 1, is restored and the excess cut off.
    """
    x, weight = operand(node, 0), operand(node, 1)
    sizes = dims(x)[2:]
    fixed = [isinstance(size, int) and not window.same for size in sizes]
    lost = [stride - 1 for stride in window.strides]
    for axis, size in enumerate(sizes):
        if isinstance(size, int) and fixed[axis]:
            pads = window.before[axis] + window.after[axis]
            lost[axis] = (size + pads - window.reach[axis] - 1) % window.strides[axis]
    dx = e.op(
        "ConvTranspose",
        dy,
        own_copy(e, weight),
        group=node.attributes.get_int("group", 1),
        kernel_shape=window.kernel,
        strides=window.strides,
        pads=window.pads,
        output_padding=lost,
    )
    if all(known or stride == 1 for known, stride in zip(fixed, window.strides, strict=True)):
        return dx
    return cut(e, dx, window, x)


def _tiles(window: Window, sizes: Sizes) -> bool:
    """Whether square windows cover an image, each cell once."""
    side = window.kernel[0]
    fitting = all(isinstance(size, int) and size % side == 0 for size in sizes)
    plain = not window.dilated and not any(window.pads) and not window.same
    return window.rank == 2 and window.kernel == window.strides == [side] * 2 and fitting and plain


def _conv_of_tiles(e: Emitter, node: ir.Node, dy: ir.Value, window: Window) -> ir.Value:
    """Each cell of dy becomes the channels and cells of its tile, which are then put in place."""
    side = window.kernel[0]
    # (O, C, k, k) -> (O, C k k, 1, 1) -> (C k k, O, 1, 1)
    columns = e.op("Reshape", operand(node, 1), e.integers([0, -1, 1, 1], "shape"))
    weight = e.op("Transpose", columns, perm=[1, 0, 2, 3])
    tiles = e.op("Conv", dy, weight, kernel_shape=[1, 1])
    return e.op("DepthToSpace", tiles, blocksize=side, mode="CRD")


def _conv_of_gaps(e: Emitter, node: ir.Node, dy: ir.Value, window: Window) -> ir.Value:
    """The transposed convolution of a strided one, as a convolution of dy with gaps.

    n windows become n * stride cells; padded by reach - before at the start, x's size results when
    size - n * stride + before cells are added (or, where negative, cut off) at the end.
    """
    x, y = operand(node, 0), node.outputs[0]
    stuffed = with_gaps(e, dy, y, window.strides)
    start = [far - before for far, before in zip(window.reach, window.before, strict=True)]
    end, exact = list(window.reach), not window.same
    for axis, stride in enumerate(window.strides):
        size, count = dims(x)[2 + axis], count_along(e, y, 2 + axis)
        if isinstance(size, int) and isinstance(count, int) and not window.same:
            end[axis] = size - count * stride + window.before[axis]
        else:
            exact = False
    dx = _flipped_conv(e, node, stuffed, window, start + end)
    return dx if exact else cut(e, dx, window, x)


def _flipped_conv(
    e: Emitter, node: ir.Node, dy: ir.Value, window: Window, pads: Sequence[int]
) -> ir.Value:
    """The convolution, of stride 1, of dy with the flipped weight of a Conv."""
    group = node.attributes.get_int("group", 1)
    weight = _flipped(e, _exchanged_channels(e, node, group), window)
    dy, pads = _without_negative_pads(e, dy, pads)
    return e.op(
        "Conv",
        dy,
        weight,
        group=group,
        kernel_shape=window.kernel,
        dilations=window.dilations,
        pads=pads,
    )


def _exchanged_channels(e: Emitter, node: ir.Node, group: int) -> ir.Value:
    """(O, I/g, k...) -> (I, O/g, k...), group by group."""
    weight = operand(node, 1)
    rank = len(dims(operand(node, 0)))
    spatial = list(range(2, rank))
    if group == 1:
        return e.op("Transpose", weight, perm=[1, 0, *spatial])
    sizes = [size for size in dims(weight) if isinstance(size, int)]
    if len(sizes) < rank:
        raise refused(node, "the shape of its weight is not known", "make the weight a constant")
    out_channels, in_channels, *kernel = sizes
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


def _without_negative_pads(
    e: Emitter, value: ir.Value, pads: Sequence[int]
) -> tuple[ir.Value, list[int]]:
    """Cut off what negative pads of a Conv, which engines do not take, would cut off."""
    if min(pads) >= 0:
        return value, list(pads)
    rank = len(pads) // 2
    crop = [max(-pad, 0) for pad in pads]
    ends = [-cut if cut else LARGEST for cut in crop[rank:]]
    axes = [axis + 2 for axis in range(rank)]
    bounds = (e.integers(part, "bounds") for part in (crop[:rank], ends, axes))
    return e.op("Slice", value, *bounds), [max(pad, 0) for pad in pads]
