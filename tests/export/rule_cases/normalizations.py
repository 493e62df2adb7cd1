"""Normalizations."""

from __future__ import annotations

from collections.abc import Mapping

from export.rule_cases.case import ANY_IMAGE, FIXED, IMAGE, ONE_AND_THREE, SMALL, Case, Constant

SEQUENCE = ("N", "T", 4)
LENGTHS = ({"N": 1, "T": 3}, {"N": 3, "T": 1}, {"N": 2, "T": 4})
# x becomes scale and bias too, so that all three depend on it.
SUMS = "s = ReduceSum <keepdims = 0> (x, others)\n"


def layer(
    what: str,
    shape: tuple[int | str, ...],
    call: str,
    constants: Mapping[str, Constant],
    attributes: str = "",
    opset: int = 17,
) -> Case:
    """A case of one LayerNormalization."""
    at = FIXED if "N" not in shape else LENGTHS if "T" in shape else ONE_AND_THREE
    text = f"y = LayerNormalization {f'<{attributes}>' if attributes else ''} ({call})"
    return Case("LayerNormalization", what, shape, text, constants, at, opset=opset)


LAYER = [
    layer("no bias", ("N", 3, 4), "x, s", {"s": (4,)}),
    layer("bias", ("N", 3, 4), "x, s, b", {"s": (4,), "b": (4,)}),
    layer("opset 21", ("N", 3, 4), "x, s, b", {"s": (4,), "b": (4,)}, opset=21),
    layer("dynamic length", SEQUENCE, "x, s, b", {"s": (4,), "b": (4,)}),
    layer("dynamic axis", SEQUENCE, "x, s, b", {"s": (4,), "b": (1, 4)}, "axis = 1"),
    layer("axis 1", ("N", 3, 4), "x, s, b", {"s": (3, 4), "b": (3, 4)}, "axis = 1"),
    layer("axis -2 of four", IMAGE, "x, s", {"s": (5, 4)}, "axis = -2"),
    layer("axis -3 of four, channel scale", IMAGE, "x, s", {"s": (2, 1, 1)}, "axis = -3"),
    layer("axis 0", (2, 3), "x, s", {"s": (2, 3)}, "axis = 0"),
    layer("scale for more axes than one", ("N", 3, 4), "x, s, b", {"s": (1, 3, 4), "b": (3, 1)}),
    layer("scale of one element", ("N", 3, 4), "x, s, b", {"s": (1,), "b": ()}),
    layer("epsilon", ("N", 4), "x, s", {"s": (4,)}, "epsilon = 0.5"),
    layer("stash_type of float64", ("N", 4), "x, s", {"s": (4,)}, "stash_type = 11"),
    layer("one element", ("N", 3, 1), "x, s", {"s": (1,)}, "epsilon = 0.1"),
    layer("x is the scale", (4,), "a, x, b", {"a": (2, 3, 4), "b": (4,)}),
    layer("x is the scale, repeated", (3, 1), "a, x", {"a": (2, 3, 4)}, "axis = 1"),
    layer("x is the bias", (1, 4), "a, s, x", {"a": (2, 3, 4), "s": (4,)}),
    Case(
        "LayerNormalization",
        "x is everything",
        (2, 3, 4),
        f"{SUMS}y = LayerNormalization <axis = 1> (x, s, s)",
        {"others": [0]},
        FIXED,
    ),
]

STATISTICS = "TensorRT computes no more than the first output"
LAYER += [
    Case(
        "LayerNormalization",
        f"the logits are {what}",
        shape,
        "n, mean, inverse = LayerNormalization <axis = 1> (x, s)\n"
        f"m = Cast <to = 11> (mean)\nr = Cast <to = 11> (inverse)\n{text}",
        {"s": (4,)},
        LENGTHS if "T" in shape else ONE_AND_THREE,
        opset=17,
        rtx=STATISTICS,
    )
    for what, shape, text in (
        ("the mean", ("N", 3, 4), "y = Neg (m)"),
        ("the inverse deviation", ("N", 3, 4), "y = Neg (r)"),
        ("made of all outputs", ("N", 3, 4), "a = Mul (n, m)\ny = Add (a, r)"),
        ("made of all outputs, dynamic", SEQUENCE, "a = Mul (n, m)\ny = Add (a, r)"),
    )
]

RMS = [
    Case(
        "RMSNormalization",
        what,
        shape,
        f"y = RMSNormalization {f'<{attributes}>' if attributes else ''} ({call})",
        constants,
        LENGTHS if "T" in shape else ONE_AND_THREE if "N" in shape else FIXED,
        opset=23,
    )
    for what, shape, call, constants, attributes in (
        ("last axis", ("N", 3, 4), "x, s", {"s": (4,)}, ""),
        ("dynamic axis", SEQUENCE, "x, s", {"s": (4,)}, "axis = 1"),
        ("axis -2", ("N", 3, 4), "x, s", {"s": (3, 1)}, "axis = -2, epsilon = 0.1"),
        ("one element", ("N", 3, 1), "x, s", {"s": (1,)}, "epsilon = 0.1"),
        ("stash_type of float64", ("N", 4), "x, s", {"s": ()}, "stash_type = 11"),
        ("x is the scale", (3, 1), "a, x", {"a": (2, 3, 4)}, ""),
    )
]
RMS.append(
    Case(
        "RMSNormalization",
        "x is both",
        (2, 3, 4),
        f"{SUMS}y = RMSNormalization <axis = 1> (x, s)",
        {"others": [0]},
        FIXED,
        opset=23,
    )
)

INSTANCE = [
    Case(
        "InstanceNormalization",
        what,
        shape,
        f"y = InstanceNormalization <epsilon = {epsilon}> ({call})",
        constants,
        at,
        opset=opset,
        rtx="TensorRT normalizes two cells or more" if what == "one cell" else "",
    )
    for what, shape, epsilon, call, constants, at, opset in (
        ("2-D", IMAGE, 1e-5, "x, s, b", {"s": (2,), "b": (2,)}, ONE_AND_THREE, 20),
        ("opset 13", IMAGE, 1e-5, "x, s, b", {"s": (2,), "b": (2,)}, ONE_AND_THREE, 13),
        ("opset 22", IMAGE, 1e-5, "x, s, b", {"s": (2,), "b": (2,)}, ONE_AND_THREE, 22),
        ("1-D", ("N", 3, 4), 0.1, "x, s, b", {"s": (3,), "b": (3,)}, ONE_AND_THREE, 20),
        ("3-D", ("N", 2, 2, 3, 2), 0.1, "x, s, b", {"s": (2,), "b": (2,)}, ONE_AND_THREE, 20),
        ("dynamic", ANY_IMAGE, 0.01, "x, s, b", {"s": (2,), "b": (2,)}, SMALL, 20),
        ("one cell", ("N", 3, 1, 1), 0.1, "x, s, b", {"s": (3,), "b": (3,)}, ONE_AND_THREE, 20),
        ("x is the scale", (2,), 0.1, "a, x, b", {"a": (3, 2, 4), "b": (2,)}, FIXED, 20),
        ("x is the bias", (2,), 0.1, "a, s, x", {"a": (3, 2, 4), "s": (2,)}, FIXED, 20),
    )
]
INSTANCE.append(
    Case(
        "InstanceNormalization",
        "x is everything",
        IMAGE,
        f"{SUMS}y = InstanceNormalization (x, s, s)",
        {"others": [0, 2, 3]},
    )
)

# ONNX refuses the op of opset 18 to 20, whose scale was per group. Its shape inference knows none.
GROUP = [
    Case(
        "GroupNormalization",
        f"{what}, opset {opset}",
        shape,
        f"y = GroupNormalization <num_groups = {groups}, epsilon = {epsilon}> (x, s, b)",
        {"s": (factors,), "b": (factors,)},
        at,
        opset=opset,
        rtx="" if len(shape) > 2 else "TensorRT normalizes groups of three axes or more",
        y=shape,
    )
    for what, shape, groups, factors, epsilon, at, opset in (
        ("two groups", ("N", 4, 3, 2), 2, 4, 1e-5, ONE_AND_THREE, 21),
        ("two groups", ("N", 4, 3, 2), 2, 4, 1e-5, ONE_AND_THREE, 23),
        ("one group", ("N", 3, 2, 2), 1, 3, 0.1, ONE_AND_THREE, 21),
        ("a group for each channel", ("N", 3, 4), 3, 3, 0.1, ONE_AND_THREE, 21),
        ("no spatial axes", ("N", 6), 2, 6, 0.1, ONE_AND_THREE, 21),
        ("3-D", ("N", 4, 2, 1, 3), 2, 4, 0.1, ONE_AND_THREE, 21),
        ("dynamic", ("N", 4, "H", "W"), 2, 4, 0.01, SMALL, 21),
        ("dynamic height", ("N", 4, "H", 3), 2, 4, 0.01, SMALL, 21),
    )
]
GROUP.append(
    Case(
        "GroupNormalization",
        "x is everything",
        ("N", 4, 3),
        f"{SUMS}y = GroupNormalization <num_groups = 2> (x, s, s)",
        {"others": [0, 2]},
        opset=21,
        y=("N", 4, 3),
    )
)
GROUP += [
    Case(
        "GroupNormalization",
        f"x is {what}",
        (4,),
        f"y = GroupNormalization <num_groups = 2> (a, {call})",
        {"a": (2, 4, 3), "c": (4,)},
        FIXED,
        opset=21,
        y=(2, 4, 3),
    )
    for what, call in (("the scale", "x, c"), ("the bias", "c, x"))
]

LP = [
    Case(
        "LpNormalization",
        f"p = {p}, {what}",
        shape,
        f"y = LpNormalization <p = {p}{attributes}> (x)",
        {},
        at,
        opset=opset,
    )
    for p in (1, 2)
    for what, shape, attributes, at, opset in (
        ("last axis", ("N", 3, 4), "", ONE_AND_THREE, 20),
        ("opset 13", ("N", 3, 4), "", ONE_AND_THREE, 13),
        ("opset 22", ("N", 3, 4), ", axis = -1", ONE_AND_THREE, 22),
        ("channels, dynamic", ANY_IMAGE, ", axis = 1", SMALL, 20),
        ("the batch", ("N", 3), ", axis = 0", ONE_AND_THREE, 20),
        ("axis -2", ("N", 3, 2), ", axis = -2", ONE_AND_THREE, 20),
        ("one element", ("N", 1), "", ONE_AND_THREE, 20),
        ("dynamic axis", ("N", "T"), ", axis = 1", LENGTHS, 20),
    )
]

LRN_FORWARD = "TensorRT takes an LRN of odd size, over four axes or more"
LRN = [
    Case(
        "LRN",
        what,
        shape,
        f"y = LRN <size = {size}{attributes}> (x)",
        {},
        at,
        opset=opset,
        rtx="" if size % 2 and len(shape) > 3 else LRN_FORWARD,
    )
    for what, shape, size, attributes, at, opset in (
        ("size 3", ("N", 5, 2, 3), 3, "", ONE_AND_THREE, 20),
        ("size 3, strong", ("N", 5, 2, 2), 3, ", alpha = 0.9", ONE_AND_THREE, 13),
        ("size 5", ("N", 6, 2, 2), 5, ", alpha = 2.0, beta = 0.5", ONE_AND_THREE, 20),
        ("size 2", ("N", 5, 2, 2), 2, ", alpha = 0.9, bias = 2.0", ONE_AND_THREE, 20),
        ("size 4", ("N", 6, 2, 2), 4, ", alpha = 0.9", ONE_AND_THREE, 20),
        ("size 1", ("N", 3, 2, 2), 1, ", alpha = 0.9", ONE_AND_THREE, 20),
        ("more than the channels", ("N", 2, 2, 2), 5, ", alpha = 0.9", ONE_AND_THREE, 20),
        ("one channel", ("N", 1, 2, 2), 3, ", alpha = 0.9", ONE_AND_THREE, 20),
        ("dynamic", ("N", 4, "H", "W"), 3, ", alpha = 0.9", SMALL, 20),
        ("no spatial axes", ("N", 5), 3, ", alpha = 0.9", ONE_AND_THREE, 20),
        ("1-D", ("N", 5, 3), 4, ", alpha = 0.9", ONE_AND_THREE, 20),
        ("3-D", ("N", 4, 2, 1, 3), 3, ", alpha = 0.9", ONE_AND_THREE, 20),
        ("3-D, dynamic", ("N", 4, "H", 1, "W"), 3, ", alpha = 0.9", SMALL, 20),
    )
]

# ONNX's checker takes it in float32 alone, and with axes alone.
MEAN_VARIANCE = [
    Case(
        "MeanVarianceNormalization",
        what,
        shape,
        "a = Cast <to = 1> (x)\n"
        f"b = MeanVarianceNormalization <axes = {axes}> (a)\ny = Cast <to = 11> (b)",
        {},
        at,
        step=1e-2,
        tolerance=1e-3,
        opset=opset,
    )
    for what, shape, axes, at, opset in (
        ("across the batch", IMAGE, [0, 2, 3], ONE_AND_THREE, 20),
        ("opset 13", IMAGE, [2, 3], ONE_AND_THREE, 13),
        ("negative axes", IMAGE, [-1, -3], ONE_AND_THREE, 20),
        ("dynamic", ("N", 3, "H", "W"), [1, 3], SMALL, 20),
    )
]

CASES = [*LAYER, *RMS, *INSTANCE, *GROUP, *LP, *LRN, *MEAN_VARIANCE]
