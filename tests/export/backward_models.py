"""Models from text, and the check of their gradients, for the tests of `input_gradient`."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import parser

from export.rule_cases import away_from_zero, central_differences, random_for
from odin_export.backward import input_gradient
from odin_export.evaluate import evaluator

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


def described(value: onnx.ValueInfoProto) -> tuple[str, int, list[int | str]]:
    tensor = value.type.tensor_type
    return (
        value.name,
        tensor.elem_type,
        [dim.dim_param or dim.dim_value for dim in tensor.shape.dim],
    )
