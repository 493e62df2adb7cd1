"""Ops that pick elements by index, or put them by index."""

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

LONG: tuple[Sizes, ...] = ({"N": 1, "H": 5}, {"N": 2, "H": 8})
MANY = [0] * 40 + [19, 3, 5]


def picked(
    what: str,
    shape: tuple[int | str, ...],
    indices: list[int] | np.ndarray,
    axis: int = 1,
    at: tuple[Sizes, ...] = ONE_AND_THREE,
    opset: int = 20,
) -> Case:
    """A Gather at constants, and the same at what is not known before run time."""
    text = f"y = Gather <axis = {axis}> (x, i)"
    return Case("Gather", what, shape, text, {"i": indices}, at, opset=opset)


def at_run_time(case: Case, op: str = "Gather") -> Case:
    """The same case with its indices made to depend on x, of which they get 0 times the size."""
    text = (
        "number = Size (x)\n nothing = Sub (number, number)\n"
        f"r = ReduceMax <keepdims = 0> (x)\n f = Cast <to = 7> (r)\n g = Mul (f, nothing)\n"
        f"j = Add (i, g)\n{case.text.replace(', i', ', j')}"
    )
    return Case(
        op,
        f"{case.what}, at run time",
        case.shape,
        text,
        case.constants,
        case.at,
        opset=case.opset,
        empty=False,
    )


GATHERS = [
    picked("one number", ("N", 4), np.array(2)),
    picked("one number, negative", ("N", 4, 3), np.array(-1)),
    picked("a range", ("N", 5), [1, 2, 3]),
    picked("all in order", ("N", 3), [0, 1, 2]),
    picked("in reverse", ("N", 4, 2), [-1, -2, -3, -4]),
    picked("every second", IMAGE, [0, 2, 4], axis=2),
    picked("a permutation, as of channels", IMAGE, [2, 0, 1, 3, 4], axis=-2),
    picked("some, in disorder", ("N", 6, 2), [4, 0, 3]),
    picked("some twice", ("N", 4), [0, 3, 0, 1, 3]),
    picked("the same each time", ("N", 2, 3), [1, 1, 1], axis=2),
    picked("each twice, as in upsampling", IMAGE, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4], axis=2),
    picked("one of them often", ("N", 20, 2), MANY),
    picked("one of them often, last axis", ("N", 2, 20), MANY, axis=2),
    picked("one of them often, first of three axes", (20, 2, "N"), MANY, axis=0),
    picked("one of them often, single axis", (20,), MANY, 0, FIXED),
    picked("a table", ("N", 5, 2), np.array([[0, 3, 1], [2, 2, 4]])),
    picked("a table with one row", ("N", 5), np.array([[3, 1]])),
    picked("a table without duplicates, dynamic sizes", ANY_IMAGE, np.array([[1], [0]]), 1, SMALL),
    picked("int32", ("N", 4), np.array([3, 0], np.int32)),
    picked("nothing", ("N", 4), []),
    picked("of an axis of size 1", ("N", 1), [0, 0, -1]),
    picked("dynamic size, a range", ("N", "H"), [1, 2], at=LONG),
    picked("dynamic size, the last", ("N", "H"), np.array(-1), at=LONG),
    picked("dynamic size, disorder", ("N", "H", 2), [3, 0, 3], at=LONG),
    picked("dynamic size, disorder from the end", ("N", "H"), [-3, -1, -3], at=LONG),
    picked("dynamic size, from both ends", ("N", "H"), [-1, 0, 3], at=LONG),
    picked("opset 13", ("N", 4, 2), [2, 0, 2], opset=13),
    picked("first axis", (4, "N"), [2, 0, 2], axis=0),
]
GATHERS += [
    at_run_time(picked("any", ("N", 4), [3, 0, -1])),
    at_run_time(picked("any, middle axis", ("N", 4, 2), [3, 0, -1])),
    at_run_time(picked("any, channels", IMAGE, [1, 1, 0])),
    at_run_time(picked("a table", ("N", 4, 2), np.array([[0, 3], [3, 1], [2, -4]]))),
    at_run_time(picked("a table, channels", IMAGE, np.array([[0, 1], [1, 1]]))),
    at_run_time(picked("one number", ("N", 4, 2), np.array(-2))),
    at_run_time(picked("dynamic size", ("N", "H", 2), [1, -1, 1], at=LONG)),
    Case(
        "Gather",
        "as many indices as columns, at run time",
        ("N", "H"),
        "z = Constant <value_int = 0> ()\n o = Constant <value_int = 1> ()\n"
        "h = Shape <start = 1> (x)\n e = Squeeze (h)\n r = Range (z, e, o)\n i = Div (r, two)\n"
        "y = Gather <axis = 1> (x, i)",
        {"two": [2]},
        LONG,
    ),
    Case(
        "Gather",
        "the largest of each",
        (3, 4),
        "i = ArgMax <axis = 1, keepdims = 0> (x)\n y = Gather <axis = 1> (x, i)",
        at=FIXED,
        empty=False,
    ),
]

BATCH = "n = Shape <end = 1> (x)\n s = Concat <axis = 0> (n, t)\n i = Expand (k, s)\n"


def elements(
    what: str,
    shape: tuple[int | str, ...],
    indices: np.ndarray,
    axis: int,
    at: tuple[Sizes, ...] = FIXED,
) -> Case:
    text = f"y = GatherElements <axis = {axis}> (x, i)"
    return Case("GatherElements", what, shape, text, {"i": indices}, at, opset=13, empty=False)


GATHERS += [
    elements("unique", (2, 4), np.array([[2, 0, 3], [1, 0, -1]]), 1),
    elements("duplicates", (2, 4), np.array([[2, 2, 3], [-1, 3, 1]]), 1),
    elements("duplicates, negative ones", (2, 4), np.array([[-2, 2, 3], [-1, 3, 1]]), -1),
    elements("duplicates, first axis", (4, 2, 2), np.array([[[1, 3], [0, 0]]] * 3), 0),
    elements("fewer than x along the other axes", (4, 3, 2), np.array([[[1]], [[0]]]), 1),
    elements("fewer than x, duplicates", (4, 3, 2), np.array([[[1], [1]]] * 2), 1),
    elements("unique, any size", ("N", 3), np.array([[2, 0]]), 1, ONE_AND_THREE[:1]),
    elements("duplicates, any size", ("N", 3), np.array([[2, 2]]), 1, ONE_AND_THREE[:1]),
    Case(
        "GatherElements",
        "a dynamic batch",
        ("N", 4, 2),
        f"{BATCH} y = GatherElements <axis = 1> (x, i)",
        {"t": [3, 2], "k": np.array([[[0, 3], [0, -1], [1, 3]]])},
        opset=15,
    ),
    Case(
        "GatherElements",
        "one of each line",
        ("N", 4),
        "i = ArgMax <axis = 1> (x)\n y = GatherElements <axis = 1> (x, i)",
        empty=False,
    ),
    Case(
        "GatherElements",
        "where another value is largest",
        ("N", 5, 2),
        "a = Neg (x)\n v, i = TopK <axis = 1> (a, two)\n y = GatherElements <axis = -2> (x, i)",
        {"two": [2]},
    ),
    Case(
        "GatherElements",
        "dynamic size, int32",
        ("N", "H"),
        f"{BATCH} j = Cast <to = 6> (i)\n y = GatherElements <axis = 1> (x, j)",
        {"t": [3], "k": np.array([[0, 3, 0]])},
        LONG,
    ),
]


def tuples(
    what: str,
    shape: tuple[int | str, ...],
    indices: list[object],
    batch_dims: int = 0,
    at: tuple[Sizes, ...] = FIXED,
) -> Case:
    text = f"y = GatherND <batch_dims = {batch_dims}> (x, i)"
    return Case("GatherND", what, shape, text, {"i": np.array(indices)}, at, opset=13)


GATHERS += [
    tuples("elements", (3, 2), [[0, 1], [2, 0]]),
    tuples("elements, in a row", (3, 2), [[0, 1], [1, 0], [1, 1], [2, 0]]),
    tuples("elements, some twice", (3, 2), [[0, 1], [2, 0], [-3, 1]]),
    tuples("rows", (4, "N", 2), [[3], [0]], at=ONE_AND_THREE),
    tuples("a table of rows, twice", (4, 2), [[[3], [0]], [[3], [-1]]]),
    tuples("one tuple", (3, 2, 2), [1, -1]),
    tuples("batches", (2, 3, 2), [[[0]], [[2]]], 1),
    tuples("batches, duplicates", (2, 3, 2), [[[0], [0]], [[2], [-3]]], 1),
    tuples("two batch axes", (2, 2, 3), [[[1], [2]], [[0], [0]]], 2),
    tuples("dynamic size", (2, "H", 2), [[0, 0], [1, 0], [0, -1]], at=LONG),
    Case(
        "GatherND",
        "rows and columns of every image, as PyTorch exports them",
        ("N", 4, 3),
        "a = Transpose <perm = [1, 2, 0]> (x)\n b = GatherND (a, i)\n"
        "y = Transpose <perm = [1, 0]> (b)",
        {"i": np.array([[3, 0], [1, 2], [3, 2]])},
    ),
    Case(
        "GatherND",
        "a dynamic batch",
        ("N", 4, 2, 3),
        f"{BATCH} y = GatherND <batch_dims = 1> (x, i)",
        {"t": [3, 2], "k": np.array([[[0, 1], [3, -1], [0, 1]]])},
    ),
    Case(
        "GatherND",
        "one of each row, by number",
        ("N", 4, 2),
        "n = Shape <end = 1> (x)\n m = Squeeze (n)\n z = Constant <value_int = 0> ()\n"
        "o = Constant <value_int = 1> ()\n r = Range (z, m, o)\n a = Unsqueeze (r, one)\n"
        "m4 = Mod (r, four)\n b = Unsqueeze (m4, one)\n i = Concat <axis = 1> (a, b)\n"
        "y = GatherND (x, i)",
        {"one": [1], "four": [4]},
    ),
    Case(
        "GatherND",
        "the largest of each row of a fixed number",
        (3, 4),
        "z = Constant <value_int = 0> ()\n m = Constant <value_int = 3> ()\n"
        "o = Constant <value_int = 1> ()\n r = Range (z, m, o)\n c = ArgMax <axis = 1> (x)\n"
        "a = Unsqueeze (r, one)\n i = Concat <axis = -1> (a, c)\n y = GatherND (x, i)",
        {"one": [1]},
        FIXED,
    ),
    Case(
        "GatherND",
        "a dynamic batch, elements of dynamic size, int32",
        ("N", "H"),
        f"{BATCH} y = GatherND <batch_dims = 1> (x, i)",
        {"t": [3, 1], "k": np.array([[[0], [3], [0]]])},
        LONG,
        opset=20,
    ),
]
GATHERS += [
    at_run_time(tuples("rows, any", (4, 3, 2), [[3], [0], [3]]), "GatherND"),
    at_run_time(tuples("elements, any", (4, 3), [[[3, 1]], [[0, 0]]]), "GatherND"),
    at_run_time(tuples("batches, any", (2, 3, 2), [[[0], [2]], [[0], [0]]], 1), "GatherND"),
    at_run_time(elements("any", (2, 4), np.array([[2, 2, 3], [-1, 3, 1]]), 1), "GatherElements"),
]

NO_COMPRESS = "TensorRT has no Compress"
NO_ATOMICS = "TensorRT has no scatter with reduction"


def put(op: str, what: str, inputs: str, constants: dict[str, Constant], **more: object) -> Case:
    """A scatter that reads x as data, as updates, or as both."""
    attributes = "".join(
        f' <{name} = "{value}">' if isinstance(value, str) else f" <{name} = {value}>"
        for name, value in more.items()
    ).replace("> <", ", ")
    shape: tuple[int, ...] = (2, 4) if op == "ScatterElements" else (4, 2)
    text = f"y = {op}{attributes} ({inputs})"
    rtx = NO_ATOMICS if "reduction" in more else ""
    opset = 16 if "reduction" in more else 13
    return Case(op, what, shape, text, constants, FIXED, opset=opset, rtx=rtx)


PLACES = np.array([[2, 0], [1, -1]])
ROWS = np.array([[3], [0]])

SCATTERS = [
    put("ScatterElements", "data", "x, i, u", {"i": PLACES, "u": (2, 2)}, axis=1),
    put(
        "ScatterElements",
        "updates",
        "d, i, x",
        {"i": np.array([[2, 0, 4, 1], [5, 1, 0, -2]]), "d": (2, 6)},
        axis=-1,
    ),
    put("ScatterElements", "axis left out", "x, i, u", {"i": np.array([[1, 0]]), "u": (1, 2)}),
    put(
        "ScatterElements",
        "added to data",
        "x, i, u",
        {"i": np.array([[2, 2], [1, -1]]), "u": (2, 2)},
        axis=1,
        reduction="add",
    ),
    put(
        "ScatterElements",
        "added updates",
        "d, i, x",
        {"i": np.array([[2, 2, 0, 1], [1, -1, 0, 0]]), "d": (2, 3)},
        axis=1,
        reduction="add",
    ),
    put("ScatterND", "data", "x, i, u", {"i": ROWS, "u": (2, 2)}),
    put("ScatterND", "updates", "d, i, x", {"i": np.array([[5], [0], [-2], [1]]), "d": (6, 2)}),
    put(
        "ScatterND",
        "elements",
        "x, i, u",
        {"i": np.array([[[3, 0]], [[0, 1]]]), "u": (2, 1)},
    ),
    put(
        "ScatterND",
        "added to data",
        "x, i, u",
        {"i": np.array([[3], [3]]), "u": (2, 2)},
        reduction="add",
    ),
    put(
        "ScatterND",
        "added updates",
        "d, i, x",
        {"i": np.array([[0], [0], [1], [2]]), "d": (3, 2)},
        reduction="add",
    ),
    Case(
        "ScatterElements",
        "data and updates, a dynamic batch, opset 18",
        ("N", 4),
        f"{BATCH} u = Slice (x, one, three, one)\n v = Mul (u, w)\n"
        "y = ScatterElements <axis = 1> (x, i, v)",
        {"t": [2], "k": np.array([[3, 0]]), "one": [1], "three": [3], "w": (2,)},
        opset=18,
    ),
    Case(
        "ScatterND",
        "data and updates, dynamic size",
        (4, "N"),
        "u = Slice (x, one, three, zero)\n v = Mul (u, w)\n y = ScatterND (x, i, v)",
        {"i": ROWS, "zero": [0], "one": [1], "three": [3], "w": (2, 1)},
        opset=18,
    ),
]


def top(what: str, shape: tuple[int | str, ...], attributes: str, k: int, opset: int = 20) -> Case:
    at = LONG if "H" in shape else ONE_AND_THREE
    text = f"y, i = TopK <{attributes}> (x, k)"
    return Case("TopK", what, shape, text, {"k": [k]}, at, opset=opset)


TOPS = [
    top("largest", ("N", 5), "axis = 1", 2),
    top("smallest, negative axis", ("N", 5, 2), "axis = -2, largest = 0", 3),
    top("not sorted", ("N", 5), "axis = 1, largest = 1, sorted = 0", 5),
    top("one, opset 13", ("N", 2, 5), "axis = 2", 1, opset=13),
    top("dynamic size", ("N", "H", 2), "axis = 1", 3),
    Case("TopK", "axis left out", ("N", 5), "y, i = TopK (x, k)", {"k": [2]}),
    Case(
        "TopK",
        "all, how many is known at run time only",
        ("N", "H"),
        "k = Shape <start = 1> (x)\n y, i = TopK <sorted = 1> (x, k)",
        at=LONG,
    ),
    Case(
        "TopK",
        "largest class of a classifier, in a loss",
        ("N", 3),
        "a = MatMul (x, w)\n v, i = TopK (a, k)\n y = ReduceSum <keepdims = 0> (v, last)",
        {"w": (3, 5), "k": [2], "last": [-1]},
    ),
]

PRESSED = [
    Case(
        "Compress",
        "an axis",
        ("N", 4),
        "y = Compress <axis = 1> (x, c)",
        {"c": np.array([True, False, True, True])},
        rtx=NO_COMPRESS,
    ),
    Case(
        "Compress",
        "a condition shorter than the axis, negative axis",
        ("N", 4, 2),
        "y = Compress <axis = -2> (x, c)",
        {"c": np.array([False, True])},
        rtx=NO_COMPRESS,
    ),
    Case(
        "Compress",
        "all in a row",
        (2, 3),
        "y = Compress (x, c)",
        {"c": np.array([True, False, False, True, True])},
        FIXED,
        rtx=NO_COMPRESS,
    ),
    Case(
        "Compress",
        "all in a row, dynamic sizes",
        ("N", "H"),
        "y = Compress (x, c)",
        {"c": np.array([True, False, False, True])},
        LONG,
        empty=False,
        rtx=NO_COMPRESS,
    ),
]

CASES = [*GATHERS, *SCATTERS, *TOPS, *PRESSED]
