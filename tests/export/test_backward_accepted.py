"""Unusual models that `input_gradient` takes, whatever their names, sizes, types and opset."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper, parser

from export.backward_models import PRELUDE, assert_right, described, model_of
from export.rule_cases import Case, away_from_zero, build, random_for
from odin_export.backward import input_gradient
from odin_export.evaluate import evaluator

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
