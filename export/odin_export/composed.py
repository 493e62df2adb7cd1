"""Ops that ONNX defines through other ops, replaced by what they are made of."""

from __future__ import annotations

from typing import Any

import onnx
from onnx import defs, inliner, shape_inference

from odin_engines.errors import OdinError

# They have no gradient rule of their own.
COMPOSED = frozenset({"Attention", "CastLike", "CenterCropPad", "RotaryEmbedding"})
_DOMAIN = "odin.composed"
_ROUNDS = 4  # bodies hold composed ops in turn


def expanded(model: onnx.ModelProto, ops: frozenset[str] = COMPOSED) -> onnx.ModelProto:
    """Return the model without local functions and without composed ops.

    Args:
        model: valid, with shapes and types inferred.
        ops: to be replaced.

    Raises:
        OdinError: ONNX cannot expand one of them.
    """
    try:
        flat = inliner.inline_local_functions(model) if model.functions else model
        for _ in range(_ROUNDS):
            if not any(_is_composed(node, ops) for node in flat.graph.node):
                break
            flat = _expanded_once(shape_inference.infer_shapes(flat), ops)
    except OdinError:
        raise
    except Exception as error:
        raise OdinError(f"the functions of the ONNX model cannot be expanded: {error}") from error
    return flat


def _is_composed(node: onnx.NodeProto, ops: frozenset[str]) -> bool:
    return node.domain in ("", "ai.onnx") and node.op_type in ops


def _expanded_once(model: onnx.ModelProto, ops: frozenset[str]) -> onnx.ModelProto:
    """Turn every composed op into a call of a function of its own, and inline these."""
    called = onnx.ModelProto()
    called.CopyFrom(model)
    opset = next(each.version for each in called.opset_import if each.domain in ("", "ai.onnx"))
    types = _types(called.graph)
    for index, node in enumerate(called.graph.node):
        if _is_composed(node, ops):
            function = _function(node, opset, types)
            function.domain, function.name = _DOMAIN, f"{node.op_type}_{index}"
            called.functions.append(function)
            node.domain, node.op_type = function.domain, function.name
    called.opset_import.append(onnx.helper.make_opsetid(_DOMAIN, 1))
    inlined = inliner.inline_local_functions(called)
    for index, each in reversed(list(enumerate(inlined.opset_import))):
        if each.domain == _DOMAIN:
            del inlined.opset_import[index]
    return inlined


def _function(
    node: onnx.NodeProto, opset: int, types: dict[str, onnx.TypeProto]
) -> onnx.FunctionProto:
    """The body of a node's op, with the node's attributes, defaults included."""
    schema: Any = defs.get_schema(node.op_type, opset, "")  # its stubs lack what is used
    given = {attribute.name for attribute in node.attribute}
    for name, attribute in schema.attributes.items():
        if name not in given and attribute.default_value.name:
            node.attribute.append(attribute.default_value)
    if schema.context_dependent_function_opset_versions:
        version = _newest(schema.context_dependent_function_opset_versions, opset, node)
        inputs = [types.get(name, onnx.TypeProto()).SerializeToString() for name in node.input]
        body = schema.get_context_dependent_function_with_opset_version(
            version, node.SerializeToString(), inputs
        )
    else:
        version = _newest(schema.function_opset_versions, opset, node)
        body = schema.get_function_with_opset_version(version)
    function = onnx.FunctionProto.FromString(body)
    del function.opset_import[:]
    function.opset_import.append(onnx.helper.make_opsetid("", opset))
    return function


def _newest(versions: list[int], opset: int, node: onnx.NodeProto) -> int:
    fitting = [version for version in versions if version <= opset]
    if not fitting:
        raise OdinError(
            f"node {node.name!r} ({node.op_type}) has no definition in opset {opset}; export the "
            f"model with opset {min(versions)} or newer"
        )
    return max(fitting)


def _types(graph: onnx.GraphProto) -> dict[str, onnx.TypeProto]:
    values = (*graph.input, *graph.value_info, *graph.output)
    types = {value.name: value.type for value in values}
    for tensor in graph.initializer:
        types[tensor.name] = onnx.helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
    return types
