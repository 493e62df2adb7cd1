"""Pools: maxima, and means and norms of windows of any geometry."""

from __future__ import annotations

from export.rule_cases.case import ANY_IMAGE, IMAGE, ONE_AND_THREE, SMALL, Case, Sizes

WIDER: tuple[Sizes, ...] = (
    {"N": 1, "H": 7, "W": 6},
    {"N": 3, "H": 6, "W": 9},
    {"N": 1, "H": 8, "W": 8},
)
ONE: tuple[Sizes, ...] = ({"N": 2},)
K2_S2 = "kernel_shape = [2, 2], strides = [2, 2]"
K3_S2 = "kernel_shape = [3, 3], strides = [2, 2]"
PADDED = "pads = [1, 1, 1, 1]"

# What every pool takes: label, shape of x, attributes, sizes.
Geometry = tuple[str, tuple[int | str, ...], str, tuple[Sizes, ...]]
GEOMETRIES: list[Geometry] = [
    ("k3 s2 p1", ("N", 2, 6, 5), f"{K3_S2}, {PADDED}", ONE_AND_THREE),
    ("k3 s1 p1", IMAGE, f"kernel_shape = [3, 3], {PADDED}", ONE_AND_THREE),
    ("k3 s2, asymmetric", ("N", 2, 6, 5), f"{K3_S2}, pads = [0, 1, 2, 1]", ONE_AND_THREE),
    ("k2 s2, ceil", ("N", 2, 5, 4), f"{K2_S2}, ceil_mode = 1", ONE_AND_THREE),
    ("k3 s2 p1, ceil", ("N", 2, 6, 5), f"{K3_S2}, {PADDED}, ceil_mode = 1", ONE_AND_THREE),
    (
        "k3 2 s2 3, strides differ",
        ("N", 2, 6, 7),
        "kernel_shape = [3, 2], strides = [2, 3], pads = [1, 0, 0, 1]",
        ONE_AND_THREE,
    ),
    ("1-D, k3 s2 p1", ("N", 2, 6), "kernel_shape = [3], strides = [2], pads = [1, 1]", ONE),
    ("1-D, k2 s2, ceil", ("N", 2, 5), "kernel_shape = [2], strides = [2], ceil_mode = 1", ONE),
    (
        "3-D, k2 s2 1 2 p0 1 0",
        ("N", 1, 3, 2, 4),
        "kernel_shape = [2, 2, 2], strides = [2, 1, 2], pads = [0, 1, 0, 0, 0, 1]",
        ONE,
    ),
    ("SAME_UPPER", IMAGE, f'{K3_S2}, auto_pad = "SAME_UPPER"', ONE_AND_THREE),
    ("SAME_LOWER", IMAGE, f'{K2_S2}, auto_pad = "SAME_LOWER"', ONE_AND_THREE),
    ("SAME_UPPER s1", IMAGE, 'kernel_shape = [2, 3], auto_pad = "SAME_UPPER"', ONE_AND_THREE),
    ("VALID", IMAGE, f'{K3_S2}, auto_pad = "VALID"', ONE_AND_THREE),
    ("dynamic, k2 s2", ANY_IMAGE, K2_S2, SMALL),
    ("dynamic, k3 s2 p1", ANY_IMAGE, f"{K3_S2}, {PADDED}", SMALL),
    ("dynamic, k3 s1 p1", ANY_IMAGE, f"kernel_shape = [3, 3], {PADDED}", SMALL),
    ("dynamic, k3 s2 p1, ceil", ANY_IMAGE, f"{K3_S2}, {PADDED}, ceil_mode = 1", SMALL),
    ("dynamic, SAME_UPPER", ANY_IMAGE, f'{K3_S2}, auto_pad = "SAME_UPPER"', SMALL),
    ("dynamic, SAME_LOWER", ANY_IMAGE, f'{K2_S2}, auto_pad = "SAME_LOWER"', SMALL),
    (
        "dynamic, SAME_LOWER s1",
        ANY_IMAGE,
        'kernel_shape = [2, 3], auto_pad = "SAME_LOWER"',
        SMALL,
    ),
    (
        "dynamic width, k3 2 s2 3",
        ("N", 2, 5, "W"),
        "kernel_shape = [3, 2], strides = [2, 3], pads = [1, 0, 1, 1]",
        ({"N": 1, "W": 4}, {"N": 3, "W": 6}),
    ),
]
# As above, but TensorRT has a window more here.
LATE: list[Geometry] = [
    (
        "k2 s3 p1, ceil: the last window would start in the padding",
        ("N", 1, 6, 5),
        "kernel_shape = [2, 2], strides = [3, 3], pads = [1, 1, 1, 1], ceil_mode = 1",
        ONE_AND_THREE,
    ),
]
# As above, but TensorRT pools without dilation only.
DILATED: list[Geometry] = [
    ("dilated", ("N", 2, 6, 5), "kernel_shape = [2, 3], dilations = [3, 2]", ONE_AND_THREE),
    (
        "strided and dilated, padded",
        ("N", 2, 6, 6),
        "kernel_shape = [2, 3], strides = [2, 3], dilations = [3, 2], pads = [1, 2, 0, 1]",
        ONE_AND_THREE,
    ),
    (
        "strided and dilated, ceil",
        ("N", 2, 7, 6),
        "kernel_shape = [2, 2], strides = [2, 2], dilations = [2, 2], ceil_mode = 1",
        ONE_AND_THREE,
    ),
    (
        "dynamic, strided and dilated, padded",
        ANY_IMAGE,
        "kernel_shape = [2, 3], strides = [2, 1], dilations = [3, 2], pads = [1, 1, 1, 1]",
        WIDER,
    ),
    (
        "dynamic, strided and dilated, SAME_UPPER",
        ANY_IMAGE,
        'kernel_shape = [2, 2], strides = [3, 2], dilations = [2, 3], auto_pad = "SAME_UPPER"',
        WIDER,
    ),
]
ALL_GEOMETRIES: list[tuple[list[Geometry], str]] = [
    (GEOMETRIES, ""),
    (LATE, "it counts a window that starts in the padding"),
    (DILATED, "it pools without dilation only"),
]


def pools(op: str, more: str = "", label: str = "") -> list[Case]:
    """A case of a pool for each geometry."""
    return [
        Case(
            op,
            f"{what}{label}",
            shape,
            f"y = {op} <{attributes}{more}> (x)",
            at=at,
            opset=22,
            rtx=rtx,
        )
        for geometries, rtx in ALL_GEOMETRIES
        for what, shape, attributes, at in geometries
    ]


MAXIMA = [
    *pools("MaxPool"),
    Case("MaxPool", "k2 s2", ("N", 2, 4, 6), f"y = MaxPool <{K2_S2}> (x)"),
    Case("MaxPool", "k2 s2, remainder", ("N", 2, 5, 5), f"y = MaxPool <{K2_S2}> (x)"),
    Case("MaxPool", "k1 s1", ("N", 2, 3, 3), "y = MaxPool <kernel_shape = [1, 1]> (x)"),
    Case(
        "MaxPool",
        "k2 s3: gaps",
        ("N", 2, 6, 7),
        "y = MaxPool <kernel_shape = [2, 2], strides = [3, 3]> (x)",
    ),
    Case(
        "MaxPool",
        "k5 s1 p2, taken axis by axis",
        ("N", 1, 5, 6),
        "y = MaxPool <kernel_shape = [5, 5], pads = [2, 2, 2, 2]> (x)",
    ),
    Case(
        "MaxPool",
        "k4 5 s2 3, ceil, taken axis by axis",
        ("N", 2, 7, 6),
        "y = MaxPool <kernel_shape = [4, 5], strides = [2, 3], pads = [1, 0, 2, 1], "
        "ceil_mode = 1> (x)",
    ),
    Case(
        "MaxPool",
        "3-D k3 s2 p1, taken axis by axis",
        ("N", 1, 3, 4, 3),
        "y = MaxPool <kernel_shape = [3, 3, 3], strides = [2, 2, 2], pads = [1, 1, 1, 1, 1, 1]>"
        " (x)",
    ),
    Case(
        "MaxPool",
        "dynamic, k4 5, taken axis by axis",
        ANY_IMAGE,
        "y = MaxPool <kernel_shape = [4, 5], strides = [2, 3], pads = [2, 1, 1, 3]> (x)",
        at=SMALL,
    ),
    Case(
        "MaxPool",
        "dynamic, k4 s2, SAME_UPPER, taken axis by axis",
        ANY_IMAGE,
        'y = MaxPool <kernel_shape = [4, 4], strides = [2, 3], auto_pad = "SAME_UPPER"> (x)',
        at=SMALL,
    ),
    Case(
        "MaxPool",
        "indices, which nothing uses",
        ("N", 2, 5, 5),
        f"y, i = MaxPool <{K3_S2}, storage_order = 1> (x)",
        opset=13,
        rtx="it gives no indices",
    ),
    Case("MaxPool", "opset 13", IMAGE, f"y = MaxPool <{K3_S2}, {PADDED}> (x)", opset=13),
    Case("MaxPool", "k4, opset 13", IMAGE, "y = MaxPool <kernel_shape = [4, 4]> (x)", opset=13),
    Case("GlobalMaxPool", "1-D", ("N", 2, 5), "y = GlobalMaxPool (x)"),
    Case("GlobalMaxPool", "2-D", ("N", 2, 3, 4), "y = GlobalMaxPool (x)"),
    Case("GlobalMaxPool", "3-D", ("N", 2, 2, 3, 2), "y = GlobalMaxPool (x)"),
    Case("GlobalMaxPool", "one cell", ("N", 3, 1, 1), "y = GlobalMaxPool (x)"),
    Case("GlobalMaxPool", "dynamic", ANY_IMAGE, "y = GlobalMaxPool (x)", at=SMALL),
    Case("GlobalMaxPool", "opset 13", IMAGE, "y = GlobalMaxPool (x)", opset=13),
    Case(
        "GlobalMaxPool",
        "dynamic width",
        ("N", 2, 3, "W"),
        "y = GlobalMaxPool (x)",
        at=({"N": 1, "W": 4}, {"N": 3, "W": 1}),
    ),
]

MEANS = [
    *pools("AveragePool", ", count_include_pad = 0", ", padding left out"),
    *pools("AveragePool", ", count_include_pad = 1", ", padding counted"),
    Case(
        "AveragePool",
        "any number of channels",
        ("N", "C", 6, 6),
        f"y = AveragePool <{K3_S2}> (x)",
        at=({"N": 1, "C": 2}, {"N": 3, "C": 1}),
    ),
    Case("AveragePool", "opset 13", IMAGE, f"y = AveragePool <{K3_S2}, {PADDED}> (x)", opset=13),
]

ONLY_1_AND_2 = "it has p = 1 and p = 2 only"


def norm(shape: tuple[int | str, ...], p: int, rtx: str) -> str:
    """Why TensorRT does not take this LpPool."""
    if rtx or p > 2:
        return rtx or ONLY_1_AND_2
    return "it has no LpPool of one axis" if len(shape) == 3 else ""


NORMS = [
    *(
        Case(
            "LpPool",
            f"{what}, p = {p}",
            shape,
            f"y = LpPool <{attributes}, p = {p}> (x)",
            at=at,
            opset=22,
            rtx=norm(shape, p, rtx),
        )
        for geometries, rtx in ALL_GEOMETRIES
        for number, (what, shape, attributes, at) in enumerate(geometries)
        for p in ([2] if number % 3 else [1, 3, 4])
    ),
    Case("LpPool", "opset 13", IMAGE, f"y = LpPool <{K3_S2}> (x)", opset=13),
    *(
        Case("GlobalLpPool", f"p = {p}", IMAGE, f"y = GlobalLpPool <p = {p}> (x)")
        for p in (1, 2, 3, 4)
    ),
    Case("GlobalLpPool", "1-D", ("N", 2, 3), "y = GlobalLpPool (x)"),
    Case("GlobalLpPool", "3-D", ("N", 2, 2, 1, 3), "y = GlobalLpPool (x)"),
    Case("GlobalLpPool", "dynamic", ANY_IMAGE, "y = GlobalLpPool (x)", at=SMALL),
]

CASES = [*MAXIMA, *MEANS, *NORMS]
