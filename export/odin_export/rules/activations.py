"""Rules of functions of one input: smooth ones, and those with kinks.

PRelu and Pow have a second input, which may depend on the image too.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from odin_export.emit import Emitter, constant_value
from odin_export.rules.common import Gradients, operand, sizes_of, type_of

# --- with kinks ---------------------------------------------------------------------------------


def relu(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = max(x, 0); dx = dy where y > 0, else 0. At x = 0 the gradient is 0, as in PyTorch.

    A product, where a choice is slower in ONNX Runtime and the same in OpenVINO; in float16, whose
    gradients may overflow, a choice: where y = 0, infinity counts as little as any other gradient.
    """
    zero = e.floats(0, "zero")
    positive = e.op("Greater", node.outputs[0], zero)
    if e.dtype == ir.DataType.FLOAT16:
        return [e.op("Where", positive, dy, zero)]
    return [e.op("Mul", dy, e.op("Cast", positive, to=int(e.dtype)))]


def leaky_relu(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x where x > 0, else a x; dx = dy where x > 0, else a dy, as at x = 0."""
    slope = e.floats(node.attributes.get_float("alpha", 0.01), "slope")
    return [_by_sign(e, operand(node, 0), dy, e.op("Mul", dy, slope))]


def prelu(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x where x > 0, else a x; dx = dy where x > 0, else a dy; da = 0 where x > 0, else x dy.

    He et al., Delving Deep into Rectifiers, 2015, equations 1 and 9. At x = 0, dx = a dy.
    """
    x, slope = operand(node, 0), operand(node, 1)
    dx = da = None
    if e.wants(x):
        dx = _by_sign(e, x, dy, e.op("Mul", dy, slope))
    if e.wants(slope):
        da = _by_sign(e, x, e.floats(0, "zero"), e.op("Mul", dy, x))
    return [dx, da]


def elu(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x where x > 0, else a (exp(x) - 1); dx = dy where x > 0, else dy a exp(x), as at x = 0.

    Clevert et al., Fast and Accurate Deep Network Learning by Exponential Linear Units, 2016.
    """
    alpha = node.attributes.get_float("alpha", 1.0)
    return [_exponential_below_zero(e, operand(node, 0), dy, 1.0, alpha)]


def selu(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = g x where x > 0, else g a (exp(x) - 1); dx = g dy where x > 0, else g a exp(x) dy.

    Klambauer et al., Self-Normalizing Neural Networks, 2017. At x = 0, dx = g a dy.
    """
    alpha = node.attributes.get_float("alpha", 1.67326319217681884765625)
    gamma = node.attributes.get_float("gamma", 1.05070102214813232421875)
    return [_exponential_below_zero(e, operand(node, 0), dy, gamma, gamma * alpha)]


def celu(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = max(x, 0) + min(0, a (exp(x / a) - 1)); dx = dy where x > 0, else dy exp(x / a).

    Barron, Continuously Differentiable Exponential Linear Units, 2017: no kink at x = 0.
    """
    x = operand(node, 0)
    inner = e.op("Div", x, e.floats(node.attributes.get_float("alpha", 1.0), "alpha"))
    return [e.op("Mul", dy, _by_sign(e, x, e.floats(1, "one"), e.op("Exp", inner)))]


def thresholded_relu(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x where x > a, else 0; dx = dy where x > a, else 0, as at x = a."""
    threshold = e.floats(node.attributes.get_float("alpha", 1.0), "threshold")
    above = e.op("Greater", operand(node, 0), threshold)
    return [e.op("Where", above, dy, e.floats(0, "zero"))]


def hard_sigmoid(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = max(0, min(1, a x + b)); dx = a dy where 0 < y < 1, else 0, as at both kinks."""
    y, zero, one = node.outputs[0], e.floats(0, "zero"), e.floats(1, "one")
    slope = e.floats(node.attributes.get_float("alpha", 0.2), "slope")
    inside = e.op("And", e.op("Greater", y, zero), e.op("Less", y, one))
    return [e.op("Where", inside, e.op("Mul", dy, slope), zero)]


def hard_swish(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x max(0, min(1, x / 6 + 1/2)); dx = dy (x / 3 + 1/2) where -3 < x < 3.

    Howard et al., Searching for MobileNetV3, 2019. dx = 0 below and dy above; at x = -3 it is 0
    and at x = 3 it is dy, as in PyTorch.
    """
    x, zero, one = operand(node, 0), e.floats(0, "zero"), e.floats(1, "one")
    slope = e.op("Mul", x, e.floats(1 / 3))
    slope = e.op("Add", slope, e.floats(0.5))
    slope = e.op("Where", e.op("Less", x, e.floats(3)), slope, one)
    slope = e.op("Where", e.op("Greater", x, e.floats(-3)), slope, zero)
    return [e.op("Mul", dy, slope)]


def shrink(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x + b where x < -l, x - b where x > l, else 0; dx = dy where |x| > l, else 0.

    At x = -l and x = l the gradient is 0, as in PyTorch's softshrink and hardshrink.
    """
    limit = e.floats(node.attributes.get_float("lambd", 0.5), "lambd")
    outside = e.op("Greater", e.op("Abs", operand(node, 0)), limit)
    return [e.op("Where", outside, dy, e.floats(0, "zero"))]


def absolute(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = |x|; dx = dy sign(x), which is 0 at x = 0."""
    return [e.op("Mul", dy, e.op("Sign", operand(node, 0)))]


def _by_sign(e: Emitter, x: ir.Value, positive: ir.Value, otherwise: ir.Value) -> ir.Value:
    return e.op("Where", e.op("Greater", x, e.floats(0, "zero")), positive, otherwise)


def _exponential_below_zero(
    e: Emitter, x: ir.Value, dy: ir.Value, above: float, below: float
) -> ir.Value:
    """dy times `above` where x > 0, else dy times `below` exp(x)."""
    slope = e.op("Exp", x)  # may be infinite where x > 0, where it is not chosen
    if below != 1.0:
        slope = e.op("Mul", slope, e.floats(below))
    return e.op("Mul", dy, _by_sign(e, x, e.floats(above), slope))


# --- smooth -------------------------------------------------------------------------------------


def softplus(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = log(1 + exp(x)); dx = dy sigmoid(x)."""
    return [e.op("Mul", dy, e.op("Sigmoid", operand(node, 0)))]


def softsign(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x / (1 + |x|); dx = dy / (1 + |x|)^2, divided twice: the square may overflow."""
    scale = e.op("Add", e.op("Abs", operand(node, 0)), e.floats(1, "one"))
    return [e.op("Div", e.op("Div", dy, scale), scale)]


def sigmoid(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = 1 / (1 + exp(-x)); dx = dy y (1 - y)."""
    y = node.outputs[0]
    return [e.op("Mul", e.op("Mul", dy, y), e.op("Sub", e.floats(1, "one"), y))]


def tanh(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = tanh(x); dx = dy (1 - y^2)."""
    return [e.op("Mul", dy, _one_minus_square(e, node.outputs[0]))]


def swish(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x s with s = sigmoid(a x); dx = dy (s + a y (1 - s)).

    Ramachandran et al., Searching for Activation Functions, 2017.
    """
    alpha = node.attributes.get_float("alpha", 1.0)
    x = operand(node, 0)
    s = e.op("Sigmoid", x if alpha == 1.0 else e.op("Mul", x, e.floats(alpha)))
    bend = e.op("Mul", node.outputs[0], e.op("Sub", e.floats(1, "one"), s))
    if alpha != 1.0:
        bend = e.op("Mul", bend, e.floats(alpha))
    return [e.op("Mul", dy, e.op("Add", s, bend))]


def mish(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x t with t = tanh(softplus(x)); dx = dy (t + x sigmoid(x) (1 - t^2)).

    Misra, Mish: A Self Regularized Non-Monotonic Activation Function, 2020.
    """
    x = operand(node, 0)
    t = e.op("Tanh", e.op("Softplus", x))
    bend = e.op("Mul", e.op("Mul", x, e.op("Sigmoid", x)), _one_minus_square(e, t))
    return [e.op("Mul", dy, e.op("Add", t, bend))]


def gelu(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x P(x), P the normal distribution with density p; dx = dy (P(x) + x p(x)).

    Hendrycks and Gimpel, Gaussian Error Linear Units, 2016. With approximate="tanh",
    y = x (1 + t) / 2, t = tanh(u), u = c (x + k x^3), c = sqrt(2 / pi), k = 0.044715, and
    dx = dy ((1 + t) / 2 + x (1 - t^2) c (1 + 3 k x^2) / 2).
    """
    if node.attributes.get_string("approximate", "none") == "tanh":
        return [_gelu_tanh(e, operand(node, 0), dy)]
    x = operand(node, 0)
    scaled = e.op("Mul", x, e.floats(math.sqrt(0.5)))
    half = e.floats(0.5)
    probability = e.op("Add", e.op("Mul", e.op("Erf", scaled), half), half)
    density = _exp_of_minus_square(e, scaled)
    bend = e.op("Mul", e.op("Mul", x, density), e.floats(1 / math.sqrt(2 * math.pi)))
    return [e.op("Mul", dy, e.op("Add", probability, bend))]


def _gelu_tanh(e: Emitter, x: ir.Value, dy: ir.Value) -> ir.Value:
    scale, cubic = math.sqrt(2 / math.pi), 0.044715
    # Beyond 10 the slope is 0 or 1 to more digits than float64 has; its square would overflow.
    x = e.op("Clip", x, e.floats(-10), e.floats(10))
    square = e.op("Mul", x, x)
    u = e.op("Mul", square, e.floats(scale * cubic))
    u = e.op("Mul", x, e.op("Add", u, e.floats(scale)))
    t = e.op("Tanh", u)
    du = e.op("Mul", square, e.floats(1.5 * scale * cubic))
    du = e.op("Add", du, e.floats(0.5 * scale))
    bend = e.op("Mul", e.op("Mul", x, du), _one_minus_square(e, t))
    half = e.floats(0.5)
    rise = e.op("Add", e.op("Mul", t, half), half)
    return e.op("Mul", dy, e.op("Add", rise, bend))


def erf(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = erf(x); dx = dy 2 / sqrt(pi) exp(-x^2)."""
    slope = _exp_of_minus_square(e, operand(node, 0))
    return [e.op("Mul", dy, e.op("Mul", slope, e.floats(2 / math.sqrt(math.pi))))]


def exp(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = exp(x); dx = dy y."""
    return [e.op("Mul", dy, node.outputs[0])]


def log(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = log(x); dx = dy / x."""
    return [e.op("Div", dy, operand(node, 0))]


def sqrt(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = sqrt(x); dx = dy / (2 y), infinite at x = 0 as in PyTorch."""
    return [e.op("Div", e.op("Mul", dy, e.floats(0.5)), node.outputs[0])]


def reciprocal(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = 1 / x; dx = -dy y^2, multiplied twice: the square may underflow."""
    y = node.outputs[0]
    return [e.op("Neg", e.op("Mul", e.op("Mul", dy, y), y))]


def power(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = x^p; dx = dy p x^(p - 1), dp = dy y log(x).

    As in PyTorch, dx = 0 where p = 0, and dp = 0 where x = 0 and p >= 0; there, y = 0 or 1.
    """
    x, p = operand(node, 0), operand(node, 1)
    return [
        _slope_of_power(e, node, dy) if e.wants(x) else None,
        _slope_of_exponential(e, node, dy) if e.wants(p) else None,
    ]


def _slope_of_power(e: Emitter, node: ir.Node, dy: ir.Value) -> ir.Value:
    x, y = operand(node, 0), node.outputs[0]
    exponent = constant_value(operand(node, 1))
    if exponent is not None and exponent.size and np.all(exponent == exponent.flat[0]):
        match float(exponent.flat[0]):
            case 0.0:
                return e.op("Expand", e.floats(0, "zero"), sizes_of(e, y))
            case 0.5:
                return e.op("Div", e.op("Mul", dy, e.floats(0.5)), y)
            case 1.0:
                return dy
            case 2.0:
                return e.op("Mul", dy, e.op("Mul", x, e.floats(2)))
            case 3.0:
                return e.op("Mul", dy, e.op("Mul", e.op("Mul", x, x), e.floats(3)))
    if exponent is not None:
        # With 1 in place of -1 where p = 0, no 0 is multiplied by an infinite 0^-1.
        lower = np.where(exponent == 0, 1, exponent.astype(np.float64) - 1)
        p, one_less = e.floats(exponent, "exponent"), e.floats(lower, "exponent")
    else:
        p = _in_own_type(e, node, operand(node, 1))
        one = e.floats(1, "one")
        is_zero = e.op("Equal", p, e.floats(0, "zero"))
        one_less = e.op("Where", is_zero, one, e.op("Sub", p, one))
    return e.op("Mul", dy, e.op("Mul", p, e.op("Pow", x, one_less)))


def _slope_of_exponential(e: Emitter, node: ir.Node, dy: ir.Value) -> ir.Value:
    x, exponent = operand(node, 0), operand(node, 1)
    base = constant_value(x)
    if base is None or not np.all(base):
        p, zero = _in_own_type(e, node, exponent), e.floats(0, "zero")
        negative = e.op("Less", p, zero)
        harmless = e.op("Or", e.op("Not", e.op("Equal", x, zero)), negative)
        x = e.op("Where", harmless, x, e.floats(1, "one"))  # log(1) = 0
    dp = e.op("Mul", dy, e.op("Mul", node.outputs[0], e.op("Log", x)))
    wanted = type_of(node, exponent)
    return dp if wanted == e.dtype else e.op("Cast", dp, to=int(wanted))


def _in_own_type(e: Emitter, node: ir.Node, value: ir.Value) -> ir.Value:
    """The exponent, which may be of another type, in the type of the power."""
    return value if type_of(node, value) == e.dtype else e.op("Cast", value, to=int(e.dtype))


def _one_minus_square(e: Emitter, value: ir.Value) -> ir.Value:
    return e.op("Sub", e.floats(1, "one"), e.op("Mul", value, value))


def _exp_of_minus_square(e: Emitter, value: ir.Value) -> ir.Value:
    return e.op("Exp", e.op("Neg", e.op("Mul", value, value)))


# --- trigonometric and hyperbolic ---------------------------------------------------------------


def sin(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = sin(x); dx = dy cos(x)."""
    return [e.op("Mul", dy, e.op("Cos", operand(node, 0)))]


def cos(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = cos(x); dx = -dy sin(x)."""
    return [e.op("Neg", e.op("Mul", dy, e.op("Sin", operand(node, 0))))]


def tan(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = tan(x); dx = dy (1 + y^2)."""
    return [e.op("Mul", dy, _one_plus_square(e, node.outputs[0]))]


def sinh(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = sinh(x); dx = dy cosh(x)."""
    return [e.op("Mul", dy, e.op("Cosh", operand(node, 0)))]


def cosh(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = cosh(x); dx = dy sinh(x)."""
    return [e.op("Mul", dy, e.op("Sinh", operand(node, 0)))]


def asin(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = asin(x); dx = dy / sqrt((1 - x) (1 + x))."""
    return [e.op("Div", dy, e.op("Sqrt", _square_below_one(e, operand(node, 0))))]


def acos(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = acos(x); dx = -dy / sqrt((1 - x) (1 + x))."""
    return [e.op("Neg", e.op("Div", dy, e.op("Sqrt", _square_below_one(e, operand(node, 0)))))]


def atan(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = atan(x); dx = dy / (1 + x^2)."""
    return [e.op("Div", dy, _one_plus_square(e, operand(node, 0)))]


def asinh(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = asinh(x); dx = dy / sqrt(1 + x^2) = dy / cosh(y), which does not overflow."""
    return [e.op("Div", dy, e.op("Cosh", node.outputs[0]))]


def acosh(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = acosh(x); dx = dy / sqrt(x^2 - 1) = dy / sinh(y), which does not overflow."""
    return [e.op("Div", dy, e.op("Sinh", node.outputs[0]))]


def atanh(e: Emitter, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = atanh(x); dx = dy / ((1 - x) (1 + x))."""
    return [e.op("Div", dy, _square_below_one(e, operand(node, 0)))]


def _one_plus_square(e: Emitter, value: ir.Value) -> ir.Value:
    return e.op("Add", e.op("Mul", value, value), e.floats(1, "one"))


def _square_below_one(e: Emitter, x: ir.Value) -> ir.Value:
    """1 - x^2 as a product, which keeps its digits near 1."""
    one = e.floats(1, "one")
    return e.op("Mul", e.op("Sub", one, x), e.op("Add", one, x))
