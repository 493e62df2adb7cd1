"""Functions of one input, smooth or with kinks; also PRelu, Pow and the softmax."""

from __future__ import annotations

import numpy as np

from export.rule_cases.case import FIXED, ONE_AND_THREE, Case
from export.rule_cases.elementwise import BROADCASTS

ANY = ("N", 2, "H", "W")
AT_ANY = ({"N": 1, "H": 2, "W": 1}, {"N": 3, "H": 2, "W": 3})
POSITIVE = (0.3, 2.0)
INSIDE = (-0.9, 0.9)
BOTH_SIDES = (-4.0, 4.0)

# Op, range of x (None: either sign, away from 0). Each with two shapes.
PLAIN: list[tuple[str, tuple[float, float] | None]] = [
    ("LeakyRelu", None),
    ("Elu", None),
    ("Selu", None),
    ("ThresholdedRelu", None),
    ("HardSigmoid", BOTH_SIDES),
    ("HardSwish", BOTH_SIDES),
    ("Shrink", BOTH_SIDES),
    ("Abs", None),
    ("Softplus", BOTH_SIDES),
    ("Softsign", None),
    ("Sigmoid", BOTH_SIDES),
    ("Tanh", BOTH_SIDES),
    ("Mish", BOTH_SIDES),
    ("Gelu", BOTH_SIDES),
    ("Erf", None),
    ("Exp", None),
    ("Log", POSITIVE),
    ("Sqrt", POSITIVE),
    ("Reciprocal", None),
    ("Sin", BOTH_SIDES),
    ("Cos", BOTH_SIDES),
    ("Tan", (-1.3, 1.3)),
    ("Sinh", None),
    ("Cosh", None),
    ("Asin", INSIDE),
    ("Acos", INSIDE),
    ("Atan", BOTH_SIDES),
    ("Asinh", BOTH_SIDES),
    ("Acosh", (1.2, 3.0)),
    ("Atanh", INSIDE),
]

FUNCTIONS = [
    Case(op, what, shape, f"y = {op} (x)", at=at, between=between)
    for op, between in PLAIN
    for what, shape, at in (("2-D", ("N", 6), ONE_AND_THREE), ("4-D, dynamic", ANY, AT_ANY))
]
FUNCTIONS += [Case(op, "scalar", (), f"y = {op} (x)", at=FIXED) for op in ("Elu", "Gelu", "Abs")]
# Each in the oldest opset that has it, and in the newest.
FUNCTIONS += [
    Case(op, f"opset {opset}", ("N", 6), f"y = {op} (x)", between=between, opset=opset)
    for op, between in PLAIN
    for opset in ({"HardSwish": 14, "Mish": 18, "Gelu": 20}.get(op, 13), 23)
    if opset != 20
]

# Attributes other than by default: op, attributes, range of x.
ATTRIBUTES: list[tuple[str, str, tuple[float, float] | None]] = [
    ("LeakyRelu", "alpha = 0.3", None),
    ("LeakyRelu", "alpha = -0.5", None),
    ("LeakyRelu", "alpha = 0.0", None),
    ("Elu", "alpha = 1.7", None),
    ("Selu", "alpha = 1.2, gamma = 2.5", None),
    ("ThresholdedRelu", "alpha = -0.7", BOTH_SIDES),
    ("ThresholdedRelu", "alpha = 0.0", None),
    ("HardSigmoid", "alpha = 0.25, beta = 0.1", BOTH_SIDES),
    ("Shrink", "lambd = 1.0, bias = 0.5", BOTH_SIDES),
    ("Shrink", "lambd = 0.0", None),
    ("Gelu", 'approximate = "tanh"', BOTH_SIDES),
    ("Gelu", 'approximate = "none"', BOTH_SIDES),
]
FUNCTIONS += [
    Case(op, attributes, ("N", 6), f"y = {op} <{attributes}> (x)", between=between)
    for op, attributes, between in ATTRIBUTES
]
FUNCTIONS += [
    Case("Swish", what, ("N", 6), f"y = Swish {attributes} (x)", between=BOTH_SIDES, opset=opset)
    for what, attributes, opset in (
        ("plain", "", 24),
        ("a factor inside", "<alpha = 1.7>", 24),
        ("a negative factor", "<alpha = -0.5>", 25),
    )
]
FUNCTIONS += [  # Celu takes float32 only
    Case(
        "Celu",
        attributes or "plain",
        shape,
        f"a = Cast <to = 1> (x)\n b = Celu {attributes} (a)\n y = Cast <to = 11> (b)",
        at=at,
        step=0.01,
        tolerance=1e-3,
        opset=opset,
    )
    for attributes, shape, at, opset in (
        ("", ("N", 6), ONE_AND_THREE, 20),
        ("<alpha = 0.5>", ANY, AT_ANY, 13),
        ("<alpha = 2.0>", ("N", 6), ONE_AND_THREE, 23),
    )
]

SLOPES = [
    Case("PRelu", f"slope of shape {slope}", shape, "y = PRelu (x, s)", {"s": slope}, at)
    for shape, slope, at in (
        (("N", 3), (3,), ONE_AND_THREE),
        (("N", 3), (1,), ONE_AND_THREE),
        (("N", 3), (), ONE_AND_THREE),
        (("N", 1, 2), (1, 2), ONE_AND_THREE),
        (ANY, (2, 1, 1), AT_ANY),
        ((2, 3), (2, 3), FIXED),
    )
]
SLOPES += [
    Case(
        "PRelu",
        "slope in a Constant node",
        ("N", 3, 2),
        "y = PRelu (x, s)",
        {"s": (3, 1)},
        constant_nodes=True,
        opset=13,
    ),
    Case("PRelu", "x is its own slope", ("N", 3), "y = PRelu (x, x)"),
    Case(
        "PRelu",
        "x and a slope from x, repeated",
        ("N", 3, 2),
        "s = ReduceMean (x, axes)\n y = PRelu (x, s)",
        {"axes": [-1]},
    ),
    Case(
        "PRelu",
        "only the slope, of fewer axes",
        (3,),
        "y = PRelu (c, x)",
        {"c": (4, 2, 3)},
        at=FIXED,
    ),
    Case(
        "PRelu",
        "only the slope, repeated",
        (3, 1),
        "y = PRelu (c, x)",
        {"c": (3, 4)},
        at=FIXED,
    ),
]

POWERS = [
    Case("Pow", f"to the {power}", ("N", 3), "y = Pow (x, p)", {"p": np.array(power)}, between=area)
    for power, area in (
        (2.0, None),
        (3.0, None),
        (4.0, None),
        (-1.0, None),
        (-2.0, None),
        (1.0, None),
        (0.0, None),
        (0.5, POSITIVE),
        (-0.5, POSITIVE),
        (1.7, POSITIVE),
    )
]
POWERS += [
    Case("Pow", f"to the {power}, {kind}", ("N", 3), "y = Pow (x, p)", {"p": np.array(power, kind)})
    for power, kind in ((2, "int64"), (5, "int32"), (-3, "int64"), (3, "float32"), (0, "int64"))
]
POWERS += [
    Case("Pow", f"{what}, x below", shape, "y = Pow (x, c)", {"c": other}, at, between=POSITIVE)
    for what, shape, other, at in BROADCASTS
]
POWERS += [
    Case(
        "Pow",
        f"{what}, x above",
        shape,
        "d = Abs (c)\n y = Pow (d, x)",
        {"c": other},
        at,
    )
    for what, shape, other, at in BROADCASTS
]
POWERS += [
    Case(
        "Pow",
        "exponents of every sign, at x of either",
        ("N", 4),
        "y = Pow (x, p)",
        {"p": np.array([0.0, 2.0, -3.0, 1.0])},
    ),
    Case(
        "Pow",
        "integer exponents computed at run time",
        ("N", 3),
        "s = Shape (x)\n t = Slice (s, one, two)\n y = Pow (x, t)",
        {"one": [1], "two": [2]},
    ),
    Case(
        "Pow",
        "float exponents computed at run time",
        ("N", 3),
        "s = Shape (x)\n t = Cast <to = 11> (s)\n u = Slice (t, one, two)\n y = Pow (x, u)",
        {"one": [1], "two": [2]},
        opset=13,
    ),
    Case("Pow", "both sides", ("N", 3), "y = Pow (x, x)", between=POSITIVE),
    Case(
        "Pow",
        "both sides, one repeated",
        ("N", 3, 2),
        "m = ReduceMean <keepdims = 0> (x, axes)\n y = Pow (m, x)",
        {"axes": [0, 1]},
        between=POSITIVE,
        empty=False,
    ),
    Case(
        "Pow",
        "exponent of x in float32",
        ("N", 3),
        "f = Cast <to = 1> (x)\n y = Pow (c, f)",
        {"c": np.array([0.5, 2.0, 1.5])},
        step=0.01,
        tolerance=1e-3,
    ),
    Case("Pow", "base of one number", ("N", 3), "y = Pow (c, x)", {"c": np.array(2.0)}),
    Case(
        "Pow",
        "base with a zero",
        ("N", 2),
        "y = Pow (c, x)",
        {"c": np.array([0.0, 2.0])},
        between=POSITIVE,
    ),
]

SOFTMAXES = [
    Case(op, f"{what}, opset {opset}", shape, f"y = {op} {axis} (x)", at=at, opset=opset)
    for op in ("Softmax", "LogSoftmax")
    for what, shape, axis, at, opset in (
        ("2-D", ("N", 5), "", ONE_AND_THREE, 20),
        ("axis 1 of 4-D, dynamic", ANY, "<axis = 1>", AT_ANY, 13),
        ("axis -2", ANY, "<axis = -2>", AT_ANY, 20),
        ("last of 3-D", ("N", 2, 3), "<axis = -1>", ONE_AND_THREE, 25),
        ("axis of size one", ("N", 1, 3), "<axis = 1>", ONE_AND_THREE, 20),
    )
]
SOFTMAXES += [
    Case(op, "over the batch", ("N", 2), f"y = {op} <axis = 0> (x)", empty=False)
    for op in ("Softmax", "LogSoftmax")
]

SOFTMAXES += [
    Case(
        op,
        "vector",
        (4,),
        f"y = {op} <axis = 0> (x)",
        at=FIXED,
        rtx="its parser takes the op on two axes or more",
    )
    for op in ("Softmax", "LogSoftmax")
]

CASES = [*FUNCTIONS, *SLOPES, *POWERS, *SOFTMAXES]
