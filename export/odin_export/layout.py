"""Where an image's channels lie: (N, C, H, W) or (N, H, W, C)."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from odin_engines.errors import OdinError
from odin_export.emit import dims

_CHANNELS = (1, 3, 4)


def image_layout(model: onnx.ModelProto, told: str | None) -> str:
    """Return the layout of the model's only input, "NCHW" or "NHWC".

    Raises:
        OdinError: the shape fits both layouts or none, and the user does not tell.
    """
    value = model.graph.input[0]
    shape = value.type.tensor_type.shape.dim
    if len(shape) != 4:
        raise OdinError(
            f"input {value.name!r} has {len(shape)} axes; a batch of images has four, (N, C, H, W) "
            "or (N, H, W, C)"
        )
    if told is not None:
        return told
    first, last = (shape[axis].dim_value in _CHANNELS for axis in (1, 3))
    if first == last:  # both could be, or none
        sizes = ", ".join(str(dim.dim_value or dim.dim_param or "?") for dim in shape)
        raise OdinError(
            f"where the channels of input {value.name!r} ({sizes}) lie is not clear: tell with "
            "--layout NCHW or --layout NHWC"
        )
    return "NCHW" if first else "NHWC"


def channels_first(graph: ir.Graph) -> None:
    """Put a transposition before the only input, in place: the graph then takes (N, C, H, W)."""
    batch, height, width, channels = dims(graph.inputs[0])
    _put_before(graph, [batch, channels, height, width], "Transpose", [], perm=[0, 2, 3, 1])


def reverse_channels(graph: ir.Graph) -> None:
    """Make a network (N, C, H, W) of blue-green-red take red-green-blue, in place."""
    image = graph.inputs[0]
    order = ir.tensor(np.array([2, 1, 0]), name=f"{image.name}_channel_order")
    value = ir.Value(
        name=order.name,
        shape=ir.Shape([3]),
        type=ir.TensorType(ir.DataType.INT64),
        const_value=order,
    )
    graph.register_initializer(value)
    _put_before(graph, dims(image), "Gather", [value], axis=1)


def _put_before(
    graph: ir.Graph,
    shape: list[int | str | None],
    op_type: str,
    others: list[ir.Value],
    **attributes: int | list[int],
) -> None:
    """Let the graph's input, of this shape, go through an op before the network sees it."""
    old = graph.inputs[0]
    new = ir.Value(name=old.name, shape=ir.Shape(shape), type=old.type)
    attrs = ir.convenience.convert_attributes(dict(attributes))
    name = f"{old.name}_as_the_network_takes_it_{op_type.lower()}"
    node = ir.Node("", op_type, [new, *others], attrs, num_outputs=1, name=name)
    result = node.outputs[0]
    result.name, result.shape, result.type = name, old.shape, old.type
    old.replace_all_uses_with(result)
    graph.inputs[0] = new
    graph.insert_before(graph[0], node)
