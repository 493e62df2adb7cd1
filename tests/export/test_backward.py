"""The contract of `input_gradient`: what it returns, what it refuses and how it says so."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, fields

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper, parser

from export.rule_cases import (
    CASES,
    COMPOSITES,
    Case,
    away_from_zero,
    build,
    central_differences,
    random_for,
)
from odin_engines.errors import OdinError
from odin_export.backward import input_gradient
from odin_export.evaluate import evaluator
from odin_export.rules import RULES

# What a gradient may be made of: ops that TensorRT's parser accepts without plugins.
ALLOWED = {
    *("Add", "Cast", "Concat", "Conv", "ConvTranspose", "Div", "Expand", "Gather", "Gemm"),
    *("Greater", "Identity", "MatMul", "Mul", "Neg", "Pad", "ReduceProd", "ReduceSum", "Reshape"),
    *("Resize", "Shape", "Slice", "Squeeze", "Sub", "Transpose", "Unsqueeze", "Where"),
    *("Abs", "And", "Clip", "Cos", "Cosh", "Equal", "Erf", "Exp", "Less", "Log", "Not", "Or"),
    *("ArgMax", "AveragePool", "DepthToSpace", "Max", "MaxPool", "Min", "Range", "SpaceToDepth"),
    *("Pow", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Sqrt", "Sum", "Tanh"),
    *("AveragePool", "CumSum", "Einsum", "ReduceMean", "Trilu"),
    *("GatherElements", "GatherND", "Max", "Min", "Range", "ReverseSequence", "ScatterElements"),
    *("ScatterND", "Size"),
}


def model_of(
    nodes: str, x: str = "double[N,3] x", y: str = "double[N,3] y", opset: int = 20, ir: int = 10
) -> onnx.ModelProto:
    """Return a model as it stands: nothing is inferred or checked."""
    return parser.parse_model(
        f'<ir_version: {ir}, opset_import: ["" : {opset}, "mine" : 1]>\n'
        f"network ({x}) => ({y}) {{\n{nodes}\n}}"
    )


def assert_right(model: onnx.ModelProto, shape: tuple[int, ...]) -> None:
    """Check the gradient of a float64 model at one random x of this shape."""
    extended = input_gradient(model)
    onnx.checker.check_model(extended, full_check=True)
    x_name, y_name = model.graph.input[0].name, model.graph.output[0].name
    assert [value.name for value in extended.graph.input] == [x_name, "seed"]
    assert [value.name for value in extended.graph.output] == [y_name, "input_gradient"]
    rng = random_for(str(model.graph))
    x = away_from_zero(rng, shape)
    (y,) = evaluator(model).run(None, {x_name: x})
    seed = rng.standard_normal(y.shape)
    again, found = evaluator(extended).run(None, {x_name: x, "seed": seed})
    np.testing.assert_array_equal(again, y)
    np.testing.assert_allclose(found, central_differences(model, x, seed), rtol=1e-6, atol=1e-7)


# --- what comes back ----------------------------------------------------------------------------

CLASSIFIER = Case(
    "",
    "classifier",
    ("N", 2, 6, 6),
    """
    c = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
    n = BatchNormalization (c, s, b1, b1, v)
    r = Relu (n)
    p = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (r)
    d = Conv <strides = [2, 2]> (p, w2)
    g = GlobalAveragePool (d)
    f = Flatten (g)
    y = Gemm <transB = 1> (f, w3, b3)
    """,
    {
        "w1": (3, 2, 3, 3),
        "b1": (3,),
        "s": (3,),
        "v": np.array([0.5, 1.0, 2.0]),
        "w2": (4, 3, 2, 2),
        "w3": (5, 4),
        "b3": (5,),
    },
)


def described(value: onnx.ValueInfoProto) -> tuple[str, int, list[int | str]]:
    tensor = value.type.tensor_type
    return (
        value.name,
        tensor.elem_type,
        [dim.dim_param or dim.dim_value for dim in tensor.shape.dim],
    )


@pytest.mark.parametrize("dtype", ["double", "float", "float16"])
def test_names_types_and_shapes(dtype: str) -> None:
    model = build(CLASSIFIER, dtype)
    extended = input_gradient(model)
    onnx.checker.check_model(extended, full_check=True)
    elem = model.graph.input[0].type.tensor_type.elem_type
    assert [described(value) for value in extended.graph.input] == [
        ("x", elem, ["N", 2, 6, 6]),
        ("seed", elem, ["N", 5]),
    ]
    assert [described(value) for value in extended.graph.output] == [
        ("y", elem, ["N", 5]),
        ("input_gradient", elem, ["N", 2, 6, 6]),
    ]


@pytest.mark.parametrize("name", ["w1", "seed", "input_gradient", "zero"])
def test_the_model_is_not_changed(name: str) -> None:
    """Not even where one of its weights has a name that the gradient needs."""
    model = build(CLASSIFIER)
    model.graph.initializer[0].name = model.graph.node[0].input[1] = name
    before = model.SerializeToString(deterministic=True)
    input_gradient(model)
    assert model.SerializeToString(deterministic=True) == before


def test_the_result_does_not_depend_on_the_call() -> None:
    model = build(CLASSIFIER)
    first, second = (input_gradient(model).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


def test_other_names_are_kept() -> None:
    model = model_of("logits = Neg (images)", "double[batch,3] images", "double[batch,3] logits")
    assert_right(model, (2, 3))


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float16, 2e-2)])
def test_lower_precision_agrees_with_float64(dtype: type, tolerance: float) -> None:
    rng = random_for("precision")
    x, seed = away_from_zero(rng, (3, 2, 6, 6)), rng.standard_normal((3, 5))
    names = {np.float32: "float", np.float16: "float16"}
    exact = evaluator(input_gradient(build(CLASSIFIER)))
    rough = evaluator(input_gradient(build(CLASSIFIER, names[dtype])))
    (expected,) = exact.run(["input_gradient"], {"x": x, "seed": seed})
    feeds = {"x": x.astype(dtype), "seed": seed.astype(dtype)}
    (found,) = rough.run(["input_gradient"], feeds)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def test_images_of_a_batch_do_not_mix_and_the_seed_is_linear() -> None:
    session = evaluator(input_gradient(build(CLASSIFIER)))
    rng = random_for("batch")
    x, seed = away_from_zero(rng, (3, 2, 6, 6)), rng.standard_normal((3, 5))

    def gradient(images: np.ndarray, factors: np.ndarray) -> np.ndarray:
        (found,) = session.run(["input_gradient"], {"x": images, "seed": factors})
        return found

    together = gradient(x, seed)
    alone = [gradient(x[i : i + 1], seed[i : i + 1]) for i in range(3)]
    np.testing.assert_allclose(together, np.concatenate(alone), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(gradient(x, -2 * seed), -2 * together, rtol=1e-12)
    np.testing.assert_array_equal(gradient(x, 0 * seed), np.zeros_like(x))


def test_weights_are_stored_once() -> None:
    case = Case(
        "",
        "two convolutions",
        ("N", 32, 8, 8),
        "a = Conv <pads = [1, 1, 1, 1]> (x, w1)\n b = Relu (a)\n"
        "y = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (b, w2)",
        {"w1": (32, 32, 3, 3), "w2": (32, 32, 3, 3)},
    )
    model = build(case, "float")
    assert input_gradient(model).ByteSize() < 1.1 * model.ByteSize()


def test_gradients_are_made_of_ops_that_engines_have() -> None:
    emitted: Counter[str] = Counter()
    for case in (*CASES, *COMPOSITES):
        model = build(case)
        extended = input_gradient(model)
        own = Counter(node.op_type for node in model.graph.node)
        emitted += Counter(node.op_type for node in extended.graph.node) - own
        assert {node.domain for node in extended.graph.node} == {""}
    assert set(emitted) <= ALLOWED


# --- what is fine -------------------------------------------------------------------------------

# Each reads x of shape (N, 3) and writes y.
FINE = {
    "an op without rule that nothing needs": "a = Mod <fmod = 1> (x, x)\n y = Relu (x)",
    "an op without rule, then ArgMax": """
        one = Constant <value_ints = [1]> ()
        a = Mod <fmod = 1> (x, x)
        i = ArgMax <axis = 1> (a)
        f = Cast <to = 11> (i)
        y = Mul (x, f)
    """,
    "an op without rule among integers": """
        two = Constant <value_int = 2> ()
        i = Cast <to = 7> (x)
        m = Mod (i, two)
        f = Cast <to = 11> (m)
        y = Sub (x, f)
    """,
    "an op without rule on constants": """
        c = Constant <value = double[3] {1, 2, 3}> ()
        s = Sin (c)
        y = Mul (x, s)
    """,
    "a mask of x": """
        zero = Constant <value = double {0}> ()
        g = Greater (x, zero)
        f = Cast <to = 11> (g)
        y = Mul (x, f)
    """,
    "rounding, with a gradient of zero": "a = Floor (x)\n b = Sign (x)\n c = Mul (a, b)\n"
    "y = Add (c, x)",
    "a foreign op that nothing needs": "a = mine.Op (x)\n y = Relu (x)",
    "If on a condition that depends on x, between constants": """
        zero = Constant <value = double {0}> ()
        k = Constant <value = double[3] {1, 2, 3}> ()
        m = ReduceMax <keepdims = 0> (x)
        c = Greater (m, zero)
        b = If (c) <
            then_branch = yes () => (double[3] u) { u = Neg (k) },
            else_branch = no () => (double[3] v) { v = Sin (k) }>
        y = Mul (x, b)
    """,
    "If on a constant": """
        no = Constant <value = bool {0}> ()
        y = If (no) <
            then_branch = a () => (double[N,3] u) { u = Sin (x) },
            else_branch = b () => (double[N,3] v) { w = Mul (x, x)  v = Neg (w) }>
    """,
    "If on x that nothing needs": """
        c = Constant <value = bool {1}> ()
        b = If (c) <
            then_branch = yes () => (double[N,3] u) { u = Neg (x) },
            else_branch = no () => (double[N,3] v) { v = Sin (x) }>
        y = Relu (x)
    """,
    "the output is the input": "y = Identity (x)",
    "names like those of the gradient's own nodes": """
        zero = Relu (x)
        where = Relu (zero)
        greater = Add (where, x)
        axes = Mul (greater, greater)
        gradient_of_x = Mul (axes, x)
        y = Relu (gradient_of_x)
    """,
    "an internal value called seed": "seed = Mul (x, x)\n y = Neg (seed)",
    "an internal value called input_gradient": "input_gradient = Mul (x, x)\n"
    "y = Neg (input_gradient)",
    "a constant called seed": "seed = Constant <value = double[3] {1, 2, 3}> ()\ny = Mul (x, seed)",
    "a constant called input_gradient": """
        input_gradient = Constant <value = double[3] {1, 2, 3}> ()
        y = Mul (x, input_gradient)
    """,
    "nodes called seed and input_gradient": "[seed] a = Neg (x)\n [input_gradient] y = Mul (a, x)",
    "values called seed and seed_of_network": """
        seed = Neg (x)
        seed_of_network = Mul (seed, x)
        input_gradient_of_network = Mul (seed, seed_of_network)
        y = Add (seed_of_network, input_gradient_of_network)
    """,
}


@pytest.mark.parametrize("nodes", FINE.values(), ids=FINE.keys())
def test_fine(nodes: str) -> None:
    model = model_of(nodes)
    if "mine." in nodes:
        assert "input_gradient" in {value.name for value in input_gradient(model).graph.output}
    else:
        assert_right(model, (2, 3))


def test_seed_as_initializer_that_is_no_constant_node() -> None:
    case = Case("", "", ("N", 3), "y = Mul (x, seed)", {"seed": (3,)})
    assert_right(build(case), (2, 3))


def test_functions_of_the_model_are_inlined() -> None:
    model = parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 20, "mine" : 1]>
        network (double[N,3] x) => (double[N,3] y) { y = mine.Cube (x) }
        <domain: "mine", opset_import: ["" : 20]>
        Cube (a) => (c) { b = Mul (a, a)  c = Mul (a, b) }
    """)
    assert_right(model, (2, 3))


def test_rows_of_several_images_stay_rows_of_several_images() -> None:
    nodes = """
        rows = Constant <value_ints = [-1, 2]> ()
        a = Reshape (x, rows)
        y = Relu (a)
    """
    assert_right(model_of(nodes, "double[N,T,2] x", "double[M,2] y"), (2, 3, 2))


def test_residual_block_whose_sizes_inference_cannot_compare() -> None:
    nodes = (
        "a = Conv <strides = [2, 2]> (x, k)\n b = Conv <strides = [2, 2]> (x, k)\ny = Add (a, b)"
    )
    model = model_of(PRELUDE + nodes, "double[N,1,H,W] x", "double[] y")
    for shape in ((2, 1, 4, 5), (1, 1, 7, 2)):
        assert_right(model, shape)


# What shape inference cannot tell, at sizes where it was assumed rightly and wrongly.
ASSUMED = {
    "a matrix and its transpose": ("a = Transpose (x)\ny = Add (a, x)", "N,M", (2, 2), (1, 3)),
    "a constant of two rows": (
        "c = Constant <value = double[2,3] {1, 2, 3, 4, 5, 6}> ()\n y = Mul (x, c)",
        "N,3",
        (2, 3),
        (1, 3),
    ),
}


@pytest.mark.parametrize(("nodes", "x", "right", "wrong"), ASSUMED.values(), ids=ASSUMED.keys())
def test_assumed_sizes_are_checked_at_run_time(
    nodes: str, x: str, right: tuple[int, ...], wrong: tuple[int, ...]
) -> None:
    model = model_of(nodes, f"double[{x}] x", "double[] y")
    assert_right(model, right)
    image = np.ones(wrong)
    (y,) = evaluator(model).run(None, {"x": image})
    with pytest.raises(ValueError, match="reshape"):
        evaluator(input_gradient(model)).run(None, {"x": image, "seed": y})


def test_capital_indices_of_einsum_become_small() -> None:
    nodes = """y = Einsum <equation = "Bij,Bkj->Bik"> (x, x)"""
    model = model_of(nodes, "double[N,2,3] x", "double[N,2,2] y")
    assert_right(model, (2, 2, 3))
    equations = [
        attribute.s
        for node in input_gradient(model).graph.node
        for attribute in node.attribute
        if node.op_type == "Einsum" and attribute.name == "equation"
    ]
    assert b"abc,adc->abd" in equations
    assert all(equation == equation.lower() for equation in equations)


def test_types_may_change_on_the_way() -> None:
    case = Case(
        "",
        "float64 outside, float32 inside",
        ("N", 2, 4, 4),
        """
        a = Cast <to = 1> (x)
        c = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (a, w)
        r = Relu (c)
        p = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (r)
        m = ReduceMean <keepdims = 0> (p, axes)
        y = Cast <to = 11> (m)
        """,
        {"w": away_from_zero(random_for("w"), (3, 2, 3, 3)).astype(np.float32), "axes": [2, 3]},
    )
    extended = input_gradient(build(case))
    onnx.checker.check_model(extended, full_check=True)
    types = {described(value)[1] for value in (*extended.graph.input, *extended.graph.output)}
    assert types == {TensorProto.DOUBLE}


@pytest.mark.parametrize("opset", [13, 15, 17, 18, 19, 21, 22, 23])
def test_opsets(opset: int) -> None:
    """Until opset 17 the axes of ReduceMean are an attribute."""
    mean = "ReduceMean <axes = [-1], keepdims = 0> (p)" if opset < 18 else "ReduceMean (p, last)"
    nodes = f"""
        w = Constant <value = double[1,1,2,2] {{1, -2, 3, 4}}> ()
        one = Constant <value_ints = [1]> ()
        last = Constant <value_ints = [-1]> ()
        c = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (x, w)
        d = Conv (c, w)
        p = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (d)
        m = {mean}
        u = Unsqueeze (m, one)
        s = Squeeze (u, one)
        r = ReduceSum <keepdims = 0> (s, last)
        y = Concat <axis = 1> (r, r)
    """
    model = model_of(nodes, "double[N,1,9,8] x", "double[] y", opset)
    assert_right(onnx.shape_inference.infer_shapes(model), (2, 1, 9, 8))


@pytest.mark.parametrize("opset", [7, 9, 11, 12])
def test_older_opsets_are_refused(opset: int) -> None:
    nodes = "a = Unsqueeze <axes = [1]> (x)\n b = Relu (a)\n y = Squeeze <axes = [1]> (b)"
    with pytest.raises(OdinError, match=rf"opset {opset}\b.*convert"):
        input_gradient(model_of(nodes, opset=opset, ir=7))


def test_initializers_may_also_be_inputs() -> None:
    """As exporters wrote them for IR version 3: each initializer also stood among the inputs."""
    model = model_of(
        "a = MatMul (x, w)\n y = Add (a, b)",
        "double[N,3] x, double[3,3] w, double[3] b",
        opset=13,
        ir=3,
    )
    rng = random_for("old")
    for name, shape in (("w", (3, 3)), ("b", (3,))):
        model.graph.initializer.append(numpy_helper.from_array(away_from_zero(rng, shape), name))
    assert_right(model, (2, 3))


# --- what is refused ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Refused:
    """A model that cannot be differentiated because of the node that it calls `culprit`.

    Attributes:
        what: is wrong with it.
        op: that the message names.
        remedy: that the message tells.
        nodes: of the model; they may use the constants of `PRELUDE`.
        x: the declaration of the input.
        y: the declaration of the output.
    """

    what: str
    op: str
    remedy: str
    nodes: str
    x: str = "double[N,3] x"
    y: str = "double[] y"

    def __str__(self) -> str:
        return self.what


PRELUDE = """
    k = Constant <value = double[1,1,2,2] {1, -2, 3, 4}> ()
    ones = Constant <value = double[3] {1, 1, 1}> ()
    one = Constant <value = double[1] {1}> ()
    half = Constant <value = double {0.5}> ()
    yes = Constant <value = bool {1}> ()
    two = Constant <value_int = 2> ()
    channels = Constant <value_ints = [0, 2, 3]> ()
    axis = Constant <value_ints = [1]> ()
    last = Constant <value_ints = [-1]> ()
    far = Constant <value_ints = [0, 3, 0, 0]> ()
"""
IN_RULES = "has no gradient rule for its op"
EVALUATION = "export the network in evaluation mode"
IMAGE = "double[N,1,6,6] x"
BRANCHES = (
    "then_branch = a () => (double[N,3] u) {{ u = {0} (x) }}, "
    "else_branch = b () => (double[N,3] v) {{ v = {0} (x) }}"
)

REFUSED = [
    Refused("no rule", "Mod", IN_RULES, "[culprit] y = Mod <fmod = 1> (x, ones)"),
    Refused(
        "no rule, in the middle",
        "Mod",
        IN_RULES,
        "[culprit] a = Mod <fmod = 1> (x, ones)\n y = Neg (a)",
    ),
    Refused(
        "no rule, beside a good path",
        "Mod",
        IN_RULES,
        "[culprit] a = Mod <fmod = 1> (x, ones)\n y = Add (a, x)",
    ),
    Refused("foreign domain", "mine::Op", IN_RULES, "[culprit] y = mine.Op (x)", y="double[N,3] y"),
    Refused(
        "foreign domain, known name",
        "mine::Relu",
        IN_RULES,
        "[culprit] y = mine.Relu (x)",
        y="double[N,3] y",
    ),
    Refused(
        "foreign domain, beside a good path",
        "mine::Op",
        IN_RULES,
        "[culprit] a = mine.Op (x)\n y = Mul (a, x)",
        y="double[N,3] y",
    ),
    Refused(
        "foreign domain, name of an op without gradient",
        "mine::Shape",
        IN_RULES,
        "[culprit] a = mine.Shape (x)\n y = Mul (a, x)",
        y="double[N,3] y",
    ),
    Refused(
        "If whose branches use x",
        "If",
        IN_RULES,
        f"m = ReduceSum <keepdims = 0> (x)\n c = Greater (m, half)\n"
        f"[culprit] y = If (c) <{BRANCHES.format('Neg')}>",
    ),
    Refused(
        "If whose branches use x, beside a good path",
        "If",
        IN_RULES,
        f"m = ReduceSum <keepdims = 0> (x)\n c = Greater (m, half)\n"
        f"[culprit] a = If (c) <{BRANCHES.format('Identity')}>\n y = Add (a, x)",
    ),
    Refused(
        "a long Loop over x",
        "Loop",
        IN_RULES,
        """
        many = Constant <value_int = 1000> ()
        [culprit] a = Loop (many, yes, x) <
            body = b (int64 i, bool c, double[N,3] s) => (bool d, double[N,3] t) {
                d = Identity (c)
                t = Mul (s, x)
            }>
        y = Add (a, x)
        """,
        y="double[N,3] y",
    ),
    Refused(
        "weight depends on x",
        "Conv",
        "make the weight a constant",
        "[culprit] y = Conv (x, x)",
        "double[3,3,2,2] x",
    ),
    Refused(
        "bias depends on x",
        "Conv",
        "constant",
        "[culprit] y = Conv (k, k, x)",
        "double[1] x",
    ),
    Refused(
        "weight of a transposed convolution depends on x",
        "ConvTranspose",
        "make the weight a constant",
        "[culprit] y = ConvTranspose (x, x)",
        "double[3,3,2,2] x",
    ),
    Refused(
        "output_shape of an image of any size",
        "ConvTranspose",
        "use pads and output_padding",
        "[culprit] y = ConvTranspose <strides = [2, 2], output_shape = [6, 6]> (x, k)",
        "double[N,1,H,W] x",
    ),
    Refused(
        "output_shape that no window reaches",
        "ConvTranspose",
        "use pads and output_padding",
        "[culprit] y = ConvTranspose <output_shape = [9, 9]> (x, k)",
        IMAGE,
    ),
    Refused(
        "auto_pad and output_padding",
        "ConvTranspose",
        "without auto_pad",
        '[culprit] y = ConvTranspose <strides = [2, 2], auto_pad = "SAME_UPPER", '
        "output_padding = [1, 0]> (x, k)",
        IMAGE,
    ),
    Refused(
        "a window that starts in the padding",
        "MaxPool",
        "convert the model to opset 22",
        "[culprit] y = MaxPool <kernel_shape = [2, 2], strides = [3, 3], pads = [1, 1, 1, 1], "
        "ceil_mode = 1> (x)",
        "double[N,1,5,5] x",
    ),
    Refused(
        "any number of channels",
        "MaxPool",
        "export with fixed channels",
        "[culprit] y = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x)",
        "double[N,C,6,6] x",
    ),
    Refused(
        "any number of channels in blocks",
        "DepthToSpace",
        "export with fixed channels",
        '[culprit] y = DepthToSpace <blocksize = 2, mode = "CRD"> (x)',
        "double[N,C,6,6] x",
    ),
    Refused(
        "linear upsampling to any size",
        "Resize",
        "export the network for images of a fixed size",
        "by = Constant <value = float[4] {1, 1, 2, 2}> ()\n"
        '[culprit] y = Resize <mode = "linear"> (x, , by)',
        "double[N,1,H,W] x",
    ),
    Refused(
        "corners aligned between cells",
        "Resize",
        "give sizes in place of scales",
        "by = Constant <value = float[4] {1, 1, 1.4, 1}> ()\n"
        '[culprit] y = Resize <mode = "linear", '
        'coordinate_transformation_mode = "align_corners"> (x, , by)',
        IMAGE,
    ),
    Refused(
        "upsampling of a region of interest",
        "Resize",
        "crop with Slice",
        "by = Constant <value = float[4] {1, 1, 2, 2}> ()\n"
        "region = Constant <value = float[8] {0, 0, 0, 0, 1, 1, 1, 1}> ()\n"
        '[culprit] y = Resize <coordinate_transformation_mode = "tf_crop_and_resize"> '
        "(x, region, by)",
        IMAGE,
    ),
    Refused(
        "normalization in training mode",
        "BatchNormalization",
        EVALUATION,
        "[culprit] y, m, v = BatchNormalization <training_mode = 1> (x, one, one, one, one)",
        IMAGE,
    ),
    Refused(
        "dropout in training mode",
        "Dropout",
        EVALUATION,
        "[culprit] y = Dropout (x, half, yes)",
    ),
    Refused(
        "a diagonal",
        "Einsum",
        "instead of taking the diagonal",
        '[culprit] y = Einsum <equation = "ii->i"> (x)',
        "double[3,3] x",
    ),
    Refused(
        "no cells to normalize over",
        "InstanceNormalization",
        "three axes or more",
        "[culprit] y = InstanceNormalization (x, ones, ones)",
    ),
    Refused(
        "steps known at run time only",
        "Slice",
        "make that input a constant",
        "m = ReduceSum <keepdims = 0> (x)\n i = Cast <to = 7> (m)\n s = Reshape (i, axis)\n"
        "[culprit] y = Slice (x, axis, axis, axis, s)",
    ),
    Refused(
        "pads reflected, by what is known at run time only",
        "Pad",
        "use constant pads",
        's = Shape (x)\n p = Concat <axis = 0> (s, s)\n[culprit] y = Pad <mode = "reflect"> (x, p)',
    ),
    Refused(
        "pads reflected twice",
        "Pad",
        "pad by less",
        '[culprit] y = Pad <mode = "reflect"> (x, far)',
    ),
    Refused(
        "pads with what depends on x",
        "Pad",
        "make that input a constant",
        "m = ReduceSum <keepdims = 0> (x)\n [culprit] y = Pad (x, far, m)",
    ),
    Refused(
        "scatters with a product",
        "ScatterElements",
        "use 'none' or 'add'",
        "i = ArgMax <axis = 1> (x)\n u = ReduceSum (x, axis)\n"
        '[culprit] y = ScatterElements <axis = 1, reduction = "mul"> (x, i, u)',
    ),
    Refused(
        "scatters slices with a maximum",
        "ScatterND",
        "use 'none' or 'add'",
        "i = ArgMax <axis = 1> (x)\n u = Gather (x, axis)\n"
        '[culprit] y = ScatterND <reduction = "max"> (x, i, x)',
    ),
    Refused(
        "a condition known at run time only",
        "Compress",
        "make it a constant",
        "c = Greater (x, half)\n f = Reshape (c, last)\n [culprit] y = Compress (x, f)",
        y="double[M] y",
    ),
    Refused(
        "axes known at run time only",
        "ReduceSum",
        "make them constants",
        "s = Shape (x)\n t = Sub (s, s)\n u = ReduceMax (t)\n [culprit] y = ReduceSum (x, u)",
        y="double[A,B] y",
    ),
]
REFUSED += [
    Refused(
        f"the {name} of a normalization depends on x",
        "BatchNormalization",
        EVALUATION,
        f"r = ReduceMean <keepdims = 0> (x, channels)\n"
        f"[culprit] y = BatchNormalization (x, {', '.join(inputs)})",
        IMAGE,
    )
    for name, inputs in {
        "scale": ("r", "one", "one", "one"),
        "bias": ("one", "r", "one", "one"),
        "mean": ("one", "one", "r", "one"),
        "variance": ("one", "one", "one", "r"),
    }.items()
]


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_refused(case: Refused) -> None:
    model = onnx.shape_inference.infer_shapes(model_of(PRELUDE + case.nodes, case.x, case.y))
    with pytest.raises(OdinError) as error:
        input_gradient(model)
    message = str(error.value)
    assert "'culprit'" in message
    assert case.op in message.replace("'culprit'", "")
    assert case.remedy in message


def test_refusals_are_not_for_lack_of_a_rule() -> None:
    assert all(case.op in RULES for case in REFUSED if case.remedy != IN_RULES)
    assert not any(case.op in RULES for case in REFUSED if case.remedy == IN_RULES)


# What x goes through -> nodes, y.
UNDIFFERENTIABLE = {
    "constant": ("a = Relu (x)\n y = Constant <value = double[1] {1}> ()", "double[1] y"),
    "ArgMax": ("a = ArgMax <axis = 1> (x)\n y = Cast <to = 11> (a)", "double[N,1] y"),
    "Shape": ("a = Shape (x)\n y = Cast <to = 11> (a)", "double[2] y"),
    "Greater": ("a = Greater (x, x)\n y = Cast <to = 11> (a)", "double[N,3] y"),
    "Sign": ("a = Sign (x)\n y = Relu (a)", "double[N,3] y"),
    "integers": ("a = Cast <to = 7> (x)\n y = Cast <to = 11> (a)", "double[N,3] y"),
}


@pytest.mark.parametrize(("nodes", "y"), UNDIFFERENTIABLE.values(), ids=UNDIFFERENTIABLE.keys())
def test_output_that_does_not_depend_on_the_input(nodes: str, y: str) -> None:
    with pytest.raises(OdinError, match=r"'y' does not depend on input 'x'.*choose another"):
        input_gradient(model_of(nodes, y=y))


# Nodes, x, y, what the message says.
SIGNATURES = [
    ("y = Add (x, z)", "double[N,3] x, double[N,3] z", "double[N,3] y", r"2 inputs.*x, z, y.*one"),
    ("y = Relu (x)\n z = Neg (x)", "double[N,3] x", "double[N,3] y, double[N,3] z", "2 outputs"),
    ("y = Constant <value = double[1] {1}> ()", "", "double[1] y", "0 inputs"),
    ("y = Cast <to = 11> (x)", "int64[N,3] x", "double[N,3] y", "'x' is not of a floating-point"),
    ("y = Cast <to = 11> (x)", "bool[N,3] x", "double[N,3] y", "'x' is not of a floating-point"),
    ("y = Cast <to = 7> (x)", "double[N,3] x", "int64[N,3] y", "'y' is not of a floating-point"),
    ("y = Relu (x)", "double[] x", "double[] y", "x|shape"),
    ("y = Neg (seed)", "double[N,3] seed", "double[N,3] y", "'seed'; rename"),
    ("seed = Neg (x)", "double[N,3] x", "double[N,3] seed", "'seed'; rename"),
    (
        "y = Neg (input_gradient)",
        "double[N,3] input_gradient",
        "double[N,3] y",
        "gradient'; rename",
    ),
    (
        "input_gradient = Neg (x)",
        "double[N,3] x",
        "double[N,3] input_gradient",
        "gradient'; rename",
    ),
]


@pytest.mark.parametrize(("nodes", "x", "y", "says"), SIGNATURES)
def test_inputs_and_outputs_that_do_not_fit(nodes: str, x: str, y: str, says: str) -> None:
    with pytest.raises(OdinError, match=says):
        input_gradient(model_of(nodes, x, y))


BROKEN = {
    "nothing at all": onnx.ModelProto(),
    "an empty graph": helper.make_model(helper.make_graph([], "network", [], [])),
    "an undefined value": model_of("y = Relu (z)"),
    "out of order": model_of("b = Relu (a)\n a = Neg (x)\n y = Neg (b)"),
    "an op that does not exist": model_of("y = Foo (x)"),
    "too many inputs": model_of("y = Relu (x, x)"),
    "too few inputs": model_of("y = Conv (x)"),
    "another rank than declared": model_of("y = Relu (x)", y="double[N,3,4] y"),
    "input without type": model_of("y = Relu (x)"),
    "no opset": model_of("y = Relu (x)"),
    "a truncated constant": model_of("y = Mul (x, w)"),
    "a truncated statistic": model_of("y = BatchNormalization (x, w, w, w, w)"),
    "a type that does not exist": model_of("y = Mul (x, w)"),
}
BROKEN["input without type"].graph.input[0].ClearField("type")
del BROKEN["no opset"].opset_import[:]
for what in ("a truncated constant", "a truncated statistic"):
    BROKEN[what].graph.initializer.add(name="w", data_type=11, dims=[3], raw_data=b"abc")
BROKEN["a type that does not exist"].graph.initializer.add(name="w", data_type=99, dims=[3])


@pytest.mark.parametrize("model", BROKEN.values(), ids=BROKEN.keys())
def test_broken_models(model: onnx.ModelProto) -> None:
    with pytest.raises(OdinError):
        input_gradient(model)


# --- convolutions and pools of any geometry -----------------------------------------------------


@dataclass(frozen=True)
class Axis:
    """The geometry along one axis."""

    kernel: int
    stride: int
    dilation: int
    before: int
    after: int
    extra: int
    size: int


@st.composite
def geometries(draw: st.DrawFn, op: str) -> Case:
    """One convolution or pool, of fixed or dynamic sizes."""
    rank = draw(st.sampled_from([1, 2, 2, 3]))
    same = ["SAME_UPPER", "SAME_LOWER"]
    auto_pad = draw(st.sampled_from(["NOTSET", "NOTSET", "VALID", *same]))
    axes = [draw(one_axis(op, auto_pad, 8 if rank < 3 else 4)) for _ in range(rank)]
    kernel, strides, dilations, before, after, extra, sizes = (
        [getattr(axis, each.name) for axis in axes] for each in fields(Axis)
    )
    if op == "AveragePool" and draw(st.booleans()):  # windows that tile the image
        strides, before, after, dilations = kernel, [0] * rank, [0] * rank, [1] * rank
        sizes = [max(size, k) for size, k in zip(sizes, kernel, strict=True)]
    group, inputs, outputs = (draw(st.integers(1, 3)) for _ in range(3))
    names = [draw(st.sampled_from([size, f"D{axis}"])) for axis, size in enumerate(sizes)]
    at = {"N": draw(st.integers(1, 2))}
    at |= {f"D{axis}": size for axis, size in enumerate(sizes)}
    pads = f"pads = {before + after}" if auto_pad == "NOTSET" else f'auto_pad = "{auto_pad}"'
    attributes = f"strides = {strides}, dilations = {dilations}, {pads}"
    shape = ("N", group * inputs, *names)
    if op.endswith("Pool"):
        attributes += f", kernel_shape = {kernel}"
        if auto_pad == "NOTSET":
            attributes += f", ceil_mode = {draw(st.integers(0, 1))}"
        if op == "AveragePool":
            attributes += f", count_include_pad = {draw(st.integers(0, 1))}"
        return Case(op, "", shape, f"y = {op} <{attributes}> (x)", at=(at,), opset=22)
    if op == "ConvTranspose":
        attributes += f", output_padding = {extra}"
        constants = {"w": (group * inputs, outputs, *kernel), "b": (group * outputs,)}
    else:
        constants = {"w": (group * outputs, inputs, *kernel), "b": (group * outputs,)}
    text = f"y = {op} <group = {group}, {attributes}> (x, w, b)"
    return Case(op, "", shape, text, constants, (at,))


@st.composite
def one_axis(draw: st.DrawFn, op: str, auto_pad: str, largest: int) -> Axis:
    """Kernel, stride, dilation and pads, and a size with room for one window (or one output)."""
    kernel, stride, dilation = (draw(st.integers(1, most)) for most in (4, 4, 3))
    reach = dilation * (kernel - 1)
    pads = st.integers(0, kernel - 1 if op.endswith("Pool") else 5)
    before, after = (draw(pads), draw(pads)) if auto_pad == "NOTSET" else (0, 0)
    extra = 0 if auto_pad.startswith("SAME") else draw(st.integers(0, stride - 1))
    if op == "ConvTranspose":
        if auto_pad.startswith("SAME"):  # no larger than what the windows reach
            stride = min(stride, reach + 1)
        least = 1 + max(0, -(-(before + after - reach - extra) // stride))
    else:
        least = 1 if auto_pad.startswith("SAME") else max(1, reach + 1 - before - after)
    size = draw(st.integers(least, max(least, largest)))
    return Axis(kernel, stride, dilation, before, after, extra, size)


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose", "AveragePool", "MaxPool"])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_gradient_of_a_convolution_or_pool_is_exact(op: str, data: st.DataObject) -> None:
    """y is affine in x, so <seed, y(x + v) - y(x)> = <input_gradient, v>, whatever v.

    A maximum is affine only between the places where another cell becomes the largest.
    """
    case = data.draw(geometries(op))
    model = build(case)
    extended = input_gradient(model)
    onnx.checker.check_model(extended, full_check=True)
    rng = random_for(case.text)
    shape = tuple(size if isinstance(size, int) else case.at[0][size] for size in case.shape)
    x, v = away_from_zero(rng, shape), away_from_zero(rng, shape)
    if op == "MaxPool":
        v *= 1e-7
    before, after = (evaluator(model).run(["y"], {"x": at})[0] for at in (x, x + v))
    assume(np.isfinite(before).all())  # no window holds nothing but padding
    seed = rng.standard_normal(before.shape)
    (found,) = evaluator(extended).run(["input_gradient"], {"x": x, "seed": seed})
    assert found.shape == x.shape
    change = seed * (after - before)
    scale = 1e-6 if op == "MaxPool" else 1e-9
    least = 1e-3 * np.abs(v).max()
    assert abs(change.sum() - np.sum(found * v)) <= scale * max(np.abs(change).sum(), least)


def test_one_graph_serves_every_size() -> None:
    """Sizes that leave each remainder, through the same graph."""
    case = Case(
        "Conv",
        "every size",
        ("N", 1, "H", "W"),
        "a = Conv <strides = [3, 2], pads = [1, 0, 0, 2]> (x, w)\n"
        "y = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (a)",
        {"w": (2, 1, 3, 2)},
    )
    model = build(case)
    backward, forward = evaluator(input_gradient(model)), evaluator(model)
    rng = random_for(case.what)
    for height in range(6, 12):
        for width in range(4, 9):
            x, v = (away_from_zero(rng, (2, 1, height, width)) for _ in range(2))
            before, after = (forward.run(["y"], {"x": at})[0] for at in (x, x + v))
            seed = rng.standard_normal(before.shape)
            (found,) = backward.run(["input_gradient"], {"x": x, "seed": seed})
            assert found.shape == x.shape
            assert np.sum(found * v) == pytest.approx(np.sum(seed * (after - before)), rel=1e-9)
