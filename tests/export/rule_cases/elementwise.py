"""Ops that work element by element."""

from __future__ import annotations

from itertools import product

import numpy as np

from export.rule_cases.case import FIXED, ONE_AND_THREE, Case, Sizes

FALSE = np.array(False)
VARIANCE = np.array([0.5, 1.5, 2.0])

ELEMENTWISE = [
    Case("Identity", "alone", ("N", 3), "y = Identity (x)"),
    Case("Identity", "of a vector", ("N",), "y = Identity (x)"),
    Case("Dropout", "x alone", ("N", 3), "y = Dropout (x)"),
    Case("Dropout", "with a ratio", ("N", 3), "y = Dropout (x, r)", {"r": np.array(0.5)}),
    Case("Dropout", "with its mask", ("N", 3), "y, mask = Dropout (x)"),
    Case(
        "Dropout",
        "training mode is a constant false",
        ("N", 3),
        "y = Dropout (x, r, t)",
        {"r": np.array(0.5), "t": FALSE},
    ),
    Case(
        "Dropout",
        "training mode is a Constant node",
        ("N", 3),
        "y = Dropout (x, r, t)",
        {"r": np.array(0.5), "t": FALSE},
        constant_nodes=True,
    ),
    Case("Neg", "2-D", ("N", 3), "y = Neg (x)"),
    Case("Neg", "4-D, dynamic", ("N", 1, "H", 2), "y = Neg (x)", at=({"N": 2, "H": 3},)),
    Case("Relu", "2-D", ("N", 6), "y = Relu (x)"),
    Case("Relu", "4-D", ("N", 2, 2, 3), "y = Relu (x)"),
    Case(
        "Relu",
        "twice",
        ("N", 6),
        "a = Relu (x)\n b = Sub (a, c)\n y = Relu (b)",
        {"c": np.array(1.0)},
    ),
    Case(
        "Cast",
        "to float32 and back",
        ("N", 4),
        "a = Cast <to = 1> (x)\n y = Cast <to = 11> (a)",
        step=0.1,
        tolerance=1e-5,
    ),
    Case(
        "Cast",
        "a product in float32",
        ("N", 4),
        "a = Cast <to = 1> (x)\n b = Mul (a, c)\n y = Cast <to = 11> (b)",
        {"c": np.array([0.5, -2, 3, 1.25], np.float32)},
        step=0.1,
        tolerance=1e-5,
    ),
    Case(
        "Cast",
        "rules with constants in float32",
        ("N", 2, 4),
        "a = Cast <to = 1> (x)\n b = Relu (a)\n c = ReduceMean <keepdims = 0> (b, axes)\n"
        "y = Cast <to = 11> (c)",
        {"axes": [2]},
        step=0.1,
        tolerance=1e-5,
    ),
    Case("Cast", "to its own type", ("N", 4), "y = Cast <to = 11> (x)"),
    Case(
        "BatchNormalization",
        "2-D",
        ("N", 3),
        "y = BatchNormalization (x, s, b, m, v)",
        {"s": (3,), "b": (3,), "m": (3,), "v": VARIANCE},
    ),
    Case(
        "BatchNormalization",
        "3-D",
        ("N", 3, 2),
        "y = BatchNormalization (x, s, b, m, v)",
        {"s": (3,), "b": (3,), "m": (3,), "v": VARIANCE},
    ),
    Case(
        "BatchNormalization",
        "4-D, dynamic, epsilon",
        ("N", 3, "H", "W"),
        "y = BatchNormalization <epsilon = 0.1> (x, s, b, m, v)",
        {"s": (3,), "b": (3,), "m": (3,), "v": VARIANCE},
        at=({"N": 1, "H": 2, "W": 3}, {"N": 3, "H": 3, "W": 1}),
    ),
    Case(
        "BatchNormalization",
        "statistics as Constant nodes",
        ("N", 3, 2, 2),
        "y = BatchNormalization <momentum = 0.8> (x, s, b, m, v)",
        {"s": (3,), "b": (3,), "m": (3,), "v": VARIANCE},
        constant_nodes=True,
    ),
]


# Shape of x, shape of the constant. Together they broadcast in every way there is.
BROADCASTS: list[tuple[str, tuple[int | str, ...], tuple[int, ...], tuple[Sizes, ...]]] = [
    ("same shape", (2, 3), (2, 3), FIXED),
    ("scalar constant", ("N", 3), (), ONE_AND_THREE),
    ("constant lacks axes", ("N", 3, 2), (2,), ONE_AND_THREE),
    ("constant has axes of size one", ("N", 3, 2), (1, 3, 1), ONE_AND_THREE),
    ("x has an axis of size one", ("N", 1, 2), (1, 3, 2), ONE_AND_THREE),
    ("x has two axes of size one", (1, 3, 1), (2, 1, 2), FIXED),
    ("x lacks axes", ("N", 2), (4, 3, 1, 2), ONE_AND_THREE),
    ("x lacks axes and has one of size one", ("N", 1), (2, 1, 3), ONE_AND_THREE),
    ("both are repeated", ("N", 1, 2), (3, 1), ONE_AND_THREE),
    ("x is a scalar", (), (2, 3), FIXED),
    ("x has one element, more axes", (1, 1, 1), (2,), FIXED),
]

ARITHMETIC = [
    Case(op, f"{what}, {first} first", shape, f"y = {op} ({first}, {second})", {"c": other}, at)
    for op in ("Add", "Sub", "Mul", "Div")
    for what, shape, other, at in BROADCASTS
    for first, second in (("x", "c"), ("c", "x"))
]
ARITHMETIC += [
    Case(op, "x on both sides", ("N", 3), f"y = {op} (x, x)") for op in ("Add", "Sub", "Mul", "Div")
]
ARITHMETIC += [
    Case(
        op,
        f"x with its own mean, {sides}",
        ("N", 3, 2),
        f"m = ReduceMean (x, axes)\n d = Add (m, two)\n y = {op} {sides}",
        {"axes": [1], "two": np.array(4.0)},
    )
    for op, sides in product(("Add", "Sub", "Mul", "Div"), ("(x, d)", "(d, x)"))
]
ARITHMETIC += [
    Case("Mul", "cube", ("N", 3), "a = Mul (x, x)\n y = Mul (a, x)"),
    Case("Div", "x / x + x", ("N", 3), "a = Div (x, x)\n y = Add (a, x)"),
    Case(
        "Add",
        "two dynamic axes of the same names",
        ("N", 2, "H", "W"),
        "a = Relu (x)\n y = Add (a, x)",
        at=({"N": 1, "H": 2, "W": 1}, {"N": 3, "H": 1, "W": 3}),
    ),
]

CASES = [*ELEMENTWISE, *ARITHMETIC]
