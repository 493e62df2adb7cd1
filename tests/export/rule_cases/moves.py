"""Ops that move elements."""

from __future__ import annotations

import numpy as np

from export.rule_cases.case import ANY_IMAGE, FIXED, ONE_AND_THREE, SMALL, Case, Sizes


def moved(
    op: str,
    what: str,
    shape: tuple[int | str, ...],
    target: list[int],
    at: tuple[Sizes, ...] = ONE_AND_THREE,
) -> Case:
    """A case of one op with a constant second input: Reshape, Squeeze or Unsqueeze."""
    # A size of 0 beside one of -1 leaves the -1 undefined where the batch is empty.
    empty = not (op == "Reshape" and {0, -1} <= set(target))
    return Case(op, what, shape, f"y = {op} (x, t)", {"t": target}, at, empty=empty)


MOVES = [
    moved("Reshape", "0 -1", ("N", 2, 3), [0, -1]),
    moved("Reshape", "0 and sizes", ("N", 6), [0, 2, 3]),
    moved("Reshape", "-1 for the batch", ("N", 2, 3), [-1, 6]),
    moved("Reshape", "-1 for the batch, split", ("N", 6), [-1, 2, 3]),
    moved("Reshape", "-1 for rows of several images", ("N", 2, 3), [-1, 3]),
    moved("Reshape", "-1 for several images a row", (2, 3), [-1, 6], FIXED),
    moved("Reshape", "to one axis", ("N", 2, 3), [-1]),
    moved("Reshape", "0 in the middle", ("N", 2, 3, 2), [0, 0, -1]),
    moved("Reshape", "of fixed sizes", (2, 6), [3, 4], FIXED),
    moved("Reshape", "dynamic sizes joined", ANY_IMAGE, [0, 2, -1], SMALL),
    moved("Reshape", "all joined", ANY_IMAGE, [-1], SMALL),
    Case(
        "Reshape",
        "allowzero, Constant node",
        ("N", 6),
        "y = Reshape <allowzero = 1> (x, t)",
        {"t": [-1, 3, 2]},
        constant_nodes=True,
    ),
    Case(
        "Reshape",
        "two of them, without names, -1 first",
        ("N", 6),
        "a = Reshape (x, s)\n b = Relu (a)\n y = Reshape (b, t)",
        {"s": [-1, 3, 2], "t": [-1, 6]},
    ),
    Case("Flatten", "axis left out", ("N", 2, 3), "y = Flatten (x)"),
    Case("Flatten", "of dynamic sizes", ANY_IMAGE, "y = Flatten (x)", at=SMALL),
    moved("Squeeze", "middle axis", ("N", 1, 3), [1]),
    moved("Squeeze", "two axes, negative", ("N", 3, 1, 1), [-1, -2]),
    moved("Squeeze", "dynamic sizes", ("N", 1, "H", "W"), [1], SMALL),
    Case("Squeeze", "axes left out", (2, 1, 3, 1), "y = Squeeze (x)", at=FIXED),
    moved("Unsqueeze", "middle axis", ("N", 3), [1]),
    moved("Unsqueeze", "last axis", ("N", 3), [-1]),
    moved("Unsqueeze", "both ends", ("N", 3), [0, 3]),
    moved("Unsqueeze", "dynamic sizes", ("N", "H", "W"), [-3], SMALL),
    Case("Transpose", "perm left out", ("N", 2, 3), "y = Transpose (x)"),
    Case("Transpose", "a cycle", ("N", 2, 3), "y = Transpose <perm = [1, 2, 0]> (x)"),
    Case(
        "Transpose",
        "to channels last, dynamic",
        ANY_IMAGE,
        "y = Transpose <perm = [0, 2, 3, 1]> (x)",
        at=SMALL,
    ),
    Case(
        "Concat",
        "x twice, a constant in between",
        (2, 2, 3),
        "y = Concat <axis = 1> (x, c, x)",
        {"c": (2, 1, 3)},
        at=FIXED,
    ),
    Case(
        "Concat",
        "negative axis, a constant of the batch's size in between",
        ("N", 3, 2),
        "s = Shape <end = 2> (x)\n t = Concat <axis = 0> (s, one)\n c = Expand (v, t)\n"
        "y = Concat <axis = -1> (x, c, x)",
        {"one": [1], "v": (1,)},
    ),
    Case("Concat", "first axis", (2, "N"), "a = Neg (x)\n y = Concat <axis = 0> (a, x)"),
    Case("Concat", "one input", ("N", 3), "y = Concat <axis = 1> (x)"),
    Case(
        "Concat",
        "channels, dynamic sizes",
        ANY_IMAGE,
        "a = Relu (x)\n y = Concat <axis = -3> (a, x, a)",
        at=({"N": 1, "H": 2, "W": 3}, {"N": 3, "H": 3, "W": 1}),
    ),
]
MOVES += [
    Case("Flatten", f"axis {axis}", ("N", 2, 3), f"y = Flatten <axis = {axis}> (x)")
    for axis in (0, 1, 2, 3, -1, -2)
]

SQUARES: tuple[Sizes, ...] = ({"N": 1, "H": 2, "W": 3}, {"N": 3, "H": 3, "W": 1})

MOVES += [
    Case(
        "Reshape",
        "to sizes computed at run time",
        ANY_IMAGE,
        "s = Shape (x)\n r = Gather (s, t)\n y = Reshape (x, r)",
        {"t": [2, 0, 3, 1]},
        SMALL,
        empty=False,
    ),
    Case(
        "Reshape",
        "windows of a dynamic batch, as in Swin",
        ("N", 4, 6, 2),
        "a = Reshape (x, s)\n b = Transpose <perm = [0, 1, 3, 2, 4, 5]> (a)\n"
        "c = Reshape (b, t)\n y = Mul (c, w)",
        {"s": [-1, 2, 2, 3, 2, 2], "t": [-1, 4, 2], "w": (4, 2)},
    ),
    Case("Reshape", "of one number", ("N", 1), "y = Reshape (x, t)", {"t": [-1]}),
    Case("Reshape", "opset 13", ANY_IMAGE, "y = Reshape (x, t)", {"t": [-1, 2]}, SMALL, opset=13),
    Case(
        "Flatten",
        "dynamic sizes in front, empty batch last",
        ("H", "N"),
        "y = Flatten <axis = 0> (x)",
        at=({"N": 1, "H": 2}, {"N": 3, "H": 4}),
    ),
    Case(
        "Squeeze",
        "axes left out, dynamic sizes",
        ("N", 1, "H"),
        "a = Squeeze (x)\n y = Reshape (a, t)",
        {"t": [-1]},
        at=({"N": 2, "H": 2}, {"N": 3, "H": 4}),
    ),
    Case(
        "Concat",
        "along the batch",
        ("N", 3),
        "a = Neg (x)\n y = Concat <axis = 0> (a, x, a)",
    ),
    Case(
        "Concat",
        "unknown sizes between known ones",
        (2, 2, "H"),
        "a = Relu (x)\n y = Concat <axis = 2> (c, x, d, a, c)",
        {"c": (2, 2, 1), "d": (2, 2, 2)},
        at=({"H": 2}, {"H": 5}),
    ),
    Case(
        "Concat",
        "one unknown size, itself last",
        (2, 2, "H"),
        "y = Concat <axis = -1> (c, d, x)",
        {"c": (2, 2, 1), "d": (2, 2, 2)},
        at=({"H": 2}, {"H": 5}),
    ),
    Case(
        "Concat",
        "the class token of a vision transformer",
        ("N", 2, 3),
        "s = Shape <end = 1> (x)\n t = Concat <axis = 0> (s, one, three)\n c = Expand (v, t)\n"
        "a = Concat <axis = 1> (c, x)\n y = Gather <axis = 1> (a, first)",
        {"one": [1], "three": [3], "v": (1, 1, 3), "first": np.array(1)},
    ),
    Case("Expand", "new axes in front", ("N", 3), "y = Expand (x, t)", {"t": [2, 1, 1]}),
    Case("Expand", "an axis of size 1", ("N", 1, 3), "y = Expand (x, t)", {"t": [1, 2, 1]}),
    Case("Expand", "nothing", ("N", 3), "y = Expand (x, t)", {"t": [1, 3]}),
    Case("Expand", "several axes", (1, 3, 1), "y = Expand (x, t)", {"t": [2, 2, 1, 4]}, FIXED),
    Case("Expand", "one number", (), "y = Expand (x, t)", {"t": [2, 2]}, FIXED),
    Case(
        "Expand",
        "to sizes known at run time only",
        ("N", 1, 1, "W"),
        "s = Shape (x)\n r = Gather (s, t)\n y = Expand (x, r)",
        {"t": [0, 3, 3, 3]},
        ({"N": 1, "W": 2}, {"N": 2, "W": 3}),
    ),
    Case(
        "Expand",
        "the batch, opset 13",
        (1, 3),
        "s = Shape (x)\n r = Add (s, t)\n y = Expand (x, r)",
        {"t": [2, 0]},
        FIXED,
        opset=13,
    ),
    Case("Tile", "one axis", ("N", 3), "y = Tile (x, r)", {"r": [1, 2]}),
    Case("Tile", "the batch", ("N", 3), "y = Tile (x, r)", {"r": [3, 1]}),
    Case("Tile", "nothing", ("N", 3), "y = Tile (x, r)", {"r": [1, 1]}),
    Case("Tile", "axes of size 1", ("N", 1, 3, 1), "y = Tile (x, r)", {"r": [1, 2, 2, 3]}),
    Case("Tile", "dynamic sizes", ANY_IMAGE, "y = Tile (x, r)", {"r": [1, 1, 2, 3]}, SQUARES),
    Case(
        "Tile",
        "as often as there are columns",
        ("N", 2, 1, "W"),
        "s = Shape (x)\n r = Gather (s, t)\n y = Tile (x, r)",
        {"t": [3, 1, 3, 1]},
        ({"N": 1, "W": 2}, {"N": 2, "W": 3}),
    ),
    Case(
        "Tile",
        "opset 13, an axis of size 1 as often as there are images",
        ("N", 1),
        "s = Shape (x)\n r = Gather (s, t)\n y = Tile (x, r)",
        {"t": [1, 0]},
        opset=13,
    ),
    Case(
        "ReverseSequence",
        "constant lengths",
        (4, 3, 2),
        "y = ReverseSequence (x, l)",
        {"l": [1, 4, 3]},
        FIXED,
    ),
    Case(
        "ReverseSequence",
        "batch first",
        (2, 4),
        "y = ReverseSequence <batch_axis = 0, time_axis = 1> (x, l)",
        {"l": [2, 4]},
        FIXED,
    ),
    Case(
        "ReverseSequence",
        "lengths of a dynamic batch",
        ("N", 4),
        "s = Shape <end = 1> (x)\n l = Expand (k, s)\n"
        "y = ReverseSequence <batch_axis = 0, time_axis = 1> (x, l)",
        {"k": [3]},
    ),
]

CASES = MOVES
