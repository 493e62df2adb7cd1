"""Convolutions."""

from __future__ import annotations

from export.rule_cases.case import ANY_IMAGE, IMAGE, ONE_AND_THREE, SMALL, Case, Constant, Sizes


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

CASES = CONVOLUTIONS
