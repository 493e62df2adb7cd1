"""Convolutions."""

from __future__ import annotations

from export.rule_cases.case import ANY_IMAGE, IMAGE, ONE_AND_THREE, SMALL, Case, Constant, Sizes

ONE: tuple[Sizes, ...] = ({"N": 2},)


def conv(
    what: str,
    shape: tuple[int | str, ...],
    attributes: str,
    weight: tuple[int, ...],
    bias: bool = False,
    at: tuple[Sizes, ...] = ONE_AND_THREE,
    constant_nodes: bool = False,
) -> Case:
    """A case of one Conv."""
    constants: dict[str, Constant] = {"w": weight, "b": (weight[0],)} if bias else {"w": weight}
    text = f"y = Conv <{attributes}> (x, w{', b' if bias else ''})"
    return Case("Conv", what, shape, text, constants, at, constant_nodes)


CONVOLUTIONS = [
    conv("1-D, kernel 3", ("N", 2, 5), "pads = [1, 1]", (3, 2, 3), bias=True),
    conv("1-D, kernel 1", ("N", 2, 3), "kernel_shape = [1]", (3, 2, 1)),
    conv("1-D, stride 2", ("N", 2, 6), "strides = [2]", (3, 2, 3)),
    conv("2-D, kernel 3", IMAGE, "pads = [1, 1, 1, 1]", (3, 2, 3, 3)),
    conv("2-D, kernel 3, bias", IMAGE, "pads = [1, 1, 1, 1]", (3, 2, 3, 3), bias=True),
    conv("2-D, kernel 1", IMAGE, "group = 1", (3, 2, 1, 1)),
    conv("2-D, kernel 1, bias", IMAGE, "group = 1", (3, 2, 1, 1), bias=True),
    conv("3-D, kernel 3", ("N", 1, 3, 3, 2), "pads = [1, 1, 1, 1, 1, 1]", (2, 1, 3, 3, 3)),
    conv("3-D, kernel 1 2 3", ("N", 2, 2, 3, 3), "group = 1", (1, 2, 1, 2, 3), bias=True),
    conv(
        "3-D, stride 2",
        ("N", 1, 4, 3, 4),
        "strides = [2, 2, 2], pads = [1, 1, 1, 0, 0, 0]",
        (2, 1, 2, 3, 3),
    ),
    conv("no pads", IMAGE, "group = 1", (3, 2, 3, 3)),
    conv("kernel 2", IMAGE, "group = 1", (3, 2, 2, 2)),
    conv("kernel 4, pads 1 and 2", IMAGE, "pads = [1, 1, 2, 2]", (3, 2, 4, 4)),
    conv("kernel 1 3", IMAGE, "pads = [0, 1, 0, 1]", (3, 2, 1, 3)),
    conv("kernel as large as the image", ("N", 2, 3, 3), "group = 1", (4, 2, 3, 3), bias=True),
    conv("auto_pad VALID", IMAGE, 'auto_pad = "VALID"', (3, 2, 3, 3)),
    conv("auto_pad NOTSET", IMAGE, 'auto_pad = "NOTSET", pads = [1, 0, 1, 0]', (3, 2, 3, 3)),
    conv("2 groups", ("N", 4, 3, 4), "group = 2, pads = [1, 1, 1, 1]", (6, 2, 3, 3)),
    conv("2 groups, 1-D", ("N", 4, 3), "group = 2, pads = [1, 1]", (2, 2, 3), bias=True),
    conv("3 groups, kernel 1", ("N", 6, 2, 2), "group = 3", (3, 2, 1, 1)),
    conv("depthwise", ("N", 3, 3, 4), "group = 3, pads = [1, 1, 1, 1]", (3, 1, 3, 3), bias=True),
    conv("depthwise, kernel 1", ("N", 3, 2, 2), "group = 3", (3, 1, 1, 1)),
    conv("depthwise, multiplier 2", ("N", 3, 3, 3), "group = 3", (6, 1, 2, 2)),
    conv("one channel, kernel 2", ("N", 1, 3, 3), "group = 1", (1, 1, 2, 2)),
    conv("tiles of 2", ("N", 2, 4, 6), "strides = [2, 2]", (3, 2, 2, 2), bias=True),
    conv("tiles of 3, square weight", ("N", 1, 6, 3), "strides = [3, 3]", (9, 1, 3, 3)),
    conv("tiles that do not fit", ("N", 2, 5, 4), "strides = [2, 2]", (3, 2, 2, 2)),
    conv("tiles of any number", ("N", 2, "H", "W"), "strides = [2, 2]", (3, 2, 2, 2), at=SMALL),
    conv("tiles, 2 groups", ("N", 4, 4, 4), "group = 2, strides = [2, 2]", (2, 2, 2, 2)),
    conv("dilation 2", IMAGE, "dilations = [2, 2], pads = [2, 2, 2, 2]", (3, 2, 3, 3)),
    conv("dilation 2 3", IMAGE, "dilations = [2, 3], pads = [0, 2, 1, 1]", (1, 2, 3, 2)),
    conv(
        "dilated depthwise",
        ("N", 2, 5, 5),
        "group = 2, dilations = [2, 2], pads = [1, 1, 1, 1]",
        (4, 1, 3, 3),
    ),
    conv("asymmetric pads", IMAGE, "pads = [0, 1, 2, 0]", (3, 2, 3, 3)),
    conv("pads beyond the reach", IMAGE, "pads = [3, 3, 3, 3]", (3, 2, 3, 3)),
    conv("pads beyond the reach, kernel 1", IMAGE, "pads = [1, 2, 0, 1]", (3, 2, 1, 1)),
    conv("pads beyond the reach on some sides", IMAGE, "pads = [3, 0, 0, 4]", (3, 2, 3, 3)),
    conv("pads beyond the reach, 1-D", ("N", 2, 3), "pads = [0, 2]", (3, 2, 2)),
    conv("stride 2, remainder", IMAGE, "strides = [2, 2], pads = [1, 1, 1, 1]", (3, 2, 3, 3)),
    conv("stride 2, bias", IMAGE, "strides = [2, 2]", (3, 2, 2, 2), bias=True),
    conv("stride 3, remainder 1 and 2", ("N", 2, 7, 8), "strides = [3, 3]", (2, 2, 3, 3)),
    conv("stride 3, remainder 0", ("N", 2, 6, 3), "strides = [3, 3]", (2, 2, 3, 3)),
    conv("stride 2 1", IMAGE, "strides = [2, 1], pads = [1, 1, 1, 1]", (3, 2, 3, 3)),
    conv("stride 2, kernel 1", ("N", 2, 4, 5), "strides = [2, 2]", (3, 2, 1, 1)),
    conv("stride 3, kernel 2: gaps", ("N", 2, 7, 6), "strides = [3, 3]", (3, 2, 2, 2)),
    conv("stride 2, asymmetric", IMAGE, "strides = [2, 2], pads = [0, 2, 1, 0]", (3, 2, 3, 3)),
    conv("stride 2, pads beyond", IMAGE, "strides = [2, 2], pads = [3, 4, 3, 3]", (3, 2, 2, 3)),
    conv("stride 2, kernel 1, pads", IMAGE, "strides = [2, 2], pads = [1, 2, 0, 1]", (3, 2, 1, 1)),
    conv("stride 2, 2 groups", ("N", 4, 4, 4), "group = 2, strides = [2, 2]", (2, 2, 3, 3)),
    conv(
        "stride 2, depthwise, multiplier 2",
        ("N", 2, 4, 5),
        "group = 2, strides = [2, 2], pads = [1, 1, 1, 1]",
        (4, 1, 3, 3),
    ),
    conv("stride larger than the image", ("N", 2, 3, 3), "strides = [4, 4]", (3, 2, 2, 2)),
    conv("dynamic, stride 1", ANY_IMAGE, "pads = [1, 1, 1, 1]", (3, 2, 3, 3), at=SMALL),
    conv("dynamic, pads beyond", ANY_IMAGE, "pads = [3, 0, 0, 4]", (1, 2, 3, 3), at=SMALL),
    conv(
        "dynamic, stride 2",
        ANY_IMAGE,
        "strides = [2, 2], pads = [1, 1, 1, 1]",
        (3, 2, 3, 3),
        at=SMALL,
    ),
    conv("dynamic, stride 3", ANY_IMAGE, "strides = [3, 3]", (3, 2, 3, 3), at=SMALL),
    conv("dynamic, stride 2, kernel 1", ANY_IMAGE, "strides = [2, 2]", (3, 2, 1, 1), at=SMALL),
    conv(
        "dynamic, stride 1 2",
        ANY_IMAGE,
        "strides = [1, 2], pads = [0, 1, 2, 0]",
        (3, 2, 2, 3),
        at=SMALL,
    ),
    conv(
        "dynamic width, stride 2",
        ("N", 2, 5, "W"),
        "strides = [2, 2], pads = [1, 0, 1, 1]",
        (3, 2, 2, 3),
        bias=True,
        at=({"N": 1, "W": 5}, {"N": 3, "W": 4}),
    ),
    conv(
        "dynamic height, stride 3, 1-D image",
        ("N", 2, "H"),
        "strides = [3]",
        (2, 2, 2),
        at=({"N": 1, "H": 5}, {"N": 3, "H": 6}, {"N": 1, "H": 7}),
    ),
    conv("Constant nodes", IMAGE, "group = 1", (3, 2, 3, 3), bias=True, constant_nodes=True),
    conv("Constant nodes, stride 2", IMAGE, "strides = [2, 2]", (3, 2, 3, 3), constant_nodes=True),
    Case(
        "Conv",
        "the weight is computed from constants",
        IMAGE,
        "s = Mul (w, f)\n y = Conv (x, s)",
        {"w": (3, 2, 3, 3), "f": (3, 1, 1, 1)},
    ),
    Case(
        "Conv",
        "one weight, used twice",
        IMAGE,
        "a = Conv <pads = [1, 1, 1, 1]> (x, w)\n y = Conv <strides = [2, 2]> (a, w)",
        {"w": (2, 2, 3, 3)},
    ),
]

CONVOLUTIONS += [
    conv(
        "strided and dilated",
        ("N", 2, 7, 6),
        "strides = [2, 2], dilations = [2, 2], pads = [1, 1, 1, 1]",
        (3, 2, 3, 2),
        bias=True,
    ),
    conv(
        "stride and dilation 2 3, groups, asymmetric",
        ("N", 4, 8, 7),
        "group = 2, strides = [2, 3], dilations = [3, 2], pads = [0, 2, 1, 0]",
        (6, 2, 2, 3),
    ),
    conv(
        "strided along one axis, dilated along the other",
        ("N", 1, 6, 6),
        "strides = [2, 1], dilations = [1, 2]",
        (2, 1, 2, 2),
    ),
    conv(
        "strided and dilated, pads beyond",
        ("N", 1, 4, 5),
        "strides = [2, 2], dilations = [2, 2], pads = [3, 4, 4, 3]",
        (2, 1, 2, 2),
    ),
    conv("strided, dilated kernel 1", IMAGE, "strides = [2, 2], dilations = [2, 2]", (3, 2, 1, 1)),
    conv(
        "strided and dilated, 1-D",
        ("N", 2, 9),
        "strides = [3], dilations = [2], pads = [1, 0]",
        (3, 2, 3),
    ),
    conv(
        "strided and dilated, 3-D",
        ("N", 1, 4, 3, 4),
        "strides = [2, 1, 2], dilations = [2, 1, 1]",
        (2, 1, 2, 2, 2),
    ),
    conv(
        "strided and dilated, dynamic",
        ANY_IMAGE,
        "strides = [2, 3], dilations = [2, 2], pads = [1, 1, 0, 1]",
        (3, 2, 2, 2),
        at=SMALL,
    ),
    conv(
        "strided and dilated, dynamic width",
        ("N", 2, 5, "W"),
        "strides = [2, 2], dilations = [2, 2], pads = [1, 1, 1, 1]",
        (3, 2, 2, 2),
        at=({"N": 1, "W": 4}, {"N": 3, "W": 5}),
    ),
    *(
        conv(f"auto_pad {same}{what}", shape, f'auto_pad = "{same}"{attributes}', weight, at=at)
        for same in ("SAME_UPPER", "SAME_LOWER")
        for what, shape, attributes, weight, at in (
            ("", IMAGE, "", (3, 2, 3, 3), ONE_AND_THREE),
            (", kernel 2", IMAGE, "", (3, 2, 2, 2), ONE_AND_THREE),
            (", stride 2", IMAGE, ", strides = [2, 2]", (3, 2, 3, 2), ONE_AND_THREE),
            (", kernel 1, stride 2", IMAGE, ", strides = [2, 2]", (3, 2, 1, 1), ONE_AND_THREE),
            (", dilation 2", IMAGE, ", dilations = [2, 2]", (3, 2, 2, 3), ONE_AND_THREE),
            (
                ", stride and dilation 2",
                IMAGE,
                ", strides = [2, 2], dilations = [2, 2]",
                (3, 2, 3, 2),
                ONE_AND_THREE,
            ),
            (", 1-D, stride 3", ("N", 2, 7), ", strides = [3]", (3, 2, 4), ONE_AND_THREE),
            (", 3-D, stride 2", ("N", 1, 3, 4, 2), ", strides = [2, 2, 2]", (2, 1, 3, 2, 2), ONE),
            (", dynamic", ANY_IMAGE, "", (3, 2, 3, 2), SMALL),
            (", dynamic, stride 2", ANY_IMAGE, ", strides = [2, 2]", (3, 2, 3, 4), SMALL),
            (", dynamic, stride 3 2", ANY_IMAGE, ", strides = [3, 2]", (3, 2, 1, 2), SMALL),
            (
                ", dynamic, stride and dilation",
                ANY_IMAGE,
                ", strides = [2, 1], dilations = [2, 1]",
                (3, 2, 2, 3),
                SMALL,
            ),
            (
                ", dynamic width, stride 2",
                ("N", 2, 5, "W"),
                ", strides = [2, 2]",
                (3, 2, 3, 3),
                ({"N": 1, "W": 4}, {"N": 3, "W": 5}),
            ),
        )
    ),
    Case(
        "Conv",
        "the weight is computed and reshaped from constants",
        ("N", 4, 5, 4),
        "s = Mul (w, f)\n t = Reshape (s, shape)\n"
        "y = Conv <strides = [2, 2], kernel_shape = [2, 3]> (x, t)",
        {"w": (3, 24), "f": (3, 1), "shape": [3, 4, -1, 3]},
    ),
    Case(
        "Conv",
        "the weight is computed, 2 groups",
        ("N", 4, 4, 3),
        "s = Mul (w, f)\n y = Conv <group = 2> (x, s)",
        {"w": (6, 2, 2, 2), "f": (1, 1, 2, 1)},
    ),
    Case(
        "Conv",
        "opset 13",
        IMAGE,
        "y = Conv <strides = [2, 1]> (x, w)",
        {"w": (3, 2, 3, 3)},
        opset=13,
    ),
    Case(
        "Conv",
        "opset 22",
        IMAGE,
        "y = Conv <strides = [2, 1]> (x, w)",
        {"w": (3, 2, 3, 3)},
        opset=22,
    ),
]


def transposed(
    what: str,
    shape: tuple[int | str, ...],
    attributes: str,
    weight: tuple[int, ...],
    bias: bool = False,
    at: tuple[Sizes, ...] = ONE_AND_THREE,
    opset: int = 20,
    rtx: str = "",
) -> Case:
    """A case of one ConvTranspose, of one group if it has a bias."""
    constants: dict[str, Constant] = {"w": weight, "b": (weight[1],)} if bias else {"w": weight}
    text = f"y = ConvTranspose <{attributes}> (x, w{', b' if bias else ''})"
    return Case("ConvTranspose", what, shape, text, constants, at, opset=opset, rtx=rtx)


TRANSPOSED = [
    transposed("1-D", ("N", 2, 4), "group = 1", (2, 3, 3)),
    transposed("1-D, stride 2", ("N", 2, 4), "strides = [2]", (2, 3, 3), bias=True),
    transposed("kernel 3", ("N", 2, 3, 4), "group = 1", (2, 3, 3, 3), bias=True),
    transposed("kernel 2, stride 2", ("N", 2, 3, 2), "strides = [2, 2]", (2, 3, 2, 2)),
    transposed(
        "kernel 4, stride 2, pads 1",
        ("N", 2, 3, 2),
        "strides = [2, 2], pads = [1, 1, 1, 1]",
        (2, 3, 4, 4),
    ),
    transposed(
        "output padding",
        ("N", 2, 3, 2),
        "strides = [2, 3], pads = [1, 0, 0, 1], output_padding = [1, 2]",
        (2, 3, 3, 3),
    ),
    transposed("stride larger than the kernel", ("N", 2, 3, 2), "strides = [3, 2]", (2, 3, 2, 1)),
    transposed("dilated", ("N", 2, 4, 3), "dilations = [2, 3], pads = [1, 2, 0, 1]", (2, 3, 2, 2)),
    transposed(
        "strided and dilated",
        ("N", 2, 3, 3),
        "strides = [2, 2], dilations = [2, 2]",
        (2, 3, 3, 2),
        rtx="it has no strided and dilated ConvTranspose",
    ),
    transposed(
        "output padding beyond the stride",
        ("N", 2, 3, 3),
        "strides = [2, 1], dilations = [3, 3], pads = [1, 0, 1, 1], output_padding = [2, 1]",
        (2, 3, 2, 3),
        rtx="it has no strided and dilated ConvTranspose",
    ),
    transposed("2 groups", ("N", 4, 3, 2), "group = 2, strides = [2, 1]", (4, 3, 3, 2)),
    transposed("depthwise", ("N", 3, 3, 2), "group = 3, strides = [2, 2]", (3, 1, 2, 2)),
    transposed("pads beyond the reach", ("N", 2, 5, 5), "pads = [2, 3, 3, 2]", (2, 3, 2, 2)),
    transposed("square weight", ("N", 3, 3, 3), "strides = [2, 2]", (3, 3, 3, 3)),
    transposed("3-D", ("N", 1, 2, 3, 2), "strides = [2, 1, 2]", (1, 2, 2, 2, 3), bias=True),
    transposed(
        "output_shape",
        ("N", 2, 3, 3),
        "strides = [2, 2], output_shape = [6, 5]",
        (2, 3, 3, 4),
    ),
    transposed(
        "output_shape, auto_pad SAME_UPPER",
        ("N", 2, 3, 3),
        'strides = [2, 2], output_shape = [6, 5], auto_pad = "SAME_UPPER"',
        (2, 3, 3, 4),
    ),
    *(
        transposed(f"auto_pad {same}{what}", shape, f'auto_pad = "{same}"{more}', weight, at=at)
        for same in ("SAME_UPPER", "SAME_LOWER", "VALID")
        for what, shape, more, weight, at in (
            (", stride 2", ("N", 2, 3, 2), ", strides = [2, 2]", (2, 3, 3, 4), ONE_AND_THREE),
            (", dynamic", ANY_IMAGE, ", strides = [2, 2]", (2, 3, 3, 2), SMALL),
        )
    ),
    transposed(
        "dynamic", ANY_IMAGE, "strides = [2, 2], pads = [1, 0, 0, 1]", (2, 3, 3, 3), at=SMALL
    ),
    transposed("opset 13", ("N", 2, 3, 2), "strides = [2, 2]", (2, 3, 2, 2), opset=13),
    transposed("opset 22", ("N", 2, 3, 2), "strides = [2, 2]", (2, 3, 2, 2), opset=22),
    Case(
        "ConvTranspose",
        "of a convolution with the same weight",
        ("N", 2, 5, 5),
        "a = Conv <strides = [2, 2]> (x, w)\n y = ConvTranspose <strides = [2, 2]> (a, w)",
        {"w": (3, 2, 3, 3)},
    ),
]

CASES = [*CONVOLUTIONS, *TRANSPOSED]
