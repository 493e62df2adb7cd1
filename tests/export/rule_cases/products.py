"""Matrix products."""

from __future__ import annotations

from itertools import product

import numpy as np

from export.rule_cases.case import FIXED, ONE_AND_THREE, Case

LENGTHS = ({"N": 1, "T": 3}, {"N": 3, "T": 1}, {"N": 2, "T": 4})
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

VECTOR = "TensorRT takes no vector times several matrices"


def matmul(
    what: str,
    shape: tuple[int | str, ...],
    call: str,
    constant: tuple[int, ...],
    opset: int = 20,
    rtx: str = "",
) -> Case:
    """A case of one MatMul of x and a constant w."""
    at = LENGTHS if "T" in shape else ONE_AND_THREE if "N" in shape else FIXED
    return Case(
        "MatMul", what, shape, f"y = MatMul ({call})", {"w": constant}, at, opset=opset, rtx=rtx
    )


PRODUCTS += [
    matmul("matrix x times vector", ("N", 3), "x, w", (3,)),
    matmul("matrix x times vector, opset 13", ("N", 3), "x, w", (3,), 13),
    matmul("matrices x times vector", ("N", 2, 3), "x, w", (3,)),
    matmul("vector times matrix x", (3, "N"), "w, x", (3,)),
    matmul("vector times matrices x", ("N", 3, 2), "w, x", (3,)),
    matmul("vector times matrices x, dynamic", ("N", 3, "T"), "w, x", (3,)),
    matmul("vector x times matrix", (3,), "x, w", (3, 4)),
    matmul("vector x times square matrix", (3,), "x, w", (3, 3)),
    matmul("vector x times matrices", (3,), "x, w", (2, 3, 4), rtx=VECTOR),
    matmul("vector x times many matrices", (3,), "x, w", (2, 2, 3, 4), rtx=VECTOR),
    matmul("matrix times vector x", (3,), "w, x", (4, 3)),
    matmul("matrices times vector x", (3,), "w, x", (2, 4, 3)),
    matmul("many matrices times vector x", (3,), "w, x", (2, 2, 4, 3)),
    matmul("vector x times vector", (3,), "x, w", (3,)),
    matmul("vector times vector x", (3,), "w, x", (3,)),
    matmul("vectors of size 1", (1,), "w, x", (1,)),
    matmul("dynamic vector x times itself", ("N",), "x, x", (1,)),
    matmul("x lacks two axes, right", (3, "N"), "w, x", (2, 2, 1, 3)),
    matmul("x has two axes more", ("N", 2, 1, 3), "x, w", (3, 4)),
    matmul("each lacks what the other has", ("N", 1, 2, 3), "x, w", (4, 3, 2)),
    matmul("x is repeated along two axes", (1, 1, 2, 3), "x, w", (2, 4, 3, 2)),
    Case(
        "MatMul",
        "both depend on x, ranks differ",
        ("N", 2, 3),
        "m = ReduceSum <keepdims = 0> (x, first)\n t = Transpose (m)\n y = MatMul (x, t)",
        {"first": [0]},
    ),
    Case(
        "MatMul",
        "a matrix and a vector that depend on x",
        ("N", 2, 3),
        "v = ReduceSum <keepdims = 0> (x, others)\n y = MatMul (x, v)",
        {"others": [0, 1]},
    ),
]

TRIANGLES = [
    Case(
        "Trilu",
        f"{what}, {'upper' if upper else 'lower'}",
        shape,
        f"y = Trilu <upper = {upper}> ({'x' if k is None else 'x, k'})",
        {} if k is None else {"k": np.array(k)},
        at,
        opset=opset,
    )
    for upper in (0, 1)
    for what, shape, k, at, opset in (
        ("k left out", ("N", 3, 4), None, ONE_AND_THREE, 14),
        ("k = 1", ("N", 2, 4, 3), 1, ONE_AND_THREE, 20),
        ("k = -2", ("N", 4, 3), -2, ONE_AND_THREE, 20),
        ("beyond the corner", ("N", 2, 2), 5, ONE_AND_THREE, 20),
        ("dynamic", ("N", "T"), 0, LENGTHS, 20),
        ("one column", ("N", 3, 1), 0, ONE_AND_THREE, 20),
    )
]
TRIANGLES.append(Case("Trilu", "no attributes", ("N", 3, 3), "y = Trilu (x)", opset=14))

CASES = [*PRODUCTS, *TRIANGLES]
