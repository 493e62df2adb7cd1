"""What `input_gradient` returns: its names, types, values and ops."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest

from export.backward_models import assert_right, described, model_of
from export.rule_cases import CASES, COMPOSITES, Case, away_from_zero, build, random_for
from odin_export.backward import input_gradient
from odin_export.evaluate import evaluator

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
