"""Finding the image and the logits in a user's model; what cannot be found is asked for."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper, version_converter

from export.user_models import BODY, FEATURES, IMAGES, LOGITS, OfText, raises, run_onnx, text_model
from odin_export.classifier import Classifier, find_classifier
from odin_export.ends import Choice

WITH_SOFTMAX = f"{FEATURES} y = Softmax <axis = 1> (f)"


def images_for(found: Classifier, count: int = 3) -> np.ndarray:
    shape = (count, found.channels, found.height or 9, found.width or 14)
    return np.random.default_rng(2).standard_normal(shape).astype(np.float32)


def assert_computes(
    found: Classifier, model: onnx.ModelProto, factor: float = 1.0, order: tuple[int, ...] = ()
) -> None:
    """The forward graph gives the logits of `BODY`, for several images at once."""
    (image,), (logits,) = found.forward.graph.input, found.forward.graph.output
    assert (image.name, logits.name) == ("images", "logits")
    images = images_for(found)
    (result,) = run_onnx(found.forward, {"images": images})
    taken = images[:, list(order)] if order else images
    expected = OfText(model, factor)(torch.from_numpy(taken).double()).detach().numpy()
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


def told(found: Classifier) -> str:
    return "\n".join(found.notes)


# The image


@pytest.mark.parametrize(
    ("nodes", "inputs", "channels", "layout", "size"),
    [
        (BODY, "float[N,3,8,8] x", 3, "NCHW", (8, 8)),
        (BODY, "float[N,1,8,12] x", 1, "NCHW", (8, 12)),
        (BODY, "float[N,4,8,8] x", 4, "NCHW", (8, 8)),
        (BODY, "float[N,3,H,W] x", 3, "NCHW", (None, None)),
        (BODY, "float[N,3,28,W] x", 3, "NCHW", (28, None)),
        (BODY, "float[None,3,None,None] x", 3, "NCHW", (None, None)),
        ("t = Transpose <perm = [0, 3, 1, 2]> (x)", "float[N,8,12,3] x", 3, "NHWC", (8, 12)),
        ("t = Transpose <perm = [0, 3, 1, 2]> (x)", "float[N,H,W,1] x", 1, "NHWC", (None, None)),
    ],
    ids=lambda value: value if isinstance(value, str) and "[" in value else "",
)
def test_layouts_are_told_by_the_shape(
    nodes: str, inputs: str, channels: int, layout: str, size: tuple[int | None, int | None]
) -> None:
    if layout == "NHWC":
        nodes = f"{nodes} {BODY.replace('(x,', '(t,')}"
    model = text_model(nodes, inputs, channels=channels)
    found = find_classifier(model)
    assert (found.channels, found.classes) == (channels, 5)
    assert (found.height, found.width) == size
    assert found.notes[0].endswith(layout)
    assert_computes(found, model)


def test_sizes_without_names() -> None:
    model = text_model()
    for axis in (0, 2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].Clear()
    model.graph.output[0].type.tensor_type.shape.dim[0].Clear()
    found = find_classifier(model)
    assert (found.height, found.width) == (None, None)
    assert_computes(found, model)


@pytest.mark.parametrize(
    "shape",
    ["N,8,8,8", "N,3,3,3", "N,3,224,3", "N,C,8,8", "N,2,8,8", "N,3,1,1", "N,4,4,3"],
)
def test_a_shape_that_fits_both_layouts_or_none_is_asked_for(shape: str) -> None:
    with raises("where the channels of input 'x'", "--layout NCHW or --layout NHWC"):
        find_classifier(text_model(inputs=f"float[{shape}] x"))


@pytest.mark.parametrize("channels", [2, 3, 8])
def test_a_layout_that_is_told_is_believed(channels: int) -> None:
    model = text_model(inputs=f"float[N,{channels},3,3] x", channels=channels)
    found = find_classifier(model, Choice(layout="NCHW"))
    assert found.channels == channels
    assert_computes(found, model)


def test_channels_in_reverse() -> None:
    model = text_model()
    assert_computes(find_classifier(model, Choice(bgr=True)), model, order=(2, 1, 0))


def test_channels_in_reverse_and_last() -> None:
    nodes = f"t = Transpose <perm = [0, 3, 1, 2]> (x) {BODY.replace('(x,', '(t,')}"
    model = text_model(nodes, "float[N,8,12,3] x")
    assert_computes(find_classifier(model, Choice(bgr=True)), model, order=(2, 1, 0))


def test_reverse_needs_three_channels() -> None:
    with raises("--bgr", "three channels"):
        find_classifier(text_model(inputs="float[N,1,8,8] x", channels=1), Choice(bgr=True))


@pytest.mark.parametrize(
    ("inputs", "choice", "parts"),
    [
        ("float[N,3,8,8] x, float[N,3,8,8] z", Choice(), ("'x'", "'z'", "--input NAME")),
        ("float[N,3,8,8] x", Choice(input="w"), ("--input w", "no such input", "'x'")),
        ("float[N,3,8,8] x", Choice(input=""), ("--input", "no such input", "'x'")),
        ("float[N,3,8,8] x, float[N,3,8,8] z", Choice(input="z"), ("needs 'x' beside",)),
        ("uint8[N,3,8,8] x", Choice(), ("no input looks like", "floating-point", "uint8")),
        ("uint8[N,3,8,8] x", Choice(input="x"), ("'x'", "uint8", "float")),
        ("float[N,3,8] x", Choice(input="x"), ("'x' has 3 axes", "four")),
        ("float[N,C,8,8] x", Choice(layout="NCHW"), ("number of channels is not fixed",)),
    ],
    ids=["two", "a weight", "none", "the wrong one", "bytes", "bytes, told", "3 axes", "C unknown"],
)
def test_an_input_that_is_no_image(inputs: str, choice: Choice, parts: tuple[str, ...]) -> None:
    nodes = BODY if "uint8" not in inputs else "f = Cast <to = 1> (x) " + BODY.replace("(x", "(f")
    with raises(*parts):
        find_classifier(text_model(nodes, inputs), choice)


def test_no_input_at_all() -> None:
    model = text_model()
    del model.graph.input[:]
    with raises("no input that is not a constant"):
        find_classifier(model)


def test_an_unused_input_is_left_out() -> None:
    model = text_model(inputs=f"float[N,7] mask, {IMAGES}, float[N,3,8,8] other")
    assert_computes(find_classifier(model, Choice(input="x")), model)


def test_an_input_that_the_logits_need() -> None:
    model = text_model(f"{FEATURES} y = Mul (f, k)", f"{IMAGES}, float k")
    with raises("needs 'k' beside the image", "xport the model with the others fixed"):
        find_classifier(model)


def test_an_input_that_only_another_output_needs_is_left_out() -> None:
    model = text_model(f"{BODY} z = Mul (y, k)", f"{IMAGES}, float k", f"{LOGITS}, float[N,5] z")
    assert_computes(find_classifier(model, Choice(output="y")), model)


@pytest.mark.parametrize("version", [3, 8])
def test_initializers_listed_as_inputs(version: int) -> None:
    model = text_model(
        inputs=f"{IMAGES}, float[5,3,3,3] w, float[5] b", ir_version=version, opset=13
    )
    assert_computes(find_classifier(model), model)


@pytest.mark.parametrize("opset", [7, 11])
def test_an_old_opset_is_converted(opset: int) -> None:
    old = text_model(
        BODY, f"{IMAGES}, float[5,3,3,3] w, float[5] b".replace("N", "1"), "float[1,5] y", opset, 3
    )
    found = find_classifier(old)
    assert f"opset: {opset}, converted to 13" in found.notes
    assert_computes(found, old)
    new = version_converter.convert_version(old, 17)
    assert_computes(find_classifier(new), new)


# The logits


@pytest.mark.parametrize(
    "nodes",
    [
        BODY,
        WITH_SOFTMAX,
        f"{FEATURES} s = Softmax (f) y = Identity (s)",
        f"{FEATURES} s = Softmax (f) t = Constant <value_ints = [-1, 5]> () y = Reshape (s, t)",
        "c = Conv (x, w, b) r = Relu (c) f = GlobalAveragePool (r) s = Softmax <axis = 1> (f) "
        "y = Flatten (s)",
        f"{FEATURES} s = Softmax (f) d = Cast <to = 11> (s) y = Cast <to = 1> (d)",
        f"{FEATURES} y = own.Head (f)",
    ],
    ids=["none", "softmax", "identity", "reshape", "of 4 axes", "casts", "in a function"],
)
def test_what_follows_the_logits(nodes: str) -> None:
    function = '<domain: "own", opset_import: ["" : 17]> Head (q) => (o) { o = Softmax (q) }'
    own = "own.Head" in nodes
    model = text_model(nodes, domain="own" if own else None, functions=function if own else "")
    found = find_classifier(model)
    assert_computes(found, model)
    assert ("the input of the final Softmax" in told(found)) == (nodes != BODY)


def test_a_log_softmax_is_taken_off() -> None:
    model = text_model(f"{FEATURES} y = LogSoftmax (f)")
    found = find_classifier(model)
    assert "the input of the final LogSoftmax" in told(found)
    images = images_for(found)
    (result,) = run_onnx(found.forward, {"images": images})
    logits = OfText(text_model(f"{FEATURES} y = Identity (f)"))(torch.from_numpy(images).double())
    np.testing.assert_allclose(result, logits.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("outputs", ["float[N,5,1,1] y", "float[N,1,5] y", "float[N,5,1] y"])
def test_axes_of_size_one_are_dropped(outputs: str) -> None:
    shape = outputs[len("float[N,") : -len("] y")]
    nodes = f"{FEATURES} t = Constant <value_ints = [-1, {shape}]> () y = Reshape (f, t)"
    model = text_model(nodes, outputs=outputs)
    assert_computes(find_classifier(model), model)


@pytest.mark.parametrize("name", ["y", "f", "p"])
def test_logits_that_are_told(name: str) -> None:
    model = text_model(f"{FEATURES} y = Identity (f) s = Sigmoid (y)", outputs="float[N,5] s")
    assert_computes(find_classifier(model, Choice(output=name)), model)


def test_the_only_row_of_classes_among_several_outputs() -> None:
    nodes = f"{BODY} k = ArgMax <axis = 1, keepdims = 0> (y) z = Identity (r)"
    model = text_model(nodes, outputs=f"int64[N] k, float[N,5,6,6] z, {LOGITS}")
    found = find_classifier(model)
    assert "output 'y' of 3" in told(found)
    assert_computes(found, model)


def test_a_map_of_classes_can_be_passed_by() -> None:
    nodes = f"{BODY} s = Softmax (y) z = ai.onnx.ml.ZipMap <classlabels_int64s = [0, 1]> (s)"
    outputs = "seq(map(int64, float)) z"
    model = text_model(nodes, outputs=outputs, domain="ai.onnx.ml")
    with raises("sequences or maps", "'z'", "ZipMap", "--logits NAME"):
        find_classifier(model)
    assert_computes(find_classifier(model, Choice(output="y")), model)


ENDS = {
    "labels": ("k = ArgMax <axis = 1> (y)", "int64[N,1] k", None, ("not clear", "'k'", "--logits")),
    "labels, told": ("k = ArgMax <axis = 1> (y)", "int64[N,5] k", "k", ("'k'", "int64")),
    "sequence": ("z = SequenceConstruct (y)", "seq(float[N,5]) z", None, ("sequences", "'z'")),
    "sequence, told": ("z = SequenceConstruct (y)", "seq(float[N,5]) z", "z", ("'z'", "sequence")),
    "sigmoid": ("z = Sigmoid (y)", "float[N,5] z", None, ("Sigmoid", "--logits y")),
    "two rows": ("z = Softmax (y)", f"{LOGITS}, float[N,5] z", None, ("not clear", "'y'", "'z'")),
    "best ones": ("v, i = TopK (y, k3)", "float[N,3] v, int64[N,3] i", None, ("TopK", "--logits")),
    "a map": ("z = Identity (r)", "float[N,5,6,6] z", None, ("'z'", "(N, 5, 6, 6)", "--logits")),
    "a value": ("z = ReduceMax <axes = [1], keepdims = 0> (y)", "float[N] z", None, ("'z'", "(N)")),
    "no such": ("z = Identity (y)", "float[N,5] z", "foo", ("--logits foo", "no such", "'z'")),
    "the image": ("z = Identity (y)", "float[N,5] z", "x", ("--logits x", "no such", "'z'")),
    "one": ("z = Gemm (y, column)", "float[N,1] z", None, ("1 output", "two classes", "(0, z)")),
    "one, sigmoid": (
        "h = Gemm (y, column) z = Sigmoid (h)",
        "float[N,1] z",
        None,
        ("Sigmoid", "h"),
    ),
}


@pytest.mark.parametrize("what", ENDS)
def test_outputs_that_are_not_logits(what: str) -> None:
    nodes, outputs, name, parts = ENDS[what]
    column = np.ones((5, 1), np.float32)
    model = text_model(f"{BODY} {nodes}", outputs=outputs, column=column, k3=np.array([3]))
    with raises(*parts):
        find_classifier(model, Choice(output=name))


def test_a_softmax_over_something_else_is_no_end() -> None:
    nodes = (
        "c = Conv (x, w, b) p = GlobalAveragePool (c) s = Softmax <axis = 3> (p) y = Flatten (s)"
    )
    found = find_classifier(text_model(nodes))
    (result,) = run_onnx(found.forward, {"images": images_for(found)})
    np.testing.assert_array_equal(result, np.ones((3, 5)))


# Batch


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize(
    "end",
    [
        "y = Flatten (p)",
        "y = Reshape (p, target)",
        "y = Reshape <allowzero = 1> (p, target)",
        "t = Constant <value_ints = [BATCH, 5]> () y = Reshape (p, t)",
        "t = Constant <value = int64[2] {BATCH, 5}> () y = Reshape (p, t)",
    ],
    ids=["flatten", "initializer", "allowzero", "ints", "tensor"],
)
def test_a_fixed_batch_is_freed(batch: int, end: str) -> None:
    nodes = BODY.replace("y = Flatten (p)", end.replace("BATCH", str(batch)))
    inputs, outputs = IMAGES.replace("N", str(batch)), LOGITS.replace("N", str(batch))
    model = text_model(nodes, inputs, outputs, target=np.array([batch, 5]))
    found = find_classifier(model)
    assert f"fixed to {batch}" in told(found)
    assert_computes(found, model)


# Names

NAMES = [
    *("seed", "images", "logits", "score", "baseline", "label", "temperature", "magnitude"),
    *("input_gradient", "classes", "images_of_network"),
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("place", ["x", "y", "r", "w"])
def test_names_that_the_graph_wants_may_be_taken(name: str, place: str) -> None:
    model = text_model()
    renamed = onnx.ModelProto()
    renamed.CopyFrom(model)
    graph = renamed.graph
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.name = name if value.name == place else value.name
    for node in graph.node:
        node.input[:] = [name if each == place else each for each in node.input]
        node.output[:] = [name if each == place else each for each in node.output]
    onnx.checker.check_model(renamed, full_check=True)
    assert_computes(find_classifier(renamed), model)


def test_image_and_logits_may_have_each_others_names() -> None:
    nodes = BODY.replace("(x", "(logits").replace("y =", "images =")
    model = text_model(nodes, "float[N,3,8,8] logits", "float[N,5] images")
    assert_computes(find_classifier(model), model)


# What is inside


def test_the_models_are_not_changed() -> None:
    model = text_model(WITH_SOFTMAX, IMAGES.replace("N", "1"), LOGITS.replace("N", "1"))
    before = model.SerializeToString()
    find_classifier(model, Choice(bgr=True, layout="NCHW"))
    assert model.SerializeToString() == before


@pytest.mark.parametrize(
    ("nodes", "op"),
    [
        ("q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z)", "QuantizeLinear"),
        ("q, s1, z1 = DynamicQuantizeLinear (x) d = DequantizeLinear (q, s1, z1)", "Dynamic"),
    ],
    ids=["QDQ", "dynamic"],
)
def test_quantised_models(nodes: str, op: str) -> None:
    nodes = f"{nodes} {BODY.replace('(x,', '(d,')}"
    model = text_model(nodes, s=np.float32(0.1), z=np.int8(0))
    with raises("int8-quantised", op, "rounding", "floating-point model"):
        find_classifier(model)


def test_a_branch_that_is_always_taken() -> None:
    nodes = """
        c = Conv (x, w, b)  r = Relu (c)
        y = If (yes) <
          then_branch = then () => (float[N,5] q) { p = GlobalAveragePool (r) q = Flatten (p) },
          else_branch = other () => (float[N,5] q2) { p2 = GlobalMaxPool (r) q2 = Flatten (p2) }>
    """
    model = text_model(nodes, yes=np.array(True))
    found = find_classifier(model)
    assert "If" not in {node.op_type for node in found.forward.graph.node}
    assert_computes(found, model)


def test_a_loop_over_the_classes_computes_what_the_file_computes() -> None:
    nodes = f"""
        {FEATURES}
        t = Transpose <perm = [1, 0]> (f)
        zero = Sub (t, t)  start = ReduceSum <keepdims = 0> (zero, axis)
        end, sums = Scan <num_scan_inputs = 1, body = add (float[N] so, float[N] v) =>
          (float[N] next, float[N] out) {{ next = Add (so, v) out = Identity (next) }}> (start, t)
        y = Transpose <perm = [1, 0]> (sums)
    """
    model = text_model(nodes, axis=np.array([0]))
    found = find_classifier(model)
    images = images_for(found)
    (expected,), (result,) = (
        run_onnx(each, {each.graph.input[0].name: images}) for each in (model, found.forward)
    )
    logits = OfText(model)(torch.from_numpy(images).double()).detach().numpy()
    np.testing.assert_allclose(expected, logits.cumsum(axis=1), rtol=1e-5)
    np.testing.assert_allclose(result, expected, rtol=1e-5)


@pytest.mark.parametrize("domain", ["", "ai.onnx"])
def test_both_names_of_onnx_s_own_ops(domain: str) -> None:
    model = text_model(opset=13)
    model.opset_import[0].domain = domain
    assert_computes(find_classifier(model), model)
    model.opset_import[0].version = 11
    found = find_classifier(model)
    assert "opset: 11, converted to 13" in found.notes
    assert_computes(found, model)


BROKEN = {
    "no such op": lambda graph: setattr(graph.node[1], "op_type", "Foo"),
    "a value that nothing makes": lambda graph: graph.node[1].input.__setitem__(0, "nothing"),
    "a weight of another size": lambda graph: graph.initializer[0].dims.__setitem__(0, 6),
    "a weight that is missing": lambda graph: graph.initializer.pop(0),
    "an output of another size": lambda graph: graph.output[0].type.CopyFrom(
        helper.make_tensor_type_proto(1, ["N", 7])
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_models_that_are_not_valid(what: str) -> None:
    model = text_model()
    BROKEN[what](model.graph)
    with raises("the ONNX model cannot be read"):
        find_classifier(model)


def test_no_outputs() -> None:
    model = text_model()
    del model.graph.output[:]
    with raises("no output"):
        find_classifier(model)


def test_weights_keep_their_values() -> None:
    model = text_model()
    forward = find_classifier(model).forward
    kept = {each.name: numpy_helper.to_array(each) for each in forward.graph.initializer}
    for each in model.graph.initializer:
        np.testing.assert_array_equal(kept[each.name], numpy_helper.to_array(each))
