"""Loop and Scan with a known number of rounds are differentiated; others are refused by name."""

from __future__ import annotations

import numpy as np
import pytest

from export.backward_models import assert_right, model_of
from odin_engines.errors import OdinError
from odin_export.backward import input_gradient
from odin_export.evaluate import evaluator

LOOP = """
    three = Constant <value_int = 3> ()
    yes = Constant <value = bool {1}> ()
    y = Loop (three, yes, x) <
        body = round (int64 i, bool c, double[N,3] s) => (bool d, double[N,3] t) {
            d = Identity (c)
            n = Cast <to = 11> (i)
            m = Mul (s, x)
            t = Add (m, n)
        }>
"""
COLLECTING_LOOP = """
    two = Constant <value_int = 2> ()
    yes = Constant <value = bool {1}> ()
    a, z = Loop (two, yes, x) <
        body = round (int64 i, bool c, double[N,3] s) => (bool d, double[N,3] t, double[N,3] u) {
            d = Constant <value = bool {1}> ()
            t = Mul (s, s)
            u = Sin (t)
        }>
    axes = Constant <value_ints = [0]> ()
    b = ReduceSum <keepdims = 0> (z, axes)
    y = Sub (b, a)
"""
SCAN = """
    zero = Constant <value = double[3] {0, 0, 0}> ()
    t = Transpose <perm = [1, 0, 2]> (x)
    s = ReduceSum <keepdims = 0> (t, one)
    a, z = Scan (zero, s) <
        num_scan_inputs = 1, body = step (double[3] h, double[3] v) => (double[3] n, double[3] o) {
            k = Mul (h, v)
            n = Add (k, v)
            o = Tanh (n)
        }>
    y = Mul (a, z)
"""


def test_a_loop_of_known_length() -> None:
    assert_right(model_of(LOOP, y="double[N,3] y"), (2, 3))


def test_a_loop_that_collects_values() -> None:
    """Against the formula: ONNX's own evaluator joins what a Loop collects, and ought to stack."""
    x = np.random.default_rng(0).uniform(0.5, 1.5, (2, 3))
    extended = input_gradient(model_of(COLLECTING_LOOP, y="double[N,3] y"))
    y, found = evaluator(extended).run(None, {"x": x, "seed": np.ones((2, 3))})
    np.testing.assert_allclose(y, np.sin(x**2) + np.sin(x**4) - x**4, rtol=1e-12)
    expected = 2 * x * np.cos(x**2) + 4 * x**3 * (np.cos(x**4) - 1)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_scan_over_an_axis_of_known_length() -> None:
    nodes = "one = Constant <value_ints = [1]> ()" + SCAN
    assert_right(model_of(nodes, "double[N,4,3] x", "double[] y"), (2, 4, 3))


def test_a_loop_that_the_image_ends_is_refused() -> None:
    nodes = LOOP.replace("d = Identity (c)", "k = ReduceSum <keepdims = 0> (s)\n d = Less (k, k)")
    with pytest.raises(OdinError, match=r"Loop.*decided by the image"):
        input_gradient(model_of(nodes, y="double[N,3] y"))


def test_a_long_loop_is_refused() -> None:
    nodes = LOOP.replace("value_int = 3", "value_int = 1000")
    with pytest.raises(OdinError, match=r"Loop.*small number of rounds"):
        input_gradient(model_of(nodes, y="double[N,3] y"))


def test_the_values_of_a_loop() -> None:
    model = model_of(LOOP, y="double[N,3] y")
    x = np.array([[0.5, -1.0, 2.0]])
    (y,) = evaluator(input_gradient(model)).run(["y"], {"x": x, "seed": x})
    np.testing.assert_allclose(y, ((x * x + 0) * x + 1) * x + 2, rtol=1e-12)
