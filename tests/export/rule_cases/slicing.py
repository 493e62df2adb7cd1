"""Ops that cut out a part or add a margin."""

from __future__ import annotations

import numpy as np

from export.rule_cases.case import (
    ANY_IMAGE,
    FIXED,
    IMAGE,
    ONE_AND_THREE,
    SMALL,
    Case,
    Constant,
    Sizes,
)

FAR = 2**63 - 1
LONG: tuple[Sizes, ...] = ({"N": 1, "H": 5}, {"N": 2, "H": 8})


def cut(
    what: str,
    shape: tuple[int | str, ...],
    starts: list[int],
    ends: list[int],
    axes: list[int] | None = None,
    steps: list[int] | None = None,
    at: tuple[Sizes, ...] = ONE_AND_THREE,
) -> Case:
    """A Slice with constant bounds."""
    constants: dict[str, Constant] = {"s": starts, "e": ends}
    inputs = ["x", "s", "e"]
    if axes is not None or steps is not None:
        inputs.append("a" if axes is not None else "")
        constants |= {"a": axes} if axes is not None else {}
    if steps is not None:
        inputs.append("t")
        constants["t"] = steps
    return Case("Slice", what, shape, f"y = Slice ({', '.join(inputs)})", constants, at)


SLICES = [
    cut("one axis", ("N", 6), [1], [4], [1]),
    cut("axes left out", (3, 6), [1, 2], [3, 5], at=FIXED),
    cut("all of it", ("N", 6), [0], [FAR], [1]),
    cut("two axes, negative", IMAGE, [1, -3], [-1, FAR], [-2, -1]),
    cut("bounds beyond the ends", ("N", 6), [-100], [100], [-1]),
    cut("end beyond, start within", ("N", 6), [4], [100], [1]),
    cut("every second", ("N", 6), [0], [FAR], [1], [2]),
    cut("every second of an odd number", ("N", 7), [0], [FAR], [1], [2]),
    cut("every third from the second on", ("N", 9), [1], [8], [1], [3]),
    cut("steps along two axes, as in patch merging", IMAGE, [1, 0], [FAR, FAR], [2, 3], [2, 2]),
    cut("step beyond the end", ("N", 6), [2], [FAR], [1], [1000]),
    cut("reversed", ("N", 6), [-1], [-FAR], [1], [-1]),
    cut("reversed, a part", ("N", 6), [4], [1], [1], [-1]),
    cut("reversed, every second", ("N", 7), [100], [-100], [1], [-2]),
    cut("reversed, every third, down to the second", ("N", 9), [-2], [0], [1], [-3]),
    cut("reversed and forward", IMAGE, [-1, 1], [-FAR, FAR], [2, 3], [-2, 2]),
    cut("dynamic sizes", ("N", "H"), [1], [-1], [1], at=LONG),
    cut("dynamic sizes, from the end", ("N", "H"), [-3], [FAR], [1], at=LONG),
    cut("dynamic sizes, bounds beyond the ends", ("N", "H"), [-999], [999], [1], at=LONG),
    cut("dynamic sizes, every second", ("N", "H"), [1], [FAR], [1], [2], LONG),
    cut("dynamic sizes, reversed", ("N", "H"), [-1], [-FAR], [1], [-1], LONG),
    cut("dynamic sizes, reversed, every third", ("N", "H"), [-2], [-FAR], [1], [-3], LONG),
    cut(
        "dynamic sizes, steps along two axes", ANY_IMAGE, [1, 0], [999, 999], [2, 3], [2, 3], SMALL
    ),
    cut("dynamic sizes, all reversed", ANY_IMAGE, [-1, -1], [-FAR] * 2, [2, 3], [-1, -1], SMALL),
    cut("dynamic sizes, all of it", ANY_IMAGE, [0, -FAR], [FAR, FAR], [2, 3], [1, 1], SMALL),
    cut("of the batch", ("N", 3), [1], [FAR], [0], at=({"N": 2}, {"N": 4})),
    Case(
        "Slice",
        "of the middle, bounds computed at run time",
        ("N", "H"),
        "h = Shape <start = 1> (x)\n e = Sub (h, one)\n s = Div (e, two)\ny = Slice (x, s, e, one)",
        {"one": [1], "two": [2]},
        LONG,
    ),
    Case(
        "Slice",
        "start computed at run time, negative, reversed",
        ("N", "H"),
        "h = Shape <start = 1> (x)\n e = Neg (h)\n s = Div (e, two)\n"
        "y = Slice (x, s, e, one, back)",
        {"one": [1], "two": [2], "back": [-1]},
        LONG,
    ),
    Case(
        "Slice",
        "start computed at run time, int32, fixed size",
        ("N", 4),
        "n = Shape <start = 1> (x)\n m = Cast <to = 6> (n)\n s = Div (m, two)\n"
        "y = Slice (x, s, m, one)",
        {"one": np.array([1], np.int32), "two": np.array([2], np.int32)},
    ),
    Case(
        "Slice",
        "bounds depend on the batch",
        ("N", 4),
        "n = Shape <end = 1> (x)\n y = Slice (x, n, end, one)",
        {"one": [1], "end": [9]},
    ),
    Case(
        "Slice",
        "a roll, as PyTorch exports it",
        ("N", 5, 2),
        "a = Slice (x, three, far, one)\n b = Slice (x, zero, three, one)\n"
        "c = Concat <axis = 1> (a, b)\n y = Mul (c, w)",
        {"zero": [0], "one": [1], "three": [3], "far": [FAR], "w": (5, 2)},
        opset=13,
    ),
]

SPLITS = [
    Case("Split", "equal parts", ("N", 6), "y, b = Split <axis = 1, num_outputs = 2> (x)"),
    Case(
        "Split",
        "a smaller last part",
        ("N", 7),
        "a, b, c = Split <axis = -1, num_outputs = 3> (x)\n y = Concat <axis = 1> (c, a, b, a)",
    ),
    Case(
        "Split",
        "sizes as input, one part unused",
        ("N", 6),
        "a, b, c = Split <axis = 1> (x, s)\n y = Concat <axis = 1> (c, a)",
        {"s": [1, 3, 2]},
        opset=13,
    ),
    Case("Split", "equal parts, opset 13", ("N", 6), "a, y, b = Split <axis = 1> (x)", opset=13),
    Case(
        "Split",
        "the output and what depends on it",
        ("N", 3, 4),
        "q, k, v = Split <axis = 1, num_outputs = 3> (x)\n a = Mul (q, k)\n y = Mul (a, v)",
    ),
    Case("Split", "axis left out", (4, "N"), "a, b = Split <num_outputs = 2> (x)\n y = Mul (a, b)"),
    Case("Split", "one part", ("N", 3), "y = Split <axis = 1, num_outputs = 1> (x)"),
    Case(
        "Split",
        "an axis of any size",
        ("N", "H"),
        "a, b = Split <axis = 1, num_outputs = 2> (x)\n y = Relu (b)",
        at=LONG,
    ),
    Case(
        "Split",
        "sizes computed at run time",
        ("N", "H"),
        "h = Shape <start = 1> (x)\n r = Sub (h, two)\n s = Concat <axis = 0> (two, r)\n"
        "a, b = Split <axis = 1> (x, s)\n y = Concat <axis = 1> (b, a)",
        {"two": [2]},
        LONG,
    ),
    Case(
        "Split",
        "a part of no elements",
        ("N", 4),
        "a, b = Split <axis = 1> (x, s)\n y = Concat <axis = 1> (b, a)",
        {"s": [4, 0]},
    ),
]


def margin(
    mode: str,
    what: str,
    shape: tuple[int | str, ...],
    pads: list[int],
    at: tuple[Sizes, ...] = ONE_AND_THREE,
    opset: int = 20,
    axes: list[int] | None = None,
) -> Case:
    """A Pad by constants, multiplied so that no two elements of y weigh the same."""
    constants: dict[str, Constant] = {"p": pads}
    inputs = "x, p"
    if axes is not None:
        inputs += ", , a"
        constants["a"] = axes
    text = f'y = Pad <mode = "{mode}"> ({inputs})'
    return Case("Pad", f"{mode}: {what}", shape, text, constants, at, opset=opset)


PADS = [
    margin("constant", "image", IMAGE, [0, 0, 1, 2, 0, 0, 3, 4]),
    margin("constant", "cut off", IMAGE, [0, 0, -1, -1, 0, 0, -2, 0]),
    margin("constant", "pad and cut off", IMAGE, [0, 1, -1, 2, 0, -1, 2, -3]),
    margin("constant", "dynamic sizes", ANY_IMAGE, [0, 0, 1, -1, 0, 0, 0, 2], SMALL),
    margin("constant", "axes", IMAGE, [1, -2, 2, 1], axes=[-1, 2]),
    margin("constant", "nothing", IMAGE, [0] * 8),
    Case(
        "Pad",
        "constant: with a value, opset 13",
        IMAGE,
        "y = Pad (x, p, v)",
        {"p": [0, 0, 1, 1, 0, 0, 1, 1], "v": np.array(3.5)},
        opset=13,
    ),
    Case(
        "Pad",
        "constant: to a multiple of four, at run time",
        ("N", "H"),
        "h = Shape <start = 1> (x)\n m = Neg (h)\n r = Mod (m, four)\n"
        "p = Concat <axis = 0> (none, r)\n y = Pad (x, p)",
        {"four": [4], "none": [0, 0, 0]},
        LONG,
    ),
    Case(
        "Pad",
        "constant: axes, at run time",
        ("N", "H"),
        "h = Shape <start = 1> (x)\n p = Concat <axis = 0> (one, h)\n y = Pad (x, p, , one)",
        {"one": [1]},
        LONG,
    ),
]
PADS += [
    case
    for mode, least in (("reflect", 3), ("edge", 1), ("wrap", 2))
    for opset in ((20,) if mode == "wrap" else (13, 20))
    for case in (
        margin(mode, f"image, opset {opset}", IMAGE, [0, 0, 2, 1, 0, 0, 1, 2], opset=opset),
        margin(mode, f"one side, opset {opset}", ("N", 4), [0, 2, 0, 0], opset=opset),
        margin(mode, f"other side, opset {opset}", ("N", 4), [0, 0, 0, 2], opset=opset),
        margin(mode, f"as far as can be, opset {opset}", ("N", least), [0, 2, 0, 2], opset=opset),
        margin(mode, f"dynamic sizes, opset {opset}", ("N", "H"), [0, 2, 0, 1], LONG, opset),
        margin(mode, f"and cut off, opset {opset}", ("N", 5), [0, 2, 0, -1], opset=opset),
    )
]
PADS += [
    margin(mode, "axes", IMAGE, [1, 2, 1, 1], axes=[-1, -2]) for mode in ("reflect", "edge", "wrap")
]

CASES = [*SLICES, *SPLITS, *PADS]
