"""Rewrites of finished graphs: fewer nodes, the same results."""

from __future__ import annotations

import re

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from odin_export.rewrites import fold_scales

RESULT = "float[N,3,4,4] y"
# d -> W' d -> mask -> s: what the rules make of BatchNormalization, Relu, Conv.
CHAIN = """
    w = Transpose <perm = [1, 0, 2, 3]> (stored)
    c = Conv (d, w)
    positive = Greater (x, zero)
    mask = Cast <to = 1> (positive)
    m = Mul (c, mask)
    t = Mul (m, s)
    y = Neg (t)
"""
# The weight is that of this batch alone.
COMPUTED = CHAIN.replace("(stored)", "(v)").replace(
    " w =", " q = ReduceSum <keepdims = 0> (d)\n v = Mul (stored, q)\n w =", 1
)


def model(nodes: str, scale: tuple[int, ...] = (3, 1, 1), outputs: str = RESULT) -> onnx.ModelProto:
    text = f"""
        <ir_version: 10, opset_import: ["" : 20]>
        graph (float[N,2,4,4] d, float[N,3,4,4] x) => ({outputs}) {{ {nodes} }}"""
    made = onnx.parser.parse_model(text)
    numbers = np.random.default_rng(0)
    for name, values in (
        ("stored", numbers.standard_normal((2, 3, 1, 1))),
        ("bias", numbers.standard_normal(3)),
        ("s", numbers.standard_normal(scale)),
        ("zero", np.zeros(())),
    ):
        if re.search(rf"\b{name}\b", nodes):
            tensor = onnx.numpy_helper.from_array(values.astype(np.float32), name)
            made.graph.initializer.append(tensor)
    return onnx.shape_inference.infer_shapes(made)


def results(made: onnx.ModelProto) -> list[np.ndarray]:
    numbers = np.random.default_rng(1)
    feeds = {
        "d": numbers.standard_normal((2, 2, 4, 4)).astype(np.float32),
        "x": numbers.standard_normal((2, 3, 4, 4)).astype(np.float32),
    }
    return ReferenceEvaluator(made).run(None, feeds)


def folded(made: onnx.ModelProto) -> tuple[int, onnx.ModelProto]:
    converted = ir.from_proto(made)
    count = fold_scales(converted.graph)
    changed = ir.to_proto(converted)
    onnx.checker.check_model(changed, full_check=True)
    return count, changed


@pytest.mark.parametrize("turned", [CHAIN, CHAIN.replace("(c, mask)", "(mask, c)")])
def test_a_scale_behind_a_mask_goes_into_the_weight(turned: str) -> None:
    made = model(turned)
    count, changed = folded(made)
    assert count == 1
    users = [node for node in changed.graph.node if "s" in node.input]
    assert not users
    by_image = [node.op_type for node in changed.graph.node]
    assert by_image.count("Mul") == 2  # of the weight, and of the mask
    for found, expected in zip(results(changed), results(made), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("why", "made"),
    [
        ("the result is used elsewhere", model(CHAIN, outputs=f"{RESULT}, float[N,3,4,4] c")),
        ("the scaled result is an output", model(CHAIN, outputs=f"{RESULT}, float[N,3,4,4] t")),
        ("the masked result is", model(CHAIN, outputs=f"{RESULT}, float[N,3,4,4] m")),
        ("a bias would have to be scaled", model(CHAIN.replace("(d, w)", "(d, w, bias)"))),
        ("it is not by channel", model(CHAIN, scale=(1, 4, 4))),
        ("it is one number for all", model(CHAIN, scale=())),
        ("the weight depends on an input", model(COMPUTED)),
    ],
)
def test_what_is_left_alone(why: str, made: onnx.ModelProto) -> None:
    count, changed = folded(made)
    assert count == 0, why
    for found, expected in zip(results(changed), results(made), strict=True):
        np.testing.assert_array_equal(found, expected)
