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


@pytest.mark.parametrize("case", [*CASES, *COMPOSITES], ids=str)
def test_builds(case: Case) -> None:
    rtx.builder()
    model = build(case)
    pairs = [_shapes(case, model, sizes) for sizes in case.at]
    smallest, largest = pairs[0], pairs[-1]
    if any(
        a > b for pair in zip(smallest, largest, strict=True) for a, b in zip(*pair, strict=True)
    ):
        smallest = largest  # smaller in one axis and larger in another: one size must do
    extended = input_gradient(in_precision(model, ir.DataType.FLOAT))
    limits = [(small, large, large) for small, large in zip(smallest, largest, strict=True)]
    rtx.build(extended, dict(zip(("x", "seed"), limits, strict=True)))


def _shapes(case: Case, model: onnx.ModelProto, sizes: Sizes) -> tuple[rtx.Shape, rtx.Shape]:
    """The shapes of x and y at these sizes."""
    x = np.ones([size if isinstance(size, int) else sizes[size] for size in case.shape])
    (y,) = evaluator(model).run(["y"], {"x": x})
    return x.shape, y.shape
