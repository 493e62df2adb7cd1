"""Every rule's gradient is accepted and built by TensorRT for RTX, on the CPU."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from export import rtx
from export.rule_cases import CASES, COMPOSITES, Case, build
from export.rule_cases.case import Sizes
from odin_export.backward import input_gradient
from odin_export.evaluate import evaluator
from odin_export.precision import in_precision

# Ops whose gradient is made of other ops in another type, and those that have no bfloat16 at all.
WINDOWS = {
    *("Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool", "GlobalMaxPool"),
    *("GlobalLpPool", "Resize", "DepthToSpace", "SpaceToDepth"),
}
NOT_IN_BFLOAT16 = {"ConvTranspose", "LpPool", "GlobalLpPool"}
HALVES = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}


@pytest.mark.parametrize("case", [*CASES, *COMPOSITES], ids=str)
def test_builds(case: Case) -> None:
    _assert_builds(case, build(case), ir.DataType.FLOAT)


@pytest.mark.parametrize("case", [case for case in CASES if case.op in WINDOWS], ids=str)
@pytest.mark.parametrize("dtype", HALVES)
def test_windows_build_in_half_precision(case: Case, dtype: str) -> None:
    if dtype == "bfloat16" and case.op in NOT_IN_BFLOAT16:
        pytest.skip(f"it has no {case.op} in bfloat16")
    model = build(case, opset=max(case.opset, 22))  # the first where these take bfloat16
    _assert_builds(case, model, HALVES[dtype])


def _assert_builds(case: Case, model: onnx.ModelProto, dtype: ir.DataType) -> None:
    rtx.builder()
    if case.rtx:
        pytest.skip(case.rtx)
    pairs = [_shapes(case, model, sizes) for sizes in case.at]
    smallest, largest = pairs[0], pairs[-1]
    if any(
        a > b for pair in zip(smallest, largest, strict=True) for a, b in zip(*pair, strict=True)
    ):
        smallest = largest  # smaller in one axis and larger in another: one size must do
    extended = input_gradient(in_precision(model, dtype))
    limits = [(small, large, large) for small, large in zip(smallest, largest, strict=True)]
    rtx.build(extended, dict(zip(("x", "seed"), limits, strict=True)))


def _shapes(case: Case, model: onnx.ModelProto, sizes: Sizes) -> tuple[rtx.Shape, rtx.Shape]:
    """The shapes of x and y at these sizes."""
    x = np.ones([size if isinstance(size, int) else sizes[size] for size in case.shape])
    (y,) = evaluator(model).run(["y"], {"x": x})
    return x.shape, y.shape
