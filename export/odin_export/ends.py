"""One input and one output of a model: the image, and what holds the logits."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from odin_engines.errors import OdinError
from odin_export import clean
from odin_export.precision import FLOATS

# Since this IR version, weights need not be listed among the inputs.
_WEIGHTS_NEED_NO_INPUT = 4


@dataclass(frozen=True)
class Choice:
    """What a user says about a model; None where it is to be found.

    Attributes:
        input: name of the image input.
        output: name of the logits, of an output or of any value inside.
        layout: "NCHW" or "NHWC", of the image input.
        bgr: the network takes its channels in the order blue, green, red.
    """

    input: str | None = None
    output: str | None = None
    layout: str | None = None
    bgr: bool = False


def cut(model: onnx.ModelProto, choice: Choice, notes: list[str]) -> onnx.ModelProto:
    """Return the part of a model between the image and the output that holds the logits.

    Args:
        model: valid. It is not changed.
        choice: what the user says of both.
        notes: gets a line where there was something to choose from.

    Raises:
        OdinError: one of them is not clear, or the model needs more than the image.
    """
    part = onnx.ModelProto()
    part.CopyFrom(model)
    graph = part.graph
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    image = _image_of(inputs, choice.input)
    outputs = _with_inner_values(part, choice.output)
    output = _output_of(outputs, choice.output)
    _keep_what_makes(graph, output.name)
    _refuse_other_inputs(graph, [value.name for value in inputs if value is not image])
    if len(outputs) > 1:
        notes.append(f"logits: output {output.name!r} of {len(outputs)}; --logits chooses another")
    kept_input, kept_output = onnx.ValueInfoProto(), onnx.ValueInfoProto()
    kept_input.CopyFrom(image)
    kept_output.CopyFrom(output)
    del graph.input[:], graph.output[:]
    graph.input.append(kept_input)
    graph.output.append(kept_output)
    for value in (*graph.input, *graph.value_info, *graph.output):
        _free_impossible_sizes(value)
    part.ir_version = max(part.ir_version, _WEIGHTS_NEED_NO_INPUT)
    return part


def _keep_what_makes(graph: onnx.GraphProto, output: str) -> None:
    """Drop the nodes that the output does not need, such as one that makes a map of classes."""
    needed = {output}
    for index in reversed(range(len(graph.node))):
        node = graph.node[index]
        if needed.intersection(node.output):
            needed |= _used_by(node)
        else:
            del graph.node[index]
    for index in reversed(range(len(graph.value_info))):
        if graph.value_info[index].name not in needed:
            del graph.value_info[index]


def _used_by(node: onnx.NodeProto) -> set[str]:
    """The names that a node reads, those that its subgraphs capture among them."""
    names = set(node.input)
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            names.update(value.name for value in attribute.g.output)
            names.update(*(_used_by(inner) for inner in attribute.g.node))
    return names


def _free_impossible_sizes(value: onnx.ValueInfoProto) -> None:
    """Some exporters write -1 or 0 for a dynamic size."""
    for dim in value.type.tensor_type.shape.dim:
        if dim.HasField("dim_value") and dim.dim_value < 1:
            dim.Clear()


def _image_of(inputs: list[onnx.ValueInfoProto], wanted: str | None) -> onnx.ValueInfoProto:
    if wanted is not None:
        for value in inputs:
            if value.name == wanted and not _is_float(value):
                raise OdinError(
                    f"--input {wanted}: {_listed([value])} is not floating-point, and has no "
                    "gradient; export the model without the Cast behind it, for float images"
                )
            if value.name == wanted:
                return value
        raise OdinError(f"--input {wanted}: the model has no such input, but {_listed(inputs)}")
    images = [value for value in inputs if _looks_like_images(value)]
    if len(images) == 1:
        return images[0]
    if not inputs:
        raise OdinError("the model has no input that is not a constant")
    if not images:
        raise OdinError(
            f"no input looks like a batch of images, floating-point (N, C, H, W) or (N, H, W, C): "
            f"the model has {_listed(inputs)}; --input NAME chooses one"
        )
    raise OdinError(f"several inputs look like images: {_listed(images)}; choose with --input NAME")


def _looks_like_images(value: onnx.ValueInfoProto) -> bool:
    """Four axes of floats; one where more than one axis is other than 1."""
    shape = _shape(value)
    return len(shape) == 4 and _is_float(value) and sum(size != 1 for size in shape) > 1


def _refuse_other_inputs(graph: onnx.GraphProto, names: list[str]) -> None:
    used = {name for node in graph.node for name in _used_by(node)}
    needed = [name for name in names if name in used]
    if needed:
        raise OdinError(
            f"the model needs {', '.join(map(repr, needed))} beside the image; ODIN perturbs one "
            "input. Export the model with the others fixed; if they are constants, the exporter "
            "has lost them (Keras' own loses those of normalisation layers in TensorFlow: save the "
            "model with model.export(FOLDER) and convert it with python -m tf2onnx.convert "
            "--saved-model FOLDER)"
        )


def _with_inner_values(model: onnx.ModelProto, wanted: str | None) -> list[onnx.ValueInfoProto]:
    """The model's outputs, and the value that the user named if it lies inside."""
    outputs = list(model.graph.output)
    if wanted is None or wanted in {value.name for value in outputs}:
        return outputs
    produced = {name for node in model.graph.node for name in node.output}
    if wanted not in produced:
        raise OdinError(
            f"--logits {wanted}: the model has no such value; its outputs are {_listed(outputs)}"
        )
    inferred = clean.checked(model)
    known = {value.name: value for value in inferred.graph.value_info}
    if wanted not in known:
        raise OdinError(f"--logits {wanted}: the type of this value is not known; choose another")
    return [known[wanted]]


def _output_of(outputs: list[onnx.ValueInfoProto], wanted: str | None) -> onnx.ValueInfoProto:
    if not outputs:
        raise OdinError("the model has no output")
    if wanted is not None:
        told = next(value for value in outputs if value.name == wanted)
        if not _is_float(told):
            raise OdinError(
                f"--logits {wanted}: {_listed([told])} is no floating-point tensor; choose the "
                "value that holds one number a class"
            )
        return told
    tensors = [value for value in outputs if value.type.HasField("tensor_type")]
    if not tensors:
        raise OdinError(
            f"the outputs are sequences or maps, not tensors: {_listed(outputs)}; export the model "
            "without the step that turns logits into a map of classes (ZipMap), or name the logits "
            "with --logits NAME"
        )
    floats = [value for value in tensors if _is_float(value)]
    if len(floats) > 1:
        floats = [value for value in floats if _is_row_of_classes(_shape(value))] or floats
    if len(floats) != 1:
        raise OdinError(
            f"which output holds the logits is not clear: {_listed(outputs)}; choose with "
            "--logits NAME"
        )
    return floats[0]


def _is_row_of_classes(shape: list[int | str]) -> bool:
    """(N, classes), with trailing axes of size one or without."""
    return len(shape) >= 2 and all(size == 1 for size in shape[2:]) and shape[1] != 1


def size_of(dim: onnx.TensorShapeProto.Dimension) -> int | str:
    return dim.dim_value if dim.HasField("dim_value") else dim.dim_param


def _shape(value: onnx.ValueInfoProto) -> list[int | str]:
    return [size_of(dim) for dim in value.type.tensor_type.shape.dim]


def _is_float(value: onnx.ValueInfoProto) -> bool:
    return value.type.tensor_type.elem_type in FLOATS


def _listed(values: list[onnx.ValueInfoProto]) -> str:
    parts = []
    for value in values:
        if value.type.HasField("tensor_type"):
            kind = onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower()
            shape = ", ".join(str(size) or "?" for size in _shape(value))
            parts.append(f"{value.name!r} ({kind} {shape})")
        else:
            parts.append(f"{value.name!r} ({value.type.WhichOneof('value')})")
    return ", ".join(parts) or "none"
