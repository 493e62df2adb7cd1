"""The ODIN graph: images in, scores out, forward and backward passes and scoring in one graph.

Liang, Li, Srikant, "Enhancing the Reliability of Out-of-distribution Image Detection in Neural
Networks", ICLR 2018. With logits f(x), S(x; T) = softmax(f(x) / T) and y = argmax f(x):

    exact:        x' = x - magnitude sign(g) / std,  sign(0) = +1;   score = max_i S_i(x'; T)
    first order:  score = S_y(x; T) exp(magnitude sum_i |g_i| / std_i), its Taylor expansion

where g is the gradient of -log S_y(x; T) with respect to the normalised image x. Its seed at the
logits is (S(x; T) - onehot(y)) / T; the factor 1/T is applied after the backward pass, where it is
needed at all, so that small gradients keep their bits. In half precision the seed is multiplied by
`spec.seed_scale`, a power of two, which is divided out again with T: it changes no sign.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from odin_engines.errors import OdinError
from odin_engines.spec import Spec
from odin_export import clean
from odin_export.backward import append_backward
from odin_export.emit import Emitter, dims
from odin_export.rewrites import fold_scales
from odin_export.scores import Inputs, append_scores, find_head


@dataclass(frozen=True)
class _Parts:
    """The values of the forward graph that scoring is built from."""

    image: ir.Value  # normalised, (N, C, H, W)
    logits: ir.Value
    nodes: list[ir.Node]  # of the forward pass
    temperature: ir.Value  # float32 scalar
    magnitude: ir.Value  # float32 scalar


def odin_graph(forward: onnx.ModelProto, spec: Spec) -> onnx.ModelProto:
    """Return `odin.onnx`: `images` -> `score`, `baseline`, `label`, `logits`.

    Args:
        forward: one input, normalised images (N, C, H, W), and one output, logits (N, classes).
        spec: tells method, temperature, magnitude, mean, std and the type of the input.

    Returns:
        A graph with input `images`, as `spec.input_type` says, and, if `spec.tunable`, the float32
        scalars `temperature` and `magnitude`. Outputs: `score` and `baseline`, float32 (N,),
        higher = in-distribution; `label`, int64 (N,); `logits`, float32 (N, classes); then those of
        `spec.scores`, float32 (N,).
    """
    model, e, parts = _start(forward, spec, tunable=("temperature", "magnitude"))
    if spec.input_type == "uint8":
        parts = _take_raw_pixels(e, parts, spec)
    logits = _as_float32(e, parts.logits)
    label = e.op("ArgMax", logits, axis=1, keepdims=0)
    if spec.method == "first-order":
        score = _first_order_score(e, parts, logits, label, spec)
    else:
        score = _exact_score(e, parts, logits, label, spec)
    outputs = {
        "score": score,
        "baseline": _max_probability(e, logits),
        "label": label,
        "logits": logits,
    }
    inputs = Inputs(logits, label, spec.classes, find_head(e, parts.logits))
    outputs |= append_scores(e, spec.scores, inputs)
    return _finish(model, outputs, spec.classes)


def gradient_graph(forward: onnx.ModelProto, spec: Spec) -> onnx.ModelProto:
    """Return `gradient.onnx`: normalised `images` -> `logits`, `input_gradient`.

    The gradient is that of -log S_y(x; T), each image's own, in the shape of the images.
    """
    model, e, parts = _start(forward, spec, tunable=("temperature",))
    logits = _as_float32(e, parts.logits)
    label = e.op("ArgMax", logits, axis=1, keepdims=0)
    scaled = _gradient(e, parts, logits, label, spec)
    gradient = e.op("Div", _as_float32(e, scaled), _factor_of_gradient(e, parts, spec))
    return _finish(model, {"logits": logits, "input_gradient": gradient}, spec.classes)


def gradient_sizes_graph(forward: onnx.ModelProto, spec: Spec) -> onnx.ModelProto:
    """Return a graph that tells how large gradients get: normalised `images` -> `largest`, `last`.

    For each value g of the backward pass, `largest` (values,) is max |g| over the images and all
    that it holds; `last` (1,) is that of the input gradient. Both are float32.
    """
    model, e, parts = _start(forward, spec, tunable=())
    label = e.op("ArgMax", parts.logits, axis=1, keepdims=0)
    seed = _seed(e, parts, parts.logits, label, spec)
    gradient = append_backward(e, parts.image, parts.logits, seed)
    clean.infer_shapes(model)
    # Not what the backward pass is made of besides, such as weights turned around.
    gradients: dict[ir.Value | None, ir.Value] = {seed: seed}
    for node in e.graph:
        if _sees(node, gradients):
            gradients.update((value, value) for value in node.outputs)
    one = e.integers([1], "one_value")
    sizes = {
        value: e.op("Reshape", e.op("ReduceMax", e.op("Abs", value), keepdims=0), one)
        for value in gradients.values()
        if value.dtype == ir.DataType.FLOAT
    }
    e.graph.outputs.clear()
    largest = e.op("Concat", *sizes.values(), axis=0)
    for name, value in (("largest", largest), ("last", e.op("Identity", sizes[gradient]))):
        output = clean.named_output(e.graph, value, name)
        output.type = ir.TensorType(ir.DataType.FLOAT)
        output.shape = ir.Shape([len(sizes) if name == "largest" else 1])
        e.graph.outputs.append(output)
    return clean.to_proto(model)


def _start(
    forward: onnx.ModelProto, spec: Spec, tunable: tuple[str, ...]
) -> tuple[ir.Model, Emitter, _Parts]:
    model = clean.from_proto(forward)
    graph = model.graph
    image, logits = graph.inputs[0], graph.outputs[0]
    clean.rename(graph, image, "images")
    assert image.dtype is not None
    nodes = list(graph)
    e = Emitter(graph, image.dtype)
    scalars = {}
    for name in ("temperature", "magnitude"):
        if spec.tunable and name in tunable:
            clean.make_room(graph, name)
            scalars[name] = ir.Value(
                name=name, shape=ir.Shape([]), type=ir.TensorType(ir.DataType.FLOAT)
            )
            graph.inputs.append(scalars[name])
        else:
            scalars[name] = e.constant(np.float32(getattr(spec, name)), name)
    parts = _Parts(image, logits, nodes, scalars["temperature"], scalars["magnitude"])
    return model, e, parts


def _finish(model: ir.Model, outputs: dict[str, ir.Value], classes: int) -> onnx.ModelProto:
    """Make these the outputs; every one starts with the batch of the images."""
    graph = model.graph
    batch, *image = dims(graph.inputs[0])
    rest: dict[str, list[int | str | None]] = {"logits": [classes], "input_gradient": image}
    graph.outputs.clear()
    for name, value in outputs.items():
        output = clean.named_output(graph, value, name)
        # Inference can lose sizes in the backward pass, and the batch's name.
        output.shape = ir.Shape([batch, *rest.get(name, [])])
        output.type = ir.TensorType(ir.DataType.INT64 if name == "label" else ir.DataType.FLOAT)
        graph.outputs.append(output)
    graph.sort()
    clean.infer_shapes(model)
    fold_scales(graph)
    return clean.to_proto(model)


def _take_raw_pixels(e: Emitter, parts: _Parts, spec: Spec) -> _Parts:
    """Put uint8 (N, H, W, C) before the network: normalised = pixel / (255 std) - mean / std."""
    assert parts.image.shape is not None
    batch, channels, height, width = parts.image.shape
    e.graph.inputs.pop(0)
    parts.image.name = e.unique("normalised")
    raw = ir.Value(
        name="images",
        shape=ir.Shape([batch, height, width, channels]),
        type=ir.TensorType(ir.DataType.UINT8),
    )
    e.graph.inputs.insert(0, raw)
    # The Cast comes first: TensorRT takes uint8 in nothing else.
    planes = e.op("Transpose", e.op("Cast", raw, to=int(e.dtype)), perm=[0, 3, 1, 2])
    scale = e.floats(_per_channel(1 / (255 * np.asarray(spec.std))), "pixel_scale")
    offset = e.floats(_per_channel(np.asarray(spec.mean) / np.asarray(spec.std)), "pixel_offset")
    normalised = e.op("Sub", e.op("Mul", planes, scale), offset)
    normalised.shape, normalised.type = parts.image.shape, parts.image.type
    parts.image.replace_all_uses_with(normalised)
    return _Parts(normalised, parts.logits, parts.nodes, parts.temperature, parts.magnitude)


def _exact_score(
    e: Emitter, parts: _Parts, logits: ir.Value, label: ir.Value, spec: Spec
) -> ir.Value:
    if spec.magnitude == 0 and not spec.tunable:
        return _max_probability(e, logits, parts.temperature)
    gradient = _gradient(e, parts, logits, label, spec)
    inverse_std = e.floats(_per_channel(1 / np.asarray(spec.std)), "inverse_std")
    up = e.op("Mul", _in_network_type(e, parts.magnitude), inverse_std)
    # sign(0) = +1: a zero gradient moves the pixel down, as in the release.
    step = e.op("Where", e.op("Less", gradient, e.floats(0, "zero")), up, e.op("Neg", up))
    perturbed = e.op("Add", parts.image, step)
    again = _copy_of_forward(e, parts, perturbed)
    return _max_probability(e, _as_float32(e, again), parts.temperature)


def _first_order_score(
    e: Emitter, parts: _Parts, logits: ir.Value, label: ir.Value, spec: Spec
) -> ir.Value:
    probability = _max_probability(e, logits, parts.temperature)
    if spec.magnitude == 0 and not spec.tunable:
        return probability
    gradient = _as_float32(e, _gradient(e, parts, logits, label, spec))
    inverse_std = e.constant(_per_channel(1 / np.asarray(spec.std)).astype(np.float32))
    size = e.op("Mul", e.op("Abs", gradient), inverse_std)
    total = e.op("ReduceSum", size, e.integers([1, 2, 3], "axes"), keepdims=0)
    factor = _factor_of_gradient(e, parts, spec)
    gain = e.op("Mul", total, e.op("Div", parts.magnitude, factor))
    return e.op("Mul", probability, e.op("Exp", gain))


def _factor_of_gradient(e: Emitter, parts: _Parts, spec: Spec) -> ir.Value:
    """What `_gradient` is to be divided by."""
    if spec.seed_scale == 1:
        return parts.temperature
    return e.op("Mul", parts.temperature, e.constant(np.float32(spec.seed_scale), "seed_scale"))


def _gradient(e: Emitter, parts: _Parts, logits: ir.Value, label: ir.Value, spec: Spec) -> ir.Value:
    """T seed_scale times the gradient of -log S_y(x; T) with respect to the normalised image."""
    return append_backward(e, parts.image, parts.logits, _seed(e, parts, logits, label, spec))


def _seed(e: Emitter, parts: _Parts, logits: ir.Value, label: ir.Value, spec: Spec) -> ir.Value:
    """The gradient at the logits that the backward pass starts from."""
    probabilities = e.op("Softmax", e.op("Div", logits, parts.temperature), axis=1)
    classes = e.constant(np.arange(spec.classes)[None], "classes")
    predicted = e.op("Equal", e.op("Unsqueeze", label, e.integers([1], "axes")), classes)
    onehot = e.op("Cast", predicted, to=int(ir.DataType.FLOAT))
    difference = e.op("Sub", probabilities, onehot)
    if spec.seed_scale != 1:
        scale = e.constant(np.float32(spec.seed_scale), "seed_scale")
        difference = e.op("Mul", difference, scale)
    seed = _in_network_type(e, difference)
    seed.shape, seed.type = parts.logits.shape, parts.logits.type
    return seed


def _copy_of_forward(e: Emitter, parts: _Parts, image: ir.Value) -> ir.Value:
    """Append the forward pass once more, on another image; it shares every weight."""
    replaced: dict[ir.Value | None, ir.Value] = {parts.image: image}
    for node in parts.nodes:
        if not _sees(node, replaced):
            continue
        copy = ir.Node(
            node.domain,
            node.op_type,
            [replaced.get(value, value) for value in node.inputs],
            list(node.attributes.values()),
            num_outputs=len(node.outputs),
            name=e.unique(f"{node.name}_perturbed"),
        )
        for old, new in zip(node.outputs, copy.outputs, strict=True):
            new.name = e.unique(f"{old.name}_perturbed")
            new.shape, new.type = old.shape, old.type
            replaced[old] = new
        e.graph.append(copy)
    return replaced[parts.logits]


def _sees(node: ir.Node, values: Mapping[ir.Value | None, ir.Value]) -> bool:
    """Whether a node depends on the numbers in these values, rather than on their sizes alone."""
    if node.op_type in ("Shape", "Size") and node.domain == "":
        return False
    captured = any(
        value in values
        for attribute in node.attributes.values()
        if attribute.type == ir.AttributeType.GRAPH
        for inner in attribute.as_graph().all_nodes()
        for value in inner.inputs
    )
    if captured:
        raise OdinError(
            f"node {node.name!r} ({node.op_type}): what it runs is decided by the image; export "
            "the model with its condition or its number of rounds fixed"
        )
    return any(value in values for value in node.inputs)


def _max_probability(e: Emitter, logits: ir.Value, temperature: ir.Value | None = None) -> ir.Value:
    """max_i softmax(logits / T)_i in float32, (N,); T = 1 without a temperature."""
    if temperature is not None:
        logits = e.op("Div", logits, temperature)
    probabilities = e.op("Softmax", logits, axis=1)
    return e.reduced("ReduceMax", probabilities, [1], keepdims=False)


def _as_float32(e: Emitter, value: ir.Value) -> ir.Value:
    if e.dtype == ir.DataType.FLOAT:
        return value
    return e.op("Cast", value, to=int(ir.DataType.FLOAT))


def _in_network_type(e: Emitter, value: ir.Value) -> ir.Value:
    if e.dtype == ir.DataType.FLOAT:
        return value
    return e.op("Cast", value, to=int(e.dtype))


def _per_channel(values: np.ndarray) -> np.ndarray:
    return np.asarray(values, np.float64).reshape(1, -1, 1, 1)
