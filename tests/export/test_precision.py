"""Models of other floating types, and graphs converted to another type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from export.user_models import (
    BODY,
    FEATURES,
    OfText,
    assert_is_odin,
    exported,
    odin_export,
    run_onnx,
    save,
    text_model,
)
from odin_export.evaluate import evaluator
from odin_export.precision import FLOATS, in_precision

HALF, DOUBLE, BRAIN = TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16
TYPES = pytest.mark.parametrize("dtype", [HALF, DOUBLE], ids=["float16", "float64"])


def of_type(model: onnx.ModelProto, dtype: int, outside: bool = False) -> onnx.ModelProto:
    """The model with weights and values of a type; `outside`: with float32 input and output."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    graph = changed.graph
    for each in graph.initializer:
        if each.data_type == TensorProto.FLOAT:
            array = numpy_helper.to_array(each).astype(helper.tensor_dtype_to_np_dtype(dtype))
            each.CopyFrom(numpy_helper.from_array(array, each.name))
    if outside:
        graph.node.insert(0, helper.make_node("Cast", ["outer"], ["x"], to=dtype))
        graph.node.append(helper.make_node("Cast", ["y"], ["result"], to=TensorProto.FLOAT))
        graph.input[0].name, graph.output[0].name = "outer", "result"
    else:
        for value in (*graph.input, *graph.output):
            value.type.tensor_type.elem_type = dtype
    return changed


@TYPES
@pytest.mark.parametrize("outside", [False, True], ids=["whole", "inside"])
def test_a_model_of_another_type(tmp_path: Path, dtype: int, outside: bool) -> None:
    """The weights are those of the file; the bundle computes in float32."""
    model = of_type(text_model(f"{FEATURES} y = Mul (f, two)", two=np.float32(2)), dtype, outside)
    bundle, _ = exported(tmp_path, model, "--verify", 1)
    assert_is_odin(bundle, OfText(model, factor=2))
    for name in ("odin.onnx", "gradient.onnx", "forward.onnx"):
        graph = ir.load(bundle / name).graph
        values = [*graph.inputs, *graph.initializers.values()]
        values += [value for node in graph for value in node.outputs]
        assert {value.dtype for value in values} & FLOATS == {ir.DataType.FLOAT}, name


def test_bfloat16(tmp_path: Path) -> None:
    model = of_type(text_model(opset=22, ir_version=10), BRAIN)
    bundle, _ = exported(tmp_path, model, "--verify", 1)
    assert_is_odin(bundle, OfText(model))


class Pictures(OfText):
    """`CONSTANTS` in PyTorch."""

    def forward(self, x: Tensor) -> Tensor:
        large = F.interpolate(x, scale_factor=2, mode="nearest") + 0.5
        return F.relu(F.conv2d(large, self.w, self.b)).mean(dim=(2, 3)) * 3


# Floating types in initializers, attributes, casts and Resize's scales, which stay float32.
CONSTANTS = """
    large = Resize <mode = "nearest", coordinate_transformation_mode = "asymmetric",
                    nearest_mode = "floor"> (x, , scales)
    one = Constant <value_ints = [1]> ()
    half = ConstantOfShape <value = float[1] {0.5}> (one)
    moved = Add (large, half)
    c = Conv (moved, w, b)  r = Relu (c)  p = GlobalAveragePool (r)  f = Flatten (p)
    i = Constant <value = int64[1] {3}> ()  three = Cast <to = 1> (i)
    y = Mul (f, three)
"""


def constants_model() -> onnx.ModelProto:
    return text_model(CONSTANTS, scales=np.array([1, 1, 2, 2], np.float32))


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(ir.DataType.DOUBLE, 1e-12), (ir.DataType.FLOAT, 1e-5)]
)
def test_a_graph_computes_the_same_in_another_type(dtype: ir.DataType, tolerance: float) -> None:
    model = constants_model()
    images = np.random.default_rng(0).standard_normal((2, 3, 8, 8))
    expected = Pictures(model)(torch.from_numpy(images)).detach().numpy()
    converted = in_precision(model, dtype)
    feeds = {"x": images.astype(dtype.numpy())}
    (result,) = evaluator(converted).run(None, feeds)
    assert result.dtype == dtype.numpy()
    np.testing.assert_allclose(result, expected, rtol=tolerance)
    onnx.checker.check_model(converted, full_check=True)


def test_there_and_back() -> None:
    model = constants_model()
    back = in_precision(in_precision(model, ir.DataType.DOUBLE), ir.DataType.FLOAT)
    images = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    (expected,), (result,) = (run_onnx(each, {"x": images}) for each in (model, back))
    np.testing.assert_array_equal(result, expected)


def test_the_model_is_not_changed() -> None:
    model = constants_model()
    before = model.SerializeToString()
    in_precision(model, ir.DataType.DOUBLE)
    assert model.SerializeToString() == before


def test_constants_in_a_branch_are_converted() -> None:
    nodes = f"""
        {FEATURES}
        s = Shape <start = 2, end = 3> (x)  many = Greater (s, eight)  k = Squeeze (many)
        g = If (k) <then_branch = a () => (float[1] q) {{ q = Constant <value_floats = [2.0]> () }},
                    else_branch = b () => (float[1] o) {{ o = Constant <value_floats = [3.0]> () }}>
        y = Mul (f, g)
    """
    model = text_model(nodes, "float[N,3,H,W] x", eight=np.array([8]))
    converted = in_precision(model, ir.DataType.DOUBLE)
    onnx.checker.check_model(converted, full_check=True)
    for size, factor in ((8, 3), (9, 2)):
        images = np.random.default_rng(0).standard_normal((2, 3, size, size))
        (result,) = evaluator(converted).run(None, {"x": images})
        expected = OfText(model, factor)(torch.from_numpy(images)).detach().numpy()
        np.testing.assert_allclose(result, expected, rtol=1e-12)


def test_float64_beyond_float32_does_not_become_infinite(tmp_path: Path) -> None:
    """Masks of attention are often the least double: exp of it is 0, and of -inf NaN at times."""
    least = np.finfo(np.float64).min
    mask = np.array([0, least, 0, 0, 0])
    nodes = f"{FEATURES} k = Mul (mask, zero) y = Add (f, k)"
    model = of_type(text_model(nodes, zero=np.float64(0), mask=mask), DOUBLE)
    bundle, _ = exported(tmp_path, model)
    assert_is_odin(bundle, OfText(model))


# Weights in int8, computed before the network runs


@pytest.mark.parametrize("opset", [13, 19, 21, 23])
@pytest.mark.parametrize("per_channel", [False, True], ids=["one scale", "per channel"])
@pytest.mark.parametrize("zero", [0, 3])
def test_weights_in_int8(tmp_path: Path, opset: int, per_channel: bool, zero: int) -> None:
    """Only the weights are quantised: the network itself has a gradient."""
    generator = np.random.default_rng(0)
    whole = generator.integers(-100, 100, (5, 3, 3, 3)).astype(np.int8)
    scale: Any = np.float32(0.01)
    point: Any = np.int8(zero)
    if per_channel:
        scale = generator.uniform(0.005, 0.02, 5).astype(np.float32)
        point = np.full(5, zero, np.int8)
    axis = " <axis = 0>" if per_channel else ""
    nodes = f"v = DequantizeLinear{axis} (whole, scale, point) {BODY.replace('w', 'v')}"
    model = text_model(nodes, opset=opset, ir_version=10, whole=whole, scale=scale, point=point)
    same = onnx.ModelProto()
    same.CopyFrom(model)
    weight = (whole - np.int32(zero)) * np.reshape(scale, (-1, 1, 1, 1)).astype(np.float64)
    same.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    bundle, _ = exported(tmp_path, model, "--verify", 1)
    assert_is_odin(bundle, OfText(same))
    file = save(tmp_path, model)
    outcome = odin_export(file, "--check")
    assert outcome.status == 0, outcome.out
