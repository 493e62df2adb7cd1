"""Graphs of several ops."""

from __future__ import annotations

import numpy as np

from export.rule_cases.case import ANY_IMAGE, SMALL, Case

COMPOSITES = [
    Case(
        "",
        "residual block, stride 1",
        ("N", 2, 3, 3),
        """
        n = BatchNormalization (x, s, b, m, v)
        r = Relu (n)
        c = Conv <pads = [1, 1, 1, 1]> (r, w1)
        d = Relu (c)
        e = Conv <pads = [1, 1, 1, 1]> (d, w2, b)
        y = Add (e, x)
        """,
        {
            "s": (2,),
            "b": (2,),
            "m": (2,),
            "v": np.array([0.5, 1.5]),
            "w1": (2, 2, 3, 3),
            "w2": (2, 2, 3, 3),
        },
    ),
    Case(
        "",
        "residual block, stride 2, then a classifier",
        ("N", 2, 5, 5),
        """
        r = Relu (x)
        c = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (r, w1)
        k = Conv <strides = [2, 2]> (r, w2)
        a = Add (c, k)
        g = Relu (a)
        p = GlobalAveragePool (g)
        f = Flatten (p)
        y = Gemm <transB = 1> (f, w3, b)
        """,
        {"w1": (2, 2, 3, 3), "w2": (2, 2, 1, 1), "w3": (3, 2), "b": (3,)},
    ),
    Case(
        "",
        "dense block with a transition",
        ("N", 2, 4, 4),
        """
        r1 = Relu (x)
        c1 = Conv <pads = [1, 1, 1, 1]> (r1, w1)
        d1 = Concat <axis = 1> (x, c1)
        r2 = Relu (d1)
        c2 = Conv <pads = [1, 1, 1, 1]> (r2, w2)
        d2 = Concat <axis = 1> (d1, c2)
        y = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (d2)
        """,
        {"w1": (1, 2, 3, 3), "w2": (1, 3, 3, 3)},
        at=({"N": 1}, {"N": 2}),
    ),
    Case(
        "",
        "squeeze and excite",
        ("N", 3, 3, 2),
        """
        p = GlobalAveragePool (x)
        h = Conv (p, w1)
        r = Relu (h)
        g = Conv (r, w2)
        y = Mul (x, g)
        """,
        {"w1": (2, 3, 1, 1), "w2": (3, 2, 1, 1)},
    ),
    Case(
        "",
        "x times its mean, any size",
        ANY_IMAGE,
        "p = GlobalAveragePool (x)\n y = Mul (p, x)",
        at=SMALL,
    ),
    Case(
        "",
        "reshape to a shape computed at run time",
        ANY_IMAGE,
        """
        s = Shape (x)
        n = Gather (s, zero)
        t = Concat <axis = 0> (n, rest)
        a = Relu (x)
        y = Reshape (a, t)
        """,
        {"zero": [0], "rest": [-1]},
        at=SMALL,
        empty=False,
    ),
    Case(
        "",
        "reshape there and back through its own shape",
        ("N", 2, 3),
        "s = Shape (x)\n a = Flatten (x)\n b = MatMul (a, w)\n c = Reshape (b, s)\n y = Mul (c, x)",
        {"w": (6, 6)},
    ),
    Case(
        "",
        "a value used three times",
        ("N", 3),
        "a = Mul (x, c)\n b = Mul (a, a)\n d = Add (a, b)\n e = Neg (a)\n y = Sub (d, e)",
        {"c": (3,)},
    ),
    Case(
        "",
        "a branch that no output needs",
        ("N", 3),
        "a = Mul (x, x)\n b = Softmax (a)\n y = Add (a, x)",
    ),
    Case(
        "",
        "standardized by its own mean and variance",
        ("N", 4),
        """
        m = ReduceMean (x, axes)
        d = Sub (x, m)
        q = Mul (d, d)
        v = ReduceMean (q, axes)
        f = Add (v, one)
        y = Div (d, f)
        """,
        {"axes": [-1], "one": np.array(1.0)},
    ),
    Case(
        "",
        "an output that is also used inside",
        ("N", 3),
        "y = Relu (x)\n a = Mul (y, y)\n b = Neg (a)",
    ),
    Case(
        "",
        "images of a batch mix",
        ("N", 3),
        "m = ReduceMean <keepdims = 0> (x)\n a = Mul (x, m)\n t = Transpose (a)\ny = MatMul (a, t)",
    ),
    Case(
        "",
        "channels last and back",
        ("N", 2, 2, 3),
        """
        a = Transpose <perm = [0, 2, 3, 1]> (x)
        b = MatMul (a, w)
        c = Transpose <perm = [0, 3, 1, 2]> (b)
        y = Relu (c)
        """,
        {"w": (2, 3)},
    ),
]
