"""ONNX in and out of the intermediate representation, in the one form the exporter works on.

That form: constants as initializers, no identities, dead nodes or metadata, and shapes inferred.
"""

from __future__ import annotations

import logging
import math

import onnx
import onnx_ir as ir
from onnx_ir.passes import common as passes
from onnxscript.optimizer import fold_constants_ir

from odin_engines.errors import OdinError
from odin_export.emit import constant_value, dims
from odin_export.unroll import unroll

# 20 is read by every engine at hand and has Gelu; newer ones add nothing these graphs need.
OPSET = 20
IR_VERSION = 10
# The longest vector that belongs to shape arithmetic rather than to the network.
_SHORT = 64
# What is appended to a model is written in ops as they are since the oldest; the rules know the
# ops as they are up to the newest.
OLDEST_OPSET, NEWEST_OPSET = 13, 25


def checked(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of a user's model with shapes inferred and every input dimension named.

    Raises:
        OdinError: the model is not valid ONNX, or of an opset that is too old or new.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    _name_dimensions(copy.graph)
    _spell_out_defaults(copy.graph)
    try:
        _infer_group_normalization(copy)
        copy = onnx.shape_inference.infer_shapes(copy)
        onnx.checker.check_model(copy, full_check=True)
    except Exception as error:  # the library raises many kinds for broken models
        why = " ".join(str(error).split())
        if "deprecated" in why:
            why += f"; export the model with opset {OPSET}, or 21 for GroupNormalization"
        raise OdinError(f"the ONNX model cannot be read: {why}") from error
    opset = next(
        (each.version for each in copy.opset_import if each.domain in ("", "ai.onnx")), OPSET
    )
    if opset < OLDEST_OPSET:
        raise OdinError(
            f"the ONNX model has opset {opset}, older than {OLDEST_OPSET}; export it with opset "
            f"{OPSET} or convert it with onnx.version_converter.convert_version"
        )
    if opset > NEWEST_OPSET:
        raise OdinError(
            f"the ONNX model has opset {opset}, newer than {NEWEST_OPSET}, the last one whose ops "
            f"the gradient rules know; export it with opset {OPSET}"
        )
    return copy


def from_proto(model: onnx.ModelProto, fold_first: bool = False) -> ir.Model:
    """Return a cleaned copy of a valid model, if asked with what is constant computed."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)  # names of tensors are shared with the protobuf otherwise
    try:
        converted = ir.from_proto(copy)
    except Exception as error:
        raise OdinError(f"the ONNX model cannot be read: {error}") from error
    if fold_first or _has_subgraphs(converted.graph):
        fold(converted)
    if _has_subgraphs(converted.graph):
        unroll(converted.graph)
    return cleaned(converted)


def _name_dimensions(graph: onnx.GraphProto) -> None:
    """Name the unnamed sizes of inputs; leave the dynamic sizes of outputs to shape inference.

    Some exporters write one name, such as "?", or the size -1 for all that is dynamic: sizes that
    share a name within an input are told apart.
    """
    ambiguous = False
    for index, value in enumerate(graph.input):
        seen: set[str] = set()
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.dim_value > 0 or (dim.HasField("dim_value") and dim.dim_value == 0):
                continue
            if not dim.dim_param or dim.dim_param in seen:
                ambiguous = ambiguous or bool(dim.dim_param)
                dim.Clear()
                dim.dim_param = "N" if index == axis == 0 else f"{value.name}_{axis}"
            seen.add(dim.dim_param)
    if ambiguous:  # what was said of inner values with such a name means nothing
        del graph.value_info[:]
    for value in graph.output:
        for dim in value.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value") or dim.dim_value < 0:
                dim.Clear()


def _spell_out_defaults(graph: onnx.GraphProto) -> None:
    """Give MeanVarianceNormalization its axes, without which ONNX's own inference stumbles."""
    for node in graph.node:
        if node.op_type == "MeanVarianceNormalization" and not node.attribute:
            node.attribute.append(onnx.helper.make_attribute("axes", [0, 2, 3]))


def _infer_group_normalization(model: onnx.ModelProto) -> None:
    """Give outputs of GroupNormalization their shapes, which ONNX's inference does not do.

    Shapes are inferred with Identity in its place, and kept.
    """
    if not any(node.op_type == "GroupNormalization" for node in model.graph.node):
        return
    stand_in = onnx.ModelProto()
    stand_in.CopyFrom(model)
    for node in stand_in.graph.node:
        if node.op_type == "GroupNormalization":
            node.op_type = "Identity"
            del node.input[1:], node.attribute[:]
    inferred = onnx.shape_inference.infer_shapes(stand_in)
    known = {value.name for value in (*model.graph.value_info, *model.graph.output)}
    model.graph.value_info.extend(v for v in inferred.graph.value_info if v.name not in known)


def cleaned(model: ir.Model) -> ir.Model:
    """Bring `model`, which is changed, into the exporter's form and return it."""
    _clear_metadata(model)
    _quietly(passes.RemoveInitializersFromInputsPass(), model)
    _quietly(passes.InlinePass(), model)
    if not _has_subgraphs(model.graph):  # a constant may be the output of one, and is to stay
        lift = passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)
        _quietly(lift, model)
    _quietly(passes.IdentityEliminationPass(), model)
    _quietly(passes.RemoveUnusedNodesPass(), model)
    _keep_outputs_apart(model)
    _quietly(passes.NameFixPass(), model)
    infer_shapes(model)
    return model


def _keep_outputs_apart(model: ir.Model) -> None:
    """Give every output of a subgraph a value of its own.

    Eliminating an Identity makes two the same, and ONNX Runtime then computes a Scan wrongly.
    """
    for graph in model.graphs():
        if graph is model.graph:
            continue
        seen: set[ir.Value] = set()
        for index, value in enumerate(graph.outputs):
            if value in seen:
                node = ir.Node("", "Identity", [value], num_outputs=1)
                graph.append(node)
                copy = node.outputs[0]
                copy.name = f"{value.name}_output_{index}"
                copy.shape, copy.type = value.shape, value.type
                graph.outputs[index] = copy
            seen.add(value)


def _has_subgraphs(graph: ir.Graph) -> bool:
    return any(
        attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
        for node in graph
        for attribute in node.attributes.values()
    )


def _clear_metadata(model: ir.Model) -> None:
    """Drop what exporters leave behind: stack traces with paths, name scopes, doc strings."""
    _quietly(passes.ClearMetadataAndDocStringPass(), model)
    graph = model.graph
    graph.metadata_props.clear()
    model.metadata_props.clear()
    values = [*graph.inputs, *graph.initializers.values()]
    values += [value for node in graph.all_nodes() for value in node.outputs]
    for value in values:
        value.metadata_props.clear()


def fold(model: ir.Model) -> None:
    """Compute what depends on constants and known sizes alone, in place; also constant If."""
    logger = logging.getLogger("onnxscript")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        fold_constants_ir(model, onnx_shape_inference=True, should_fold=_should_fold)
    finally:
        logger.setLevel(level)


def _should_fold(node: ir.Node) -> bool | None:
    """Fold short vectors of zeros too, which shapes are made of; leave the rest to the library."""
    if node.op_type != "ConstantOfShape":
        return None
    shape = constant_value(node.inputs[0])
    return True if shape is not None and math.prod(shape) <= _SHORT else None


def infer_shapes(model: ir.Model) -> None:
    """Fill in shapes and types, in place."""
    _quietly(passes.ShapeInferencePass(data_prop=True), model)


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """Return the model as protobuf: common subexpressions merged, what is unused dropped."""
    _quietly(passes.CommonSubexpressionEliminationPass(), model)
    _quietly(passes.RemoveUnusedNodesPass(), model)
    infer_shapes(model)
    model.ir_version = IR_VERSION
    return ir.to_proto(model)


def named_output(graph: ir.Graph, value: ir.Value, name: str) -> ir.Value:
    """Return `value` under `name`, fit to be a graph output."""
    if value.name == name and value.producer() is not None:
        return value
    make_room(graph, name)
    if value.producer() is not None and not value.is_graph_output():
        value.name = name
        return value
    node = ir.Node("", "Identity", [value], num_outputs=1, name=f"{name}_output")
    graph.append(node)
    output = node.outputs[0]
    output.name, output.shape, output.type = name, value.shape, value.type
    return output


def rename(graph: ir.Graph, value: ir.Value, name: str) -> None:
    """Give `value` this name; another value that has it gives it up."""
    if value.name != name:
        make_room(graph, name)
        value.name = name


def make_room(graph: ir.Graph, name: str) -> None:
    """Rename whatever value of the graph is called `name`."""
    values = [*graph.inputs, *graph.initializers.values()]
    values += [value for node in graph for value in node.outputs]
    names = {value.name for value in values}
    for value in values:
        if value.name == name:
            fresh = f"{name}_of_network"
            while fresh in names:
                fresh += "_"
            value.name = fresh


def keep_batch_in_reshapes(graph: ir.Graph) -> None:
    """Turn Reshape to (-1, c, ...) into (0, c, ...) where the batch comes first, in place.

    For the four networks, whose flattening never mixes images: where the image is larger than they
    allow, (-1, c) would return several rows an image instead of failing.
    """
    batch = next(iter(dims(graph.inputs[0])), None) if graph.inputs else None
    for node in graph:
        if node.op_type != "Reshape" or node.inputs[0] is None or node.inputs[0].shape is None:
            continue
        target = constant_value(node.inputs[1])
        source = dims(node.inputs[0])
        if target is None or not isinstance(batch, str) or not source or source[0] != batch:
            continue
        if len(target) > 1 and target[0] == -1 and all(size > 0 for size in target[1:]):
            kept = [0, *map(int, target[1:])]
            _set_target(graph, node, kept)


def _set_target(graph: ir.Graph, node: ir.Node, target: list[int]) -> None:
    tensor = ir.tensor(target, dtype=ir.DataType.INT64, name=f"{node.name}_shape")
    value = ir.Value(
        name=tensor.name,
        shape=ir.Shape([len(target)]),
        type=ir.TensorType(ir.DataType.INT64),
        const_value=tensor,
    )
    graph.register_initializer(value)
    node.replace_input_with(1, value)
    node.attributes.pop("allowzero", None)
    _forget_shapes_after(node, dims(node.inputs[0])[0] if node.inputs[0] else None)


def _forget_shapes_after(node: ir.Node, batch: int | str | None) -> None:
    """Drop shapes that were derived from the old target; outputs of the graph keep the batch."""
    pending, seen = [node], set()
    while pending:
        current = pending.pop()
        if current in seen:
            continue
        seen.add(current)
        for value in current.outputs:
            if value.is_graph_output() and value.shape is not None:
                value.shape = ir.Shape([batch, *list(value.shape)[1:]])
            else:
                value.shape = None
            pending.extend(value.consumers())


def _quietly(transform: ir.passes.InPlacePass, model: ir.Model) -> None:
    """Run a pass of the library; what it logs is of no use to a user."""
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        transform(model)
    finally:
        logger.setLevel(level)
