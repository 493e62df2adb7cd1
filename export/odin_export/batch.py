"""Freeing a model whose batch was fixed when it was exported."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from odin_export import clean

BATCH = "N"


def free_batch(model: onnx.ModelProto, notes: list[str]) -> onnx.ModelProto:
    """Make the first axis of the only input dynamic, if it is fixed.

    Exporters write a fixed batch into the targets of Reshape. Where the value that is
    reshaped starts with the batch, the target's first entry becomes "as it is". Whether images
    stay independent is for the caller to try: some networks cannot be freed.
    """
    shape = model.graph.input[0].type.tensor_type.shape.dim
    if shape[0].dim_value < 1:
        return model
    fixed = shape[0].dim_value
    known = _shapes(clean.checked(model))
    constants = _constants(model.graph)
    freed = onnx.ModelProto()
    freed.CopyFrom(model)
    for node in freed.graph.node:
        if node.op_type != "Reshape" or len(node.input) < 2 or node.input[1] not in constants:
            continue
        target = constants[node.input[1]]
        source = known.get(node.input[0])
        if source and len(target) and source[0] == fixed == target[0]:
            _set_target(freed.graph, node, [0, *map(int, target[1:])])
    free = freed.graph.input[0].type.tensor_type.shape.dim[0]
    free.Clear()
    free.dim_param = BATCH
    del freed.graph.value_info[:]
    for dim in list(freed.graph.output[0].type.tensor_type.shape.dim)[:1]:
        dim.Clear()
    notes.append(f"batch: fixed to {fixed} in the file, made dynamic")
    return freed


def _shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    return {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values
    }


def _constants(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            tensors[node.output[0]] = node.attribute[0].t
        elif node.op_type == "Constant" and node.attribute[0].name == "value_ints":
            ints = np.asarray(node.attribute[0].ints, np.int64)
            tensors[node.output[0]] = numpy_helper.from_array(ints)
    small = {name: tensor for name, tensor in tensors.items() if len(tensor.dims) == 1}
    return {
        name: numpy_helper.to_array(tensor)
        for name, tensor in small.items()
        if tensor.data_type == onnx.TensorProto.INT64
    }


def _set_target(graph: onnx.GraphProto, node: onnx.NodeProto, target: list[int]) -> None:
    name = f"{node.output[0]}_with_any_batch"
    graph.initializer.append(numpy_helper.from_array(np.asarray(target, np.int64), name))
    node.input[1] = name
    for index, attribute in reversed(list(enumerate(node.attribute))):
        if attribute.name == "allowzero":
            del node.attribute[index]
