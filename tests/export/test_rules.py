"""Every gradient rule against central differences in float64, on ONNX's reference evaluator."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from export.rule_cases import (
    CASES,
    COMPOSITES,
    Case,
    build,
    central_differences,
    image_off_kinks,
    random_for,
)
from odin_export.backward import input_gradient
from odin_export.evaluate import evaluator
from odin_export.rules import BROADCASTING, NO_GRADIENT, RULES


@pytest.mark.parametrize("case", [*CASES, *COMPOSITES], ids=str)
def test_gradient_is_that_of_central_differences(case: Case) -> None:
    model = build(case)
    extended = input_gradient(model)
    onnx.checker.check_model(extended, full_check=True)
    forward, backward = evaluator(model), evaluator(extended)
    rng = random_for(f"images of {case}")
    for sizes in case.at:
        shape = tuple(size if isinstance(size, int) else sizes[size] for size in case.shape)
        x = image_off_kinks(case, model, rng, shape)
        (y,) = forward.run(["y"], {"x": x})
        seed = rng.standard_normal(y.shape).astype(y.dtype)
        again, found = backward.run(["y", "input_gradient"], {"x": x, "seed": seed})
        np.testing.assert_array_equal(again, y)
        expected = central_differences(model, x, seed, case.step)
        assert found.shape == x.shape
        assert found.dtype == x.dtype
        largest = np.abs(expected).max()
        np.testing.assert_allclose(found, expected, rtol=0, atol=case.tolerance * max(largest, 0.1))


@pytest.mark.parametrize(
    "case", [case for case in (*CASES, *COMPOSITES) if case.empty and "N" in case.shape], ids=str
)
def test_empty_batch(case: Case) -> None:
    model = build(case)
    sizes = {**case.at[0], "N": 0}
    x = np.zeros([size if isinstance(size, int) else sizes[size] for size in case.shape])
    (y,) = evaluator(model).run(["y"], {"x": x})
    (found,) = evaluator(input_gradient(model)).run(["input_gradient"], {"x": x, "seed": y * 0})
    assert found.shape == x.shape


@pytest.mark.parametrize("text", ["y = Relu (x)", "a = Neg (x)\n b = Neg (a)\n y = Relu (b)"])
def test_relu_has_no_gradient_at_zero(text: str) -> None:
    extended = input_gradient(build(Case("Relu", "at its kink", ("N", 3), text)))
    x = np.array([[0.0, -0.0, 1.0], [-1.0, 0.0, 5e-324]])
    (found,) = evaluator(extended).run(["input_gradient"], {"x": x, "seed": np.full_like(x, 7.0)})
    np.testing.assert_array_equal(found, [[0, 0, 7], [0, 0, 7]])


def test_every_rule_has_a_case_and_every_case_a_rule() -> None:
    assert {case.op for case in CASES} == set(RULES)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case_contains_its_op(case: Case) -> None:
    assert case.op in {node.op_type for node in build(case).graph.node}


def test_cases_are_distinct() -> None:
    names = [str(case) for case in (*CASES, *COMPOSITES)]
    assert len(names) == len(set(names))


def test_no_op_both_has_a_rule_and_carries_no_gradient() -> None:
    assert not NO_GRADIENT & set(RULES)
    assert set(BROADCASTING) <= set(RULES)
