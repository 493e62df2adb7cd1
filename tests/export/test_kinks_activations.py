"""Kinks, ties, singular points and large numbers: the gradient there is that of PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from export.rule_cases import Case, build
from export.rule_cases.case import Constant
from odin_engines.errors import OdinError
from odin_export.backward import input_gradient
from odin_export.evaluate import evaluator

NAMES = {np.float64: "double", np.float32: "float", np.float16: "float16"}


def gradient(
    text: str,
    x: np.ndarray,
    constants: Mapping[str, Constant] | None = None,
    opset: int = 20,
    seed: float = 7.0,
) -> np.ndarray:
    """The gradient of `seed` times the sum of y, in the type of x."""
    case = Case("", "", x.shape, text, constants or {}, opset=opset)
    model = build(case, NAMES[x.dtype.type])
    with np.errstate(all="ignore"):
        (y,) = evaluator(model).run(["y"], {"x": x})
        feeds = {"x": x, "seed": np.full_like(y, seed)}
        (found,) = evaluator(input_gradient(model)).run(["input_gradient"], feeds)
    return found


def gradient_of_torch(
    f: Callable[[Tensor], Tensor], x: np.ndarray, seed: float = 7.0
) -> np.ndarray:
    leaf = torch.tensor(x, requires_grad=True)
    (seed * f(leaf)).sum().backward()
    assert leaf.grad is not None
    return leaf.grad.numpy()


# Text, the function in PyTorch, opset, kinks.
KINKS: dict[str, tuple[str, Callable[..., Tensor], int, list[float]]] = {
    "Relu": ("y = Relu (x)", F.relu, 20, [0.0]),
    "LeakyRelu": ("y = LeakyRelu <alpha = 0.5> (x)", lambda x: F.leaky_relu(x, 0.5), 20, [0.0]),
    "Elu": ("y = Elu <alpha = 2.5> (x)", lambda x: F.elu(x, 2.5), 20, [0.0]),
    "Selu": ("y = Selu (x)", F.selu, 20, [0.0]),
    "ThresholdedRelu": (
        "y = ThresholdedRelu <alpha = 0.5> (x)",
        lambda x: F.threshold(x, 0.5, 0.0),
        20,
        [0.0, 0.5],
    ),
    "HardSigmoid": (
        "y = HardSigmoid <alpha = 0.25> (x)",
        lambda x: F.hardtanh(0.25 * x + 0.5, 0, 1),
        20,
        [-2.0, 2.0],
    ),
    "HardSwish": ("y = HardSwish (x)", F.hardswish, 20, [-3.0, 3.0]),
    "soft Shrink": (
        "y = Shrink <lambd = 0.5, bias = 0.5> (x)",
        F.softshrink,
        20,
        [-0.5, 0.0, 0.5],
    ),
    "hard Shrink": ("y = Shrink <lambd = 0.5> (x)", F.hardshrink, 20, [-0.5, 0.0, 0.5]),
    "Abs": ("y = Abs (x)", torch.abs, 20, [0.0]),
    "Softsign": ("y = Softsign (x)", F.softsign, 20, [0.0]),
}


@pytest.mark.parametrize(("text", "f", "opset", "kinks"), KINKS.values(), ids=KINKS.keys())
def test_kinks(text: str, f: Callable[..., Tensor], opset: int, kinks: list[float]) -> None:
    points = [point for kink in kinks for point in (kink, np.nextafter(kink, 9), kink - 0.25)]
    x = np.array([*points, -0.0, 1.0, -1.0])
    np.testing.assert_allclose(gradient(text, x, opset=opset), gradient_of_torch(f, x), rtol=1e-7)


def test_prelu_at_zero() -> None:
    x, slope = np.array([0.0, -0.0, 1.0, -1.0]), np.array([0.5, 2.0, 3.0, 4.0])
    found = gradient("y = PRelu (x, s)", x, {"s": slope})
    expected = gradient_of_torch(lambda x: F.prelu(x[None], torch.tensor(slope)), x)
    np.testing.assert_array_equal(found, expected)
    found = gradient("y = PRelu (c, x)", slope, {"c": x})
    expected = gradient_of_torch(lambda s: F.prelu(torch.tensor(x)[None], s), slope)
    np.testing.assert_array_equal(found, expected)


def test_clip_passes_the_gradient_at_its_bounds() -> None:
    x = np.array([-1.0, 0.0, -0.0, 3.0, 6.0, 7.0])
    bounds = {"a": np.array(0.0), "b": np.array(6.0)}
    for text, kwargs in (
        ("y = Clip (x, a, b)", {"min": 0, "max": 6}),
        ("y = Clip (x, a)", {"min": 0}),
        ("y = Clip (x, , b)", {"max": 6}),
        ("y = Clip (x, b, a)", {"min": 6, "max": 0}),
    ):
        expected = gradient_of_torch(lambda x, kwargs=kwargs: torch.clamp(x, **kwargs), x)
        np.testing.assert_array_equal(gradient(text, x, bounds), expected)


@pytest.mark.parametrize("bound", range(2))
@pytest.mark.parametrize("other", [0.0, 2.0])
def test_bounds_of_clip_that_depend_on_the_image(bound: int, other: float) -> None:
    """Below, at and above the bounds, in order or not."""
    values = np.array([-1.0, 0.0, 1.0, 2.0, 3.0])
    order = ("x", "c") if bound == 0 else ("c", "x")

    def clamp(x: Tensor) -> Tensor:
        constant = torch.tensor(other, dtype=torch.float64)
        low, high = (x, constant) if bound == 0 else (constant, x)
        return torch.clamp(torch.tensor(values), low, high)

    for own in (1.0, 3.0, -1.0):
        x = np.array(own)
        constants = {"v": values, "c": np.array(other)}
        found = gradient(f"y = Clip (v, {', '.join(order)})", x, constants)
        np.testing.assert_array_equal(found, gradient_of_torch(clamp, x))


@pytest.mark.parametrize(("op", "f"), [("Max", torch.maximum), ("Min", torch.minimum)])
def test_two_tied_inputs_share_equally(op: str, f: Callable[..., Tensor]) -> None:
    x, c = np.array([0.0, -0.0, 1.0, 2.0, 3.0]), np.array([0.0, 0.0, 2.0, 2.0, 2.0])
    for text in (f"y = {op} (x, c)", f"y = {op} (c, x)"):
        expected = gradient_of_torch(lambda x: f(x, torch.tensor(c)), x)
        np.testing.assert_array_equal(gradient(text, x, {"c": c}), expected)
    found = gradient(f"n = Neg (x)\n y = {op} (n, x)", x)
    np.testing.assert_array_equal(found, gradient_of_torch(lambda x: f(-x, x), x))


@pytest.mark.parametrize(("op", "f"), [("Max", torch.amax), ("Min", torch.amin)])
def test_several_tied_inputs_share_equally(op: str, f: Callable[..., Tensor]) -> None:
    """As in torch.amax: a third each, not the half and two quarters of torch.maximum twice."""
    x = np.array([0.0, 1.0, -1.0, 2.0])
    c, d = np.array([0.0, 1.0, 1.0, 2.0]), np.array([0.0, 0.0, 0.0, 2.0])

    def stacked(x: Tensor) -> Tensor:
        return f(torch.stack([x, torch.tensor(c), -x, torch.tensor(d)]), 0)

    found = gradient(f"n = Neg (x)\n y = {op} (x, c, n, d)", x, {"c": c, "d": d})
    np.testing.assert_allclose(found, gradient_of_torch(stacked, x), rtol=1e-15)


# --- powers -------------------------------------------------------------------------------------

BASES = np.array([0.0, -0.0, -1.5, 2.0])


@pytest.mark.parametrize("power", [-2.0, -1.0, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0])
def test_power_at_zero_and_below(power: float) -> None:
    expected = gradient_of_torch(lambda x: torch.pow(x, power), BASES)
    np.testing.assert_allclose(
        gradient("y = Pow (x, p)", BASES, {"p": np.array(power)}), expected, rtol=1e-12
    )
    if power == int(power):
        found = gradient("y = Pow (x, p)", BASES, {"p": [int(power)]})
        np.testing.assert_allclose(found, expected, rtol=1e-12)


POWERS = np.array([0.0, 1.0, 2.0, -1.0, 3.0])


@pytest.mark.parametrize("base", [0.0, 1.0, 2.0])
def test_power_with_exponents_at_run_time(base: float) -> None:
    bases = np.full_like(POWERS, base)

    def power_of(x: Tensor) -> Tensor:
        return torch.pow(x, torch.tensor(POWERS) + 0 * x.detach())

    text = "z = Greater (x, huge)\n f = Cast <to = 11> (z)\n p = Add (f, c)\n y = Pow (x, p)"
    found = gradient(text, bases, {"c": POWERS, "huge": np.array(1e9)})
    np.testing.assert_allclose(found, gradient_of_torch(power_of, bases), rtol=1e-12)


@pytest.mark.parametrize("base", [0.0, 1.0, 2.0])
def test_exponential_with_base_zero(base: float) -> None:
    expected = gradient_of_torch(lambda p: torch.pow(torch.tensor(base), p), POWERS)
    found = gradient("y = Pow (b, x)", POWERS, {"b": np.array(base)})
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_power_of_a_constant_array_with_zeros_among_its_exponents() -> None:
    exponents = np.array([0.0, 0.0, 3.0, 0.0])
    found = gradient("y = Pow (x, p)", BASES, {"p": exponents})
    expected = gradient_of_torch(lambda x: torch.pow(x, torch.tensor(exponents)), BASES)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


# --- large numbers ------------------------------------------------------------------------------

SATURATING: dict[str, tuple[str, Callable[..., Tensor], int]] = {
    "Elu": ("y = Elu (x)", F.elu, 20),
    "Selu": ("y = Selu (x)", F.selu, 20),
    "Celu": ("y = Celu (x)", F.celu, 20),
    "HardSwish": ("y = HardSwish (x)", F.hardswish, 20),
    "HardSigmoid": ("y = HardSigmoid <alpha = 0.16666667> (x)", F.hardsigmoid, 20),
    "Softplus": ("y = Softplus (x)", F.softplus, 20),
    "Softsign": ("y = Softsign (x)", F.softsign, 20),
    "Sigmoid": ("y = Sigmoid (x)", torch.sigmoid, 20),
    "Tanh": ("y = Tanh (x)", torch.tanh, 20),
    "Swish": ("y = Swish (x)", F.silu, 24),
    "Mish": ("y = Mish (x)", F.mish, 20),
    "Gelu": ("y = Gelu (x)", F.gelu, 20),
    "Gelu with tanh": (
        'y = Gelu <approximate = "tanh"> (x)',
        lambda x: F.gelu(x, approximate="tanh"),
        20,
    ),
    "Erf": ("y = Erf (x)", torch.erf, 20),
    "Atan": ("y = Atan (x)", torch.atan, 20),
    "Asinh": ("y = Asinh (x)", torch.asinh, 20),
}


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize(("text", "f", "opset"), SATURATING.values(), ids=SATURATING.keys())
def test_large_numbers(text: str, f: Callable[..., Tensor], opset: int, dtype: Any) -> None:
    """Held against PyTorch in float64, where nothing overflows."""
    if "Celu" in text and dtype != np.float32:
        pytest.skip("ONNX has Celu in float32 only")
    magnitudes = [0.0, 0.5, 3.5, 10.0, 25.0, 90.0, 300.0, 1000.0, 6e4]
    if dtype != np.float16:
        magnitudes += [1e10]
    x = np.array([*magnitudes, *(-m for m in magnitudes)], dtype)
    expected = gradient_of_torch(f, x.astype(np.float64))
    found = gradient(text, x, opset=opset)
    assert np.isfinite(found).all()
    coarse = {np.float64: 1e-6, np.float32: 1e-5, np.float16: 2e-2}[dtype]
    np.testing.assert_allclose(found.astype(np.float64), expected, rtol=0, atol=coarse)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize(("op", "f"), [("Softmax", F.softmax), ("LogSoftmax", F.log_softmax)])
def test_logits_far_apart(op: str, f: Callable[..., Tensor], dtype: Any) -> None:
    x = np.array([[1000.0, -1000.0, 999.0], [0.0, 0.0, 6e4], [-6e4, -6e4, -6e4]], dtype)
    text = f"p = {op} (x)\n m = Mul (p, e)\n y = ReduceSum <keepdims = 0> (m, axes)"
    found = gradient(text, x, {"e": np.array([0.0, 0.0, 1.0]), "axes": [1]})
    expected = gradient_of_torch(lambda x: f(x, -1)[:, 2], x.astype(np.float64))
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-3 if dtype == np.float16 else 1e-6)


# --- singular points ----------------------------------------------------------------------------

SINGULAR: dict[str, tuple[Callable[..., Tensor], list[float]]] = {
    "Sqrt": (torch.sqrt, [0.0, 4.0, 1e-30]),
    "Log": (torch.log, [0.0, 1e-30, 1e30]),
    "Reciprocal": (torch.reciprocal, [0.0, 1e-30, 1e30, -2.0]),
    "Asin": (torch.asin, [1.0, -1.0, 0.0, 1 - 1e-12]),
    "Acos": (torch.acos, [1.0, -1.0, 0.0, 1 - 1e-12]),
    "Acosh": (torch.acosh, [1.0, 1.5, 1e9]),
    "Atanh": (torch.atanh, [1.0, -1.0, 0.0, 1 - 1e-12]),
}


@pytest.mark.parametrize(("op", "at"), SINGULAR.items(), ids=SINGULAR.keys())
def test_singular_points(op: str, at: tuple[Callable[..., Tensor], list[float]]) -> None:
    f, points = at
    x = np.array(points)
    expected = gradient_of_torch(f, x)
    np.testing.assert_allclose(gradient(f"y = {op} (x)", x), expected, rtol=1e-4)


# --- normalization ------------------------------------------------------------------------------


def test_normalization_with_statistics_that_the_graph_computes() -> None:
    """From a value that is no constant, and that no image changes: its shape."""
    text = """
        s = Shape (x)
        t = Cast <to = 11> (s)
        c = Slice (t, one, two)
        v = Mul (c, k)
        y = BatchNormalization <epsilon = 0.5> (x, v, k, k, v)
    """
    x = np.random.default_rng(0).standard_normal((2, 3, 2))
    weights = np.array([0.5, 1.0, 2.0])
    case = Case("", "", ("N", 3, "T"), text, {"one": [1], "two": [2], "k": weights})
    found = evaluator(input_gradient(build(case))).run(
        ["input_gradient"], {"x": x, "seed": np.full_like(x, 2.0)}
    )[0]
    factor = 3 * weights / np.sqrt(3 * weights + 0.5)
    np.testing.assert_allclose(found, np.broadcast_to(2 * factor[:, None], x.shape), rtol=1e-6)


def test_more_outputs_mean_training_mode_until_opset_13() -> None:
    text = "y, m, v, n, w = BatchNormalization (x, k, k, k, k)"
    model = build(Case("", "", ("N", 2, 3), text, {"k": np.array([1.0, 2.0])}, opset=13))
    with pytest.raises(OdinError, match="evaluation mode"):
        input_gradient(model)
