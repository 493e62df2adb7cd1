"""The classifier in an ONNX file: which input is the image, and which value holds the logits.

Whatever the file looks like, what comes out is the forward graph that the ODIN graph is made from:
`images` (N, C, H, W) float32 -> `logits` (N, classes) float32.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx import version_converter

from odin_engines.errors import OdinError
from odin_export import clean
from odin_export.batch import free_batch
from odin_export.emit import dims
from odin_export.ends import Choice, cut, size_of
from odin_export.layout import channels_first, image_layout, reverse_channels
from odin_export.obstacles import QUANTISED
from odin_export.precision import in_precision
from odin_export.prepare import prepared
from odin_export.rewrites import average_first

# What may stand between a softmax and the output without changing what the numbers mean.
_PASSING = frozenset({"Identity", "Cast", "Flatten", "Reshape", "Squeeze", "Dropout", "Unsqueeze"})


@dataclass(frozen=True)
class Classifier:
    """A forward graph, and how it was found.

    Attributes:
        forward: `images` (N, C, H, W) -> `logits` (N, classes), float32.
        layout: of the file's images, "NCHW" or "NHWC".
        channels, classes: C, and the number of logits.
        height, width: of the images; None where they are dynamic.
        original: the file's model, from image to output, before anything was changed.
        bgr: whether it takes blue, green, red.
        notes: what was found and assumed, one line each, for the user.
        log_probabilities: whether the logits are logarithms of probabilities, which differ from
            those of the network by a constant for each image.
    """

    forward: onnx.ModelProto
    layout: str
    channels: int
    classes: int
    height: int | None
    width: int | None
    original: onnx.ModelProto
    bgr: bool
    notes: list[str] = field(default_factory=list)
    log_probabilities: bool = False


def load_model(file: Path) -> onnx.ModelProto:
    """Read an ONNX file, with the weights that lie beside it.

    Raises:
        OdinError: it is missing, is not ONNX, or its weights are missing.
    """
    if not file.is_file():
        what = "this is a folder, not a file" if file.is_dir() else "there is no such file"
        raise OdinError(f"{file}: {what}")
    try:
        model = onnx.load(str(file))
    except DecodeError as error:
        raise OdinError(
            f"{file} is not an ONNX model ({error}); it may be cut short: copy or export it again"
        ) from error
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise OdinError(
            f"{file} cannot be read: {error}; keep the files with its weights beside it"
        ) from error
    if not model.graph.node:
        raise OdinError(f"{file} holds no graph: it is empty, or not an ONNX model")
    _replace_erfc(model.graph)
    return model


def _replace_erfc(graph: onnx.GraphProto) -> None:
    """Turn Erfc, which tf2onnx 1.17 writes for GELU and ONNX does not have, into 1 - Erf."""
    for index, node in reversed(list(enumerate(graph.node))):
        if node.op_type != "Erfc" or node.domain:
            continue
        erf, one = f"{node.output[0]}_erf", f"{node.output[0]}_one"
        helper = onnx.helper
        parts = [
            helper.make_node("Constant", [], [one], name=one, value_float=1.0),
            helper.make_node("Erf", node.input, [erf], name=erf),
            helper.make_node("Sub", [one, erf], node.output, name=node.name),
        ]
        del graph.node[index]
        for part in reversed(parts):
            graph.node.insert(index, part)


def find_classifier(model: onnx.ModelProto, choice: Choice | None = None) -> Classifier:
    """Find image and logits in a model, and bring it into the one form.

    Args:
        model: any valid classifier. It is not changed.
        choice: what the user says; None leaves everything to be found.

    Raises:
        OdinError: the model is not valid, image or logits are not clear, or it is quantised.
    """
    choice = choice or Choice()
    notes: list[str] = []
    _refuse_quantised(model)
    model = _modern(model, notes)
    original = model = cut(model, choice, notes)
    layout = image_layout(model, choice.layout)
    model = free_batch(model, notes)
    graph_model = prepared(model)
    logits = _logits(graph_model.graph, notes, told=choice.output is not None)
    graph = graph_model.graph
    graph.outputs.clear()
    graph.outputs.append(clean.named_output(graph, logits, "logits"))
    image = graph.inputs[0]
    notes.insert(0, f"image: input {image.name!r}, {_described(image)}, {layout}")
    if layout == "NHWC":
        channels_first(graph)
    if choice.bgr:
        if dims(graph.inputs[0])[1] != 3:
            raise OdinError("--bgr is for images with three channels")
        reverse_channels(graph)
    clean.rename(graph, graph.inputs[0], "images")
    average_first(graph)
    forward = in_precision(clean.to_proto(graph_model), ir.DataType.FLOAT)
    return _checked(forward, layout, original, choice.bgr, notes)


def _modern(model: onnx.ModelProto, notes: list[str]) -> onnx.ModelProto:
    """Convert a model of an opset before those whose ops the rules know."""
    names = ("", "ai.onnx")
    opset = next((each.version for each in model.opset_import if each.domain in names), None)
    if opset is None or opset >= clean.OLDEST_OPSET:
        return model
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    for each in plain.opset_import:
        each.domain = "" if each.domain in names else each.domain
    try:
        converted = version_converter.convert_version(plain, clean.OLDEST_OPSET)
    except Exception as error:
        raise OdinError(
            f"the model has opset {opset}, and ONNX cannot convert it to {clean.OLDEST_OPSET} "
            f"({error}); export it again with opset {clean.OPSET}"
        ) from error
    notes.append(f"opset: {opset}, converted to {clean.OLDEST_OPSET}")
    return converted


def _refuse_quantised(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.op_type in QUANTISED and node.op_type != "DequantizeLinear":
            raise OdinError(
                f"the model is int8-quantised (node {node.name!r}, {node.op_type}), and rounding "
                "has no gradient: export the floating-point model that it was made from"
            )


def _logits(graph: ir.Graph, notes: list[str], told: bool) -> ir.Value:
    """The value before a final softmax, or the output itself."""
    output = graph.outputs[0]
    value = output
    while (node := value.producer()) is not None and node.op_type in _PASSING and node.inputs[0]:
        value = node.inputs[0]
    node = value.producer()
    if told or node is None or node.domain:
        return _as_rows(graph, output)
    if node.op_type in ("Softmax", "LogSoftmax") and _softmax_axis_is_classes(node):
        notes.append(f"logits: the input of the final {node.op_type} {node.name!r}")
        assert node.inputs[0] is not None
        return _as_rows(graph, node.inputs[0])
    if node.op_type == "TopK":
        name = node.inputs[0].name if node.inputs[0] else "NAME"
        raise OdinError(
            f"the model ends in a TopK ({node.name!r}), which sorts the classes of each image; "
            f"name the logits before it with --logits {name}"
        )
    if node.op_type == "Sigmoid":
        raise OdinError(
            f"the model ends in a Sigmoid ({node.name!r}): it judges each class on its own, and "
            "ODIN needs a softmax over the classes. If they exclude each other, name the logits "
            f"with --logits {node.inputs[0].name if node.inputs[0] else 'NAME'}"
        )
    return _as_rows(graph, output)


def _softmax_axis_is_classes(node: ir.Node) -> bool:
    assert node.inputs[0] is not None
    sizes = dims(node.inputs[0])
    axis = node.attributes.get_int("axis", -1) % len(sizes)
    return axis >= 1 and sizes[axis] != 1 and all(size == 1 for size in sizes[axis + 1 :])


def _as_rows(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """(N, classes, 1, 1) -> (N, classes)."""
    sizes = dims(value)
    if len(sizes) == 2:
        return value
    row = [size for size in sizes[1:] if size != 1]
    if len(sizes) < 2 or len(row) != 1:
        shape = ", ".join(str(size) for size in sizes)
        raise OdinError(
            f"{value.name!r} has shape ({shape}), not (N, classes); choose the logits of an image "
            "classifier with --logits NAME"
        )
    node = ir.Node("", "Flatten", [value], num_outputs=1, name=f"{value.name}_rows")
    graph.append(node)
    rows = node.outputs[0]
    rows.name, rows.type = f"{value.name}_rows", value.type
    rows.shape = ir.Shape([sizes[0], row[0]])
    return rows


def _checked(
    forward: onnx.ModelProto,
    layout: str,
    original: onnx.ModelProto,
    bgr: bool,
    notes: list[str],
) -> Classifier:
    """Read the sizes off the finished graph."""
    image = [size_of(dim) for dim in forward.graph.input[0].type.tensor_type.shape.dim]
    logits = [size_of(dim) for dim in forward.graph.output[0].type.tensor_type.shape.dim]
    channels, height, width = image[1:]
    classes = logits[1]
    if not isinstance(channels, int):
        raise OdinError("the image's number of channels is not fixed; export the model with it")
    if not isinstance(classes, int):
        raise OdinError("the number of classes is not fixed; choose another output with --logits")
    if classes < 2:
        raise OdinError(
            f"the model has {classes} output; a softmax needs two classes or more. A single "
            "logit z of a binary classifier stands for the two logits (0, z): export it so"
        )
    return Classifier(
        forward,
        layout,
        channels,
        classes,
        height if isinstance(height, int) else None,
        width if isinstance(width, int) else None,
        original,
        bgr,
        notes,
    )


def _described(image: ir.Value) -> str:
    return f"({', '.join(str(size) for size in dims(image))})"
