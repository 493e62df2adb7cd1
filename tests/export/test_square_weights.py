"""Square weights, used one way forward and the other way back, in every CPU engine.

OpenVINO's weight cache has mixed the two up; the ONNX reference evaluator cannot show that.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from odin_engines.openvino_engine import the_core
from odin_export.backward import input_gradient

WIDTH = 16
SHAPES = {"Conv": ["N", WIDTH, 8, 8], "Gemm": ["N", WIDTH], "MatMul": ["N", WIDTH]}
OUTPUTS = {"Conv": ["N", WIDTH, 4, 4], "Gemm": ["N", WIDTH], "MatMul": ["N", WIDTH]}
CASES = [
    ("Conv", (WIDTH, WIDTH, 1, 1), {"strides": [2, 2]}),
    ("Conv", (WIDTH, WIDTH, 3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ("Gemm", (WIDTH, WIDTH), {}),
    ("Gemm", (WIDTH, WIDTH), {"transB": 1}),
    ("MatMul", (WIDTH, WIDTH), {}),
]


def model(op: str, weight_shape: tuple[int, ...], attributes: dict) -> onnx.ModelProto:
    weight = np.random.default_rng(3).standard_normal(weight_shape).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node(op, ["x", "w"], ["y"], **attributes)],
        "square",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPES[op])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, OUTPUTS[op])],
        [numpy_helper.from_array(weight, "w")],
    )
    opset = [helper.make_opsetid("", 20)]
    return helper.make_model(graph, opset_imports=opset, ir_version=10)


@pytest.mark.parametrize(("op", "weight_shape", "attributes"), CASES)
def test_openvino_agrees_with_onnxruntime(op, weight_shape, attributes):
    extended = input_gradient(model(op, weight_shape, attributes)).SerializeToString()
    generator = np.random.default_rng(5)
    feeds = {
        "x": generator.standard_normal((3, *SHAPES[op][1:])).astype(np.float32),
        "seed": generator.standard_normal((3, *OUTPUTS[op][1:])).astype(np.float32),
    }
    session = onnxruntime.InferenceSession(extended, providers=["CPUExecutionProvider"])
    (expected,) = session.run(["input_gradient"], feeds)
    core = the_core()
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    found = core.compile_model(core.read_model(extended), "CPU", settings)(feeds)
    np.testing.assert_allclose(found["input_gradient"], expected, atol=1e-3)
