"""Ops that choose among their inputs or add them up, and statistics computed by the graph."""

from __future__ import annotations

import numpy as np

from export.rule_cases.case import FIXED, ONE_AND_THREE, Case
from export.rule_cases.elementwise import BROADCASTS

ANY = ("N", 2, "H", "W")
AT_ANY = ({"N": 1, "H": 2, "W": 1}, {"N": 3, "H": 2, "W": 3})
WIDE = (-2.0, 2.0)

LOW, HIGH = np.array(-0.8), np.array(0.9)
CLIPS = [
    Case("Clip", what, shape, f"y = Clip {inputs}", constants, at, between=WIDE, opset=opset)
    for what, shape, inputs, constants, at, opset in (
        ("neither bound", ("N", 4), "(x)", {}, ONE_AND_THREE, 20),
        ("below", ("N", 6), "(x, a)", {"a": LOW}, ONE_AND_THREE, 20),
        ("above", ("N", 6), "(x, , b)", {"b": HIGH}, ONE_AND_THREE, 20),
        ("both", ("N", 6), "(x, a, b)", {"a": LOW, "b": HIGH}, ONE_AND_THREE, 13),
        ("both, dynamic", ANY, "(x, a, b)", {"a": LOW, "b": HIGH}, AT_ANY, 23),
        ("scalar", (), "(x, a)", {"a": LOW}, FIXED, 20),
    )
]
CLIPS += [
    Case(
        "Clip",
        "bounds in Constant nodes",
        ("N", 6),
        "y = Clip (x, a, b)",
        {"a": LOW, "b": HIGH},
        constant_nodes=True,
        between=WIDE,
    ),
    Case(
        "Clip",
        "bounds the wrong way round, beside x",
        ("N", 6),
        "c = Clip (x, b, a)\n y = Add (c, x)",
        {"a": LOW, "b": HIGH},
        between=WIDE,
    ),
    Case(
        "Clip",
        "bounds that depend on the image",
        ("N", 3, 4),
        """
        m = ReduceMean <keepdims = 0> (x)
        a = Sub (m, one)
        b = Add (m, half)
        y = Clip (x, a, b)
        """,
        {"one": np.array(0.9), "half": np.array(0.5)},
        between=WIDE,
        empty=False,
    ),
    Case(
        "Clip",
        "a lower bound that depends on the image",
        ("N", 3, 4),
        "m = ReduceMean <keepdims = 0> (x)\n y = Clip (c, m)",
        {"c": (2, 5)},
        between=WIDE,
        empty=False,
    ),
    Case(
        "Clip",
        "an upper bound below the lower one, both from the image",
        ("N", 3),
        """
        m = ReduceMean <keepdims = 0> (x)
        a = Add (m, one)
        b = Sub (m, one)
        y = Clip (x, a, b)
        """,
        {"one": np.array(0.3)},
        empty=False,
    ),
]

SUMS = [
    Case(op, f"{what}, {order}", shape, f"y = {op} {order}", {"c": other}, at, between=WIDE)
    for op in ("Max", "Min", "Sum", "Mean")
    for what, shape, other, at in BROADCASTS
    for order in ("(x, c)", "(c, x)")
]
SUMS += [
    Case(op, what, shape, text.format(op), constants, at, between=WIDE, opset=opset)
    for op in ("Max", "Min", "Sum", "Mean")
    for what, shape, text, constants, at, opset in (
        ("alone", ("N", 3), "y = {} (x)", {}, ONE_AND_THREE, 13),
        ("x on both sides", ("N", 3), "y = {} (x, x)", {}, ONE_AND_THREE, 20),
        (
            "x, its negative and a constant",
            ("N", 3, 2),
            "n = Neg (x)\n y = {} (x, c, n)",
            {"c": (3, 1)},
            ONE_AND_THREE,
            13,
        ),
        (
            "four inputs, x twice",
            ANY,
            "n = Neg (x)\n y = {} (x, c, n, x)",
            {"c": (2, 1, 1)},
            AT_ANY,
            25,
        ),
        (
            "three inputs that are all repeated",
            ("N", 1, 3),
            "y = {} (c, x, d)",
            {"c": (2, 1), "d": (4, 1, 1, 1)},
            ONE_AND_THREE,
            20,
        ),
        (
            "x and its mean",
            ("N", 3, 2),
            "m = ReduceMean (x, axes)\n y = {} (m, x)",
            {"axes": [1]},
            ONE_AND_THREE,
            20,
        ),
    )
]

MASK = np.array([True, False, True])
CHOICES = [
    Case("Where", "a constant mask", ("N", 3), "y = Where (m, x, c)", {"m": MASK, "c": (3,)}),
    Case("Where", "the other way", ("N", 3), "y = Where (m, c, x)", {"m": MASK, "c": (3,)}),
    Case("Where", "x on both sides", ("N", 3), "n = Neg (x)\n y = Where (m, x, n)", {"m": MASK}),
    Case(
        "Where",
        "a mask of x",
        ANY,
        "m = Greater (x, zero)\n y = Where (m, x, c)",
        {"zero": np.array(0.0), "c": (2, 1, 1)},
        at=AT_ANY,
        opset=13,
    ),
    Case(
        "Where",
        "the mask repeats x",
        ("N", 1),
        "y = Where (m, x, c)",
        {"m": MASK, "c": (2, 1, 1)},
    ),
    Case(
        "Where",
        "everything is repeated",
        ("N", 1, 1),
        "y = Where (m, c, x)",
        {"m": MASK, "c": (2, 1)},
    ),
    Case("Where", "x lacks axes", (3,), "y = Where (m, x, c)", {"m": MASK, "c": (2, 3)}, at=FIXED),
    Case(
        "Where",
        "what is not chosen is infinite",
        ("N", 3),
        "i = Div (c, zeros)\n y = Where (m, x, i)",
        {"m": MASK, "c": (3,), "zeros": np.array([0.0, 1.0, 0.0])},
    ),
]

STATISTICS = [
    Case(
        "BatchNormalization",
        f"the graph computes its {what}",
        shape,
        f"t = Abs (s)\n u = Neg (b)\n y = BatchNormalization <epsilon = 0.01> (x, {inputs})",
        {"s": (3,), "b": (3,), "v": np.array([0.5, 1.5, 2.0])},
        at=at,
        opset=opset,
    )
    for what, shape, inputs, at, opset in (
        ("scale", ("N", 3, 2), "t, b, b, v", ONE_AND_THREE, 20),
        ("variance", ("N", 3, "H", "W"), "s, b, b, t", AT_ANY, 13),
        ("bias and mean", ("N", 3), "s, u, u, v", ONE_AND_THREE, 15),
        ("statistics, all of them", ("N", 3, 2, 2), "t, u, u, t", ONE_AND_THREE, 14),
    )
]
STATISTICS += [
    Case(
        "BatchNormalization",
        "float32 with statistics in float64 that the graph computes",
        ("N", 3, 2),
        "f = Cast <to = 1> (x)\n t = Abs (v)\n"
        "n = BatchNormalization (f, s, s, v, t)\n y = Cast <to = 11> (n)",
        {"s": (3,), "v": np.array([0.5, 1.5, 2.0])},
        step=0.1,
        tolerance=1e-5,
    ),
    Case(
        "CastLike",
        "a constant of float32",
        ("N", 4),
        "a = CastLike (x, c)\n y = Cast <to = 11> (a)",
        {"c": np.ones(2, np.float32)},
        step=0.1,
        tolerance=1e-5,
        opset=15,
    ),
    Case("CastLike", "x itself", ("N", 4), "a = CastLike (x, x)\n y = Mul (a, x)"),
    Case(
        "CastLike",
        "a constant in the type of x",
        ("N", 4),
        "a = CastLike (c, x)\n y = Mul (a, x)",
        {"c": np.array([1, 2, 3, 4], np.float32)},
        opset=25,
    ),
    Case(
        "CastLike",
        "the type of x in float32",
        ("N", 2, "H"),
        "f = Cast <to = 1> (x)\n g = CastLike (x, f)\n h = Add (f, g)\n y = Cast <to = 11> (h)",
        at=({"N": 1, "H": 2}, {"N": 3, "H": 4}),
        step=0.1,
        tolerance=1e-5,
    ),
]

CASES = [*CLIPS, *SUMS, *CHOICES, *STATISTICS]
