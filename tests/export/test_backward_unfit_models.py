"""Models that `input_gradient` refuses as a whole: opset, inputs and outputs, broken ones."""

from __future__ import annotations

import onnx
import pytest
from onnx import helper

from export.backward_models import model_of
from odin_engines.errors import OdinError
from odin_export.backward import input_gradient


@pytest.mark.parametrize("opset", [7, 9, 11, 12])
def test_older_opsets_are_refused(opset: int) -> None:
    nodes = "a = Unsqueeze <axes = [1]> (x)\n b = Relu (a)\n y = Squeeze <axes = [1]> (b)"
    with pytest.raises(OdinError, match=rf"opset {opset}\b.*convert"):
        input_gradient(model_of(nodes, opset=opset, ir=7))


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
