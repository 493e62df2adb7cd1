"""Named rewrites of a graph: the same numbers, but for rounding, in less time.

Each is a function that changes a graph in place; what it gains stands in bench/RESULTS.md.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from odin_export.emit import Emitter, constant_value, dims

_TO_ROWS = ("Flatten", "Reshape", "Squeeze", "Transpose", "Gemm", "MatMul")
_HANDING_ON = ("Identity", "Cast", "Dropout")


def average_first(graph: ir.Graph) -> int:
    """Average pixels before a convolution of kernel 1, not after it, in a forward pass.

    A mean over pixels and a mix of channels can change places, and the mix then has fewer pixels
    to work on: a quarter behind a pooling of 2 x 2, in the backward pass too. A DenseNet has such
    a pair between each two blocks.

    Returns:
        How many pairs changed places.
    """
    moved = 0
    for pool in list(graph):
        convolution = _pooled_convolution(pool)
        if convolution is None:
            continue
        mixed, pooled = convolution.outputs[0], pool.outputs[0]
        given = convolution.inputs[0]
        assert given is not None
        shape = pooled.shape
        pool.replace_input_with(0, given)
        pooled.replace_all_uses_with(mixed)
        convolution.replace_input_with(0, pooled)
        pooled.shape = ir.Shape([*dims(given)[:2], *dims(pooled)[2:]])
        mixed.shape = shape
        moved += 1
    graph.sort()
    return moved


def _pooled_convolution(pool: ir.Node) -> ir.Node | None:
    """The convolution of kernel 1 that a pooling averages, if it can as well come after it."""
    if pool.op_type != "AveragePool" or pool.domain or pool.outputs[0].is_graph_output():
        return None
    # Before the last layer it makes the features that further scores are made of.
    if _makes_rows(pool.outputs[0]):
        return None
    # Weights of a mean with something from beside the image do not add up to 1.
    if not _within_image(pool) or pool.attributes.get_int("ceil_mode") or _stride(pool) == 1:
        return None
    mixed = pool.inputs[0]
    convolution = None if mixed is None else _only_user(mixed, pool)
    if convolution is None or convolution.op_type != "Conv" or convolution.domain:
        return None
    if not _within_image(convolution) or _stride(convolution) > 1:
        return None
    values = (*convolution.inputs[:2], pool.outputs[0])
    if any(value is None or value.shape is None for value in values):
        return None
    weight = convolution.inputs[1]
    return convolution if weight is not None and set(dims(weight)[2:]) == {1} else None


def _makes_rows(value: ir.Value) -> bool:
    """Whether a map is turned into rows of features, maybe behind ops that only hand it on."""
    users = value.consumers()
    return any(
        user.op_type in _TO_ROWS or (user.op_type in _HANDING_ON and _makes_rows(user.outputs[0]))
        for user in users
    )


def _within_image(window: ir.Node) -> bool:
    """Whether a convolution or a pooling takes nothing from beside the image."""
    padding = window.attributes.get_string("auto_pad", "NOTSET")
    return padding in ("NOTSET", "VALID") and not any(window.attributes.get_ints("pads", []))


def _stride(window: ir.Node) -> int:
    """How many pixels a convolution or a pooling makes one of."""
    return math.prod(window.attributes.get_ints("strides", [1]))


def fold_scales(graph: ir.Graph) -> int:
    """Let convolutions of the backward pass give what is scaled by channel only after a mask.

    A batch norm before a ReLU makes of the gradient d behind the next convolution W

        s * (mask * (W' d)) = mask * ((s W') d)

    with s of one number a channel and W' the weight turned around. W' is computed from constants,
    and so is s W', when an engine loads the graph. Float32 only: in half precision s W' could leave
    the range that W' is in.

    Returns:
        How many scales were folded.
    """
    e = Emitter(graph, ir.DataType.FLOAT)
    constant = _constants(graph)
    folded = 0
    for node in list(graph):
        found = _scaled_convolution(node, constant)
        if found is None:
            continue
        convolution, masked, scale = found
        weight = convolution.inputs[1]
        assert weight is not None
        column = e.constant(scale.reshape(-1, *[1] * (len(dims(weight)) - 1)), f"{node.name}_scale")
        scaled = e.op("Mul", weight, column, name=f"{convolution.name}_weight")
        scaled.shape, scaled.type = weight.shape, weight.type
        convolution.replace_input_with(1, scaled)
        constant.add(scaled)
        node.outputs[0].replace_all_uses_with(masked)
        graph.remove(node, safe=True)
        folded += 1
    graph.sort()
    return folded


def masks_in_one_op(graph: ir.Graph) -> int:
    """Let one op make each mask of 0 and 1, as of ReLU's backward pass, for ONNX Runtime.

    Cast(x > 0) goes over memory twice, HardSigmoid once:

        min(max(3e38 x, 0), 1) = 1 if x > 0 else 0

    for every x but those between 0 and 3.3e-39, which have left float32's normal numbers, and NaN,
    which it keeps. OpenVINO computes the former along with ReLU, and not the latter.

    Returns:
        How many masks were replaced.
    """
    e = Emitter(graph, ir.DataType.FLOAT)
    replaced = 0
    for node in list(graph):
        if node.op_type != "Cast" or node.outputs[0].dtype != ir.DataType.FLOAT:
            continue
        positive = node.inputs[0]
        compare = None if positive is None else positive.producer()
        if compare is None or compare.op_type != "Greater":
            continue
        values, result = compare.inputs[0], node.outputs[0]
        if result.is_graph_output() or values is None or values.dtype != ir.DataType.FLOAT:
            continue
        if values.shape is None or not _is_zero(compare.inputs[1], values.shape.rank()):
            continue
        mask = e.op("HardSigmoid", values, name=node.name, alpha=3e38, beta=0.0)
        mask.shape, mask.type = result.shape, result.type
        result.replace_all_uses_with(mask)
        graph.remove(node, safe=True)
        if positive is not None and not positive.uses() and not positive.is_graph_output():
            graph.remove(compare, safe=True)
        replaced += 1
    graph.sort()
    return replaced


def _is_zero(value: ir.Value | None, rank: int) -> bool:
    """Whether it is the number 0, and adds no axis to a value of this rank."""
    array = constant_value(value)
    return array is not None and array.size == 1 and array.ndim <= rank and not array.any()


def _scaled_convolution(
    node: ir.Node, constant: set[ir.Value]
) -> tuple[ir.Node, ir.Value, np.ndarray] | None:
    """The convolution, its masked result and the scale, if the node scales that by channel."""
    if node.op_type != "Mul" or node.outputs[0].dtype != ir.DataType.FLOAT:
        return None
    if node.outputs[0].is_graph_output():
        return None
    masked, by = node.inputs
    scale = constant_value(by)
    if masked is None or scale is None or not _by_channel(scale, masked):
        return None
    mask = _only_user(masked, node)
    if mask is None or mask.op_type != "Mul":
        return None
    for value in mask.inputs:
        convolution = None if value is None else _only_user(value, mask)
        if convolution is None or convolution.op_type != "Conv" or len(convolution.inputs) != 2:
            continue
        if convolution.inputs[1] in constant and masked.shape == value.shape:  # type: ignore[union-attr]
            return convolution, masked, scale
    return None


def _only_user(value: ir.Value, user: ir.Node) -> ir.Node | None:
    """The node that makes a value which this node alone uses."""
    uses = value.uses()
    if len(uses) != 1 or value.is_graph_output() or next(iter(uses)).node is not user:
        return None
    return value.producer()


def _by_channel(scale: np.ndarray, value: ir.Value) -> bool:
    """Whether it has a number for each channel of a value (N, C, ...), and broadcasts to it."""
    if value.shape is None or value.shape.rank() < 3:
        return False
    channels = dims(value)[1]
    return scale.shape == (channels, *[1] * (value.shape.rank() - 2))


def _constants(graph: ir.Graph) -> set[ir.Value]:
    """Values that depend on no input."""
    constant = set(graph.initializers.values())
    for node in graph:
        inputs = [value for value in node.inputs if value is not None]
        if inputs and all(value in constant for value in inputs):
            constant.update(node.outputs)
    return constant
