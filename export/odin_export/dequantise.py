"""Weights that are stored in integers, computed before the network runs."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper


def dequantised(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with every constant DequantizeLinear in place of what it computes.

    y = (x - zero_point) scale, with one scale for all, one for each cell of an axis, or one for
    each block of an axis. No reference evaluator has all versions of this op, and TensorRT takes
    no zero point.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    found = [node for node in model.graph.node if _is_constant(node, tensors)]
    if not found:
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    made = {node.output[0] for node in found}
    for index in reversed(range(len(result.graph.node))):
        if result.graph.node[index].output[0] in made:
            del result.graph.node[index]
    for node in found:
        arrays = [numpy_helper.to_array(tensors[name]) for name in node.input if name]
        weight = numpy_helper.from_array(_dequantised(node, arrays), node.output[0])
        result.graph.initializer.append(weight)
    for index in reversed(range(len(result.graph.value_info))):
        if result.graph.value_info[index].name in made:
            del result.graph.value_info[index]
    return result


def _is_constant(node: onnx.NodeProto, tensors: dict[str, onnx.TensorProto]) -> bool:
    known = all(name in tensors for name in node.input if name)
    return node.op_type == "DequantizeLinear" and node.domain in ("", "ai.onnx") and known


def _dequantised(node: onnx.NodeProto, arrays: list[np.ndarray]) -> np.ndarray:
    whole, scale = arrays[0], arrays[1]
    attributes = {each.name: each.i for each in node.attribute}
    axis, block = attributes.get("axis", 1), attributes.get("block_size", 0)
    wide = whole.astype(np.float64)
    if len(arrays) > 2:
        wide = wide - _spread(arrays[2].astype(np.float64), whole.shape, axis, block)
    return (wide * _spread(scale.astype(np.float64), whole.shape, axis, block)).astype(scale.dtype)


def _spread(values: np.ndarray, shape: tuple[int, ...], axis: int, block: int) -> np.ndarray:
    """Scale or zero point in a shape that broadcasts to the tensor's."""
    if values.size == 1:
        return values.reshape(())
    if block:
        return values.repeat(block, axis).take(range(shape[axis]), axis)
    return values.reshape([-1 if each == axis % len(shape) else 1 for each in range(len(shape))])
