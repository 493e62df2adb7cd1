"""The same graph in another floating type.

Checks run in float64, which no engine computes in: weights, constants and casts are converted,
and everything else stays as it is.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir

from odin_export import clean
from odin_export.composed import COMPOSED, expanded

FLOATS = frozenset(
    {ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
)
# Ops that take float32 alone, and are replaced by what ONNX defines them through.
_ONLY_FLOAT32 = frozenset({"Celu"})
# Outputs that are of the type of `stash_type`, which may not be float64.
_KEPT_OUTPUTS = {"LayerNormalization": (1, 2)}
# Inputs that are float32 whatever the op computes in: scales and region of Resize.
_KEPT = {"Resize": (1, 2), "Upsample": (1,)}


def in_precision(model: onnx.ModelProto, dtype: ir.DataType) -> onnx.ModelProto:
    """Return a copy of `model` whose floating-point values are all of type `dtype`.

    Values between two casts to integers are converted too. Ops that take only some types (such as
    quantisation) may make the result invalid: it is not checked here.
    """
    converted = clean.from_proto(expanded(model, COMPOSED | _ONLY_FLOAT32))
    graph = converted.graph
    kept = _kept_inputs(graph)
    initializers = [each for part in converted.graphs() for each in part.initializers.items()]
    for name, value in initializers:
        tensor = value.const_value
        assert tensor is not None, name
        if tensor.dtype in FLOATS - {dtype}:
            if value in kept and len(value.uses()) == len(kept[value]):
                continue
            array = _as_type(tensor.numpy(), dtype)
            value.const_value = ir.tensor(array, dtype=dtype, name=name)
            value.dtype = dtype
    for value in [each for part in converted.graphs() for each in part.inputs]:
        if value.dtype in FLOATS:
            value.dtype = dtype
    _convert_attributes(graph, dtype)
    for node in graph.all_nodes():
        for index, value in enumerate(node.outputs):
            if value.dtype in FLOATS and index not in _KEPT_OUTPUTS.get(node.op_type, ()):
                value.dtype = dtype
    _cast_kept_inputs(graph, kept)
    clean.infer_shapes(converted)
    return clean.to_proto(converted)


def _as_type(array: np.ndarray, dtype: ir.DataType) -> np.ndarray:
    """Convert; finite numbers stay finite, as the least double in a mask has to."""
    wanted = dtype.numpy()
    if array.dtype.itemsize <= wanted.itemsize:
        return array.astype(wanted)
    most = ml_dtypes.finfo(wanted).max
    return np.where(np.isfinite(array), np.clip(array, -most, most), array).astype(wanted)


def _kept_inputs(graph: ir.Graph) -> dict[ir.Value, list[tuple[ir.Node, int]]]:
    kept: dict[ir.Value, list[tuple[ir.Node, int]]] = {}
    for node in graph.all_nodes():
        for index in _KEPT.get(node.op_type, ()):
            if index < len(node.inputs) and (value := node.inputs[index]) is not None:
                kept.setdefault(value, []).append((node, index))
    return kept


def _cast_kept_inputs(graph: ir.Graph, kept: dict[ir.Value, list[tuple[ir.Node, int]]]) -> None:
    """Give float32 to the inputs that want it, where what they had was converted."""
    for value, uses in kept.items():
        if value.dtype in (ir.DataType.FLOAT, None):
            continue
        for node, index in uses:
            cast = ir.Node(
                "", "Cast", [value], ir.convenience.convert_attributes({"to": 1}), num_outputs=1
            )
            cast.outputs[0].name = f"{node.outputs[0].name}_input_{index}_in_float32"
            node.prepend(cast)
            node.replace_input_with(index, cast.outputs[0])


def _convert_attributes(graph: ir.Graph, dtype: ir.DataType) -> None:
    for node in graph.all_nodes():
        if node.op_type == "ConstantOfShape" and "value" not in node.attributes:  # float32 zeros
            zero = ir.tensor(np.zeros(1, np.float32), dtype=ir.DataType.FLOAT)
            node.attributes["value"] = ir.AttrTensor("value", zero)
        for name in ("value_float", "value_floats"):  # of a Constant in a subgraph
            if node.op_type == "Constant" and name in node.attributes:
                array = np.asarray(node.attributes.pop(name).value, np.float32)
                node.attributes["value"] = ir.AttrTensor("value", ir.tensor(array))
        for name, attribute in list(node.attributes.items()):
            if attribute.type == ir.AttributeType.TENSOR:
                tensor = attribute.as_tensor()
                if tensor.dtype in FLOATS:
                    array = _as_type(tensor.numpy(), dtype)
                    node.attributes[name] = ir.AttrTensor(name, ir.tensor(array, dtype=dtype))
            elif _is_type(node, name) and attribute.as_int() in FLOATS:
                node.attributes[name] = ir.AttrInt64(name, int(dtype))


def _is_type(node: ir.Node, name: str) -> bool:
    """Whether an attribute of a node names the type of what it computes."""
    return name in ("dtype", "softmax_precision") or (node.op_type == "Cast" and name == "to")
