"""Matrix products."""

from __future__ import annotations

from itertools import product

from export.rule_cases.case import FIXED, Case

GEMM_SHAPES = {0: ("N", 3), 1: (3, "N")}

PRODUCTS = [
    Case(
        "Gemm",
        f"x is A, transA={ta}, transB={tb}",
        GEMM_SHAPES[ta],
        f"y = Gemm <transA = {ta}, transB = {tb}, alpha = 0.5, beta = 2.0> (x, b, c)",
        {"b": (4, 3) if tb else (3, 4), "c": (4,)},
    )
    for ta, tb in product((0, 1), (0, 1))
]
PRODUCTS += [
    Case(
        "Gemm",
        f"x is B, transA={ta}, transB={tb}",
        GEMM_SHAPES[1 - tb],
        f"y = Gemm <transA = {ta}, transB = {tb}, alpha = -1.5> (a, x)",
        {"a": (3, 2) if ta else (2, 3)},
    )
    for ta, tb in product((0, 1), (0, 1))
]
PRODUCTS += [
    Case(
        "Gemm",
        f"x is A and B, transA={ta}, transB={1 - ta}",
        GEMM_SHAPES[ta],
        f"y = Gemm <transA = {ta}, transB = {1 - ta}, alpha = 0.5> (x, x)",
    )
    for ta in (0, 1)
]
PRODUCTS += [
    Case(
        "Gemm",
        f"x is C of shape {shape}, beta={beta}",
        shape,
        f"y = Gemm <beta = {beta}> (a, b, x)",
        {"a": (3, 2), "b": (2, 4)},
        at=FIXED,
    )
    for shape, beta in product([(3, 4), (1, 4), (3, 1), (4,), (1, 1), ()], ("1.0", "-0.5"))
]
PRODUCTS += [
    Case(
        "Gemm",
        "x is A and C",
        ("N", 3),
        "y = Gemm <alpha = 2.0, beta = 0.5> (x, b, x)",
        {"b": (3, 3)},
    ),
    Case("Gemm", "plain", ("N", 3), "y = Gemm (x, b)", {"b": (3, 2)}),
    Case(
        "Gemm",
        "B as a Constant node",
        ("N", 3),
        "y = Gemm <transB = 1> (x, b, c)",
        {"b": (2, 3), "c": (1, 2)},
        constant_nodes=True,
    ),
    Case("MatMul", "2-D, x left", ("N", 3), "y = MatMul (x, w)", {"w": (3, 4)}),
    Case("MatMul", "2-D, x right", (3, "N"), "y = MatMul (w, x)", {"w": (4, 3)}),
    Case("MatMul", "batch of x, x left", ("N", 2, 3), "y = MatMul (x, w)", {"w": (3, 4)}),
    Case("MatMul", "batch of x, x right", ("N", 3, 2), "y = MatMul (w, x)", {"w": (4, 3)}),
    Case("MatMul", "x lacks the batch, x left", ("N", 3), "y = MatMul (x, w)", {"w": (2, 3, 4)}),
    Case("MatMul", "x lacks the batch, x right", (3, "N"), "y = MatMul (w, x)", {"w": (2, 4, 3)}),
    Case("MatMul", "x lacks two axes", ("N", 3), "y = MatMul (x, w)", {"w": (2, 2, 3, 1)}),
    Case("MatMul", "batch of one, x left", (1, 2, 3), "y = MatMul (x, w)", {"w": (4, 3, 2)}, FIXED),
    Case(
        "MatMul", "batch of one, x right", (1, 3, 2), "y = MatMul (w, x)", {"w": (4, 2, 3)}, FIXED
    ),
    Case(
        "MatMul",
        "both are repeated, x left",
        ("N", 1, 2, 3),
        "y = MatMul (x, w)",
        {"w": (1, 4, 3, 2)},
    ),
    Case(
        "MatMul",
        "both are repeated, x right",
        ("N", 1, 3, 2),
        "y = MatMul (w, x)",
        {"w": (4, 2, 3)},
    ),
    Case(
        "MatMul",
        "x times its transpose",
        ("N", 2, 3),
        "t = Transpose <perm = [0, 2, 1]> (x)\n y = MatMul (x, t)",
    ),
    Case(
        "MatMul",
        "attention without softmax, dynamic length",
        ("N", "T", 2),
        "q = MatMul (x, w)\n t = Transpose <perm = [0, 2, 1]> (x)\n"
        "a = MatMul (q, t)\n y = MatMul (a, x)",
        {"w": (2, 2)},
        at=({"N": 1, "T": 3}, {"N": 2, "T": 1}),
    ),
]

CASES = PRODUCTS
