"""Poolings and reductions."""

from __future__ import annotations

from itertools import product

import numpy as np

from export.rule_cases.case import ANY_IMAGE, FIXED, IMAGE, ONE_AND_THREE, SMALL, Case, Sizes


def pool(
    what: str,
    shape: tuple[int | str, ...],
    attributes: str,
    at: tuple[Sizes, ...] = ONE_AND_THREE,
) -> Case:
    """A case of one AveragePool."""
    return Case("AveragePool", what, shape, f"y = AveragePool <{attributes}> (x)", at=at)


K2_S2 = "kernel_shape = [2, 2], strides = [2, 2]"
K3_S2 = "kernel_shape = [3, 3], strides = [2, 2]"
K8_S8 = "kernel_shape = [8, 8], strides = [8, 8]"
PADDED = "count_include_pad = 1, pads = [1, 1, 1, 1]"

POOLING = [
    pool("k2 s2", ("N", 2, 4, 6), K2_S2),
    pool("k2 s2, remainder", ("N", 2, 5, 5), K2_S2),
    pool("k2 s2, remainder in one axis", ("N", 2, 4, 5), K2_S2),
    pool("k8 s8 on 8x8", ("N", 1, 8, 8), K8_S8, at=({"N": 2},)),
    pool("k8 s8 on 9x9", ("N", 1, 9, 9), K8_S8, at=({"N": 2},)),
    pool("k8 s8, dynamic", ("N", 1, "H", "W"), K8_S8, at=({"N": 1, "H": 8, "W": 9},)),
    pool("k2 s2, dynamic", ANY_IMAGE, K2_S2, at=(*SMALL, {"N": 2, "H": 2, "W": 4})),
    pool("k2 s2, dynamic width", ("N", 2, 4, "W"), K2_S2, at=({"N": 1, "W": 4}, {"N": 3, "W": 5})),
    pool("k1 s1", ("N", 2, 3, 3), "kernel_shape = [1, 1], strides = [1, 1]"),
    pool("k2 1 s2 1", ("N", 2, 5, 3), "kernel_shape = [2, 1], strides = [2, 1]"),
    pool("k2 s1", ("N", 2, 3, 4), "kernel_shape = [2, 2]"),
    pool("k2 s3: gaps", ("N", 2, 6, 7), "kernel_shape = [2, 2], strides = [3, 3]"),
    pool("k1 s2: gaps", ("N", 2, 4, 5), "kernel_shape = [1, 1], strides = [2, 2]"),
    pool("k3 s2", ("N", 2, 5, 6), K3_S2),
    pool("k3 s2, dynamic", ANY_IMAGE, K3_S2, at=SMALL),
    pool("k3 s2, padded", ("N", 2, 5, 4), f"{K3_S2}, {PADDED}"),
    pool("k3 s2, padded, dynamic", ANY_IMAGE, f"{K3_S2}, {PADDED}", at=SMALL),
    pool("k2 s2, padded", ("N", 2, 4, 5), f"{K2_S2}, {PADDED}"),
    pool("k2 s2, padded by zero", ("N", 2, 4, 5), f"{K2_S2}, pads = [0, 0, 0, 0]"),
    pool(
        "k3 s1, asymmetric pads",
        ("N", 2, 3, 4),
        "kernel_shape = [3, 3], count_include_pad = 1, pads = [0, 1, 2, 0]",
    ),
    pool("auto_pad VALID", ("N", 2, 5, 4), f'{K2_S2}, auto_pad = "VALID"'),
    pool("1-D, k2 s2", ("N", 2, 4), "kernel_shape = [2], strides = [2]"),
    pool("1-D, k2 s2, remainder", ("N", 2, 5), "kernel_shape = [2], strides = [2]"),
    pool(
        "1-D, k3 s3, dynamic",
        ("N", 2, "W"),
        "kernel_shape = [3], strides = [3]",
        at=({"N": 1, "W": 5}, {"N": 3, "W": 6}),
    ),
    pool("3-D, k2 s2", ("N", 2, 2, 4, 3), "kernel_shape = [2, 2, 2], strides = [2, 2, 2]"),
    Case("GlobalAveragePool", "1-D", ("N", 2, 5), "y = GlobalAveragePool (x)"),
    Case("GlobalAveragePool", "2-D", ("N", 2, 3, 4), "y = GlobalAveragePool (x)"),
    Case("GlobalAveragePool", "3-D", ("N", 2, 2, 3, 2), "y = GlobalAveragePool (x)"),
    Case("GlobalAveragePool", "dynamic", ANY_IMAGE, "y = GlobalAveragePool (x)", at=SMALL),
    Case(
        "GlobalAveragePool",
        "dynamic width",
        ("N", 2, 3, "W"),
        "y = GlobalAveragePool (x)",
        at=({"N": 1, "W": 4}, {"N": 3, "W": 1}),
    ),
]


# Label, shape of x, axes (None: left out), attributes, sizes.
REDUCED: list[tuple[str, tuple[int | str, ...], list[int] | None, str, tuple[Sizes, ...]]] = [
    ("spatial axes", ("N", 2, 2, 3), [2, 3], "keepdims = 1", ONE_AND_THREE),
    ("spatial axes dropped", ("N", 2, 2, 3), [2, 3], "keepdims = 0", ONE_AND_THREE),
    ("keepdims left out", ("N", 2, 3), [1], "", ONE_AND_THREE),
    ("last axis dropped", ("N", 2, 3), [-1], "keepdims = 0", ONE_AND_THREE),
    ("negative axes", ("N", 2, 3), [-2, -1], "keepdims = 1", ONE_AND_THREE),
    ("unsorted axes dropped", ("N", 2, 2, 3), [-1, 1], "keepdims = 0", ONE_AND_THREE),
    ("the batch", ("N", 3), [0], "keepdims = 0", ONE_AND_THREE),
    ("all, axes left out", ("N", 2, 3), None, "keepdims = 1", ONE_AND_THREE),
    ("all dropped, axes left out", ("N", 2, 3), None, "keepdims = 0", ONE_AND_THREE),
    ("all, axes empty", ("N", 2, 3), [], "keepdims = 0", ONE_AND_THREE),
    ("none, axes left out", ("N", 3), None, "noop_with_empty_axes = 1", ONE_AND_THREE),
    ("none, axes empty", ("N", 3), [], "noop_with_empty_axes = 1, keepdims = 0", ONE_AND_THREE),
    ("noop set, axes given", ("N", 3), [1], "noop_with_empty_axes = 1", ONE_AND_THREE),
    ("dynamic axes", ANY_IMAGE, [2, 3], "keepdims = 1", SMALL),
    ("dynamic axes dropped", ANY_IMAGE, [-1, -2], "keepdims = 0", SMALL),
    ("a dynamic and a fixed axis", ANY_IMAGE, [1, 3], "keepdims = 0", SMALL),
]

REDUCTIONS = [
    Case(
        op,
        what,
        shape,
        f"y = {op} {f'<{attributes}>' if attributes else ''} ({'x' if axes is None else 'x, a'})",
        {} if axes is None else {"a": axes},
        at,
    )
    for op in ("ReduceMean", "ReduceSum")
    for what, shape, axes, attributes, at in REDUCED
]
REDUCTIONS += [
    Case(
        op,
        "axes as a Constant node",
        ("N", 2, 3),
        f"y = {op} <keepdims = 0> (x, a)",
        {"a": [2]},
        constant_nodes=True,
    )
    for op in ("ReduceMean", "ReduceSum")
]

REDUCTIONS += [
    Case(
        op,
        "axes computed from constants",
        ("N", 2, 3),
        f"t = Sub (a, b)\n y = {op} <keepdims = 0> (x, t)",
        {"a": [2], "b": [1]},
        y=("N", 3),
    )
    for op in ("ReduceMean", "ReduceSum")
]

# The others: the range of x at which an op is smooth, and the shapes to try.
RANGES: dict[str, tuple[float, float] | None] = {
    "ReduceMax": None,
    "ReduceMin": None,
    "ReduceL1": None,
    "ReduceL2": None,
    "ReduceSumSquare": None,
    "ReduceLogSum": (0.5, 1.5),
    "ReduceLogSumExp": (-3.0, 3.0),
    "ReduceProd": None,
}
TRIED = (
    *("spatial axes", "spatial axes dropped", "keepdims left out", "negative axes"),
    *("unsorted axes dropped", "the batch", "all, axes left out", "all dropped, axes left out"),
    *("none, axes left out", "none, axes empty", "a dynamic and a fixed axis"),
)
OTHERS = [
    Case(
        op,
        what,
        shape,
        f"y = {op} {f'<{attributes}>' if attributes else ''} ({'x' if axes is None else 'x, a'})",
        {} if axes is None else {"a": axes},
        at,
        between=between,
    )
    for op, between in RANGES.items()
    for what, shape, axes, attributes, at in REDUCED
    if what in TRIED
]
# Until opset 17 the axes are an attribute; ReduceSum has them as an input since 13.
OTHERS += [
    Case(
        op,
        f"opset {opset}, {what}",
        shape,
        f"y = {op} {attributes} (x)",
        at=at,
        opset=opset,
        between=RANGES.get(op),
    )
    for op in ("ReduceMean", *RANGES)
    for opset, what, shape, attributes, at in (
        (13, "last axis dropped", ("N", 2, 3), "<axes = [-1], keepdims = 0>", ONE_AND_THREE),
        (17, "unsorted axes", ("N", 2, 2, 3), "<axes = [-1, 1]>", ONE_AND_THREE),
        (13, "all dropped", ("N", 3), "<keepdims = 0>", ONE_AND_THREE),
        (13, "dynamic axes", ANY_IMAGE, "<axes = [2, 3], keepdims = 0>", SMALL),
    )
]
OTHERS += [
    Case("ReduceSum", "opset 13", ("N", 2, 3), "y = ReduceSum (x, a)", {"a": [1]}, opset=13),
]
OTHERS += [
    Case(
        op,
        f"{what}, opset {opset}",
        shape,
        f"y = {op} (x)",
        at=FIXED,
        opset=opset,
        between=between,
        rtx="" if shape else "TensorRT reduces no scalars",
    )
    for op, between in (("ReduceMean", None), ("ReduceSum", None), *RANGES.items())
    for what, shape, opset in (("a scalar", (), 20), ("axes of size 1", (1, 1), 13))
    if shape or op != "ReduceLogSumExp"  # ONNX's reference crashes
]
OTHERS += [
    Case(
        "ReduceProd",
        f"with {zeros}",
        ("N", 3),
        "m = Mul (x, mask)\ny = ReduceProd (m, a)",
        {"mask": mask, "a": [1]},
    )
    for zeros, mask in (
        ("one zero", np.array([1.0, 0.0, 2.0])),
        ("two zeros", np.array([1.0, 0.0, 0.0])),
        ("zeros alone", np.zeros(3)),
    )
]
OTHERS += [
    Case(
        "CumSum",
        f"{what}, exclusive={exclusive}, reverse={reverse}",
        shape,
        f"y = CumSum <exclusive = {exclusive}, reverse = {reverse}> (x, axis)",
        {"axis": axis},
        at,
        opset=opset,
    )
    for exclusive, reverse in product((0, 1), (0, 1))
    for what, shape, axis, at, opset in (
        ("last axis", ("N", 2, 3), np.array(-1), ONE_AND_THREE, 13),
        ("a dynamic axis", ANY_IMAGE, np.array(2, np.int32), SMALL, 20),
        ("last axis of four", IMAGE, np.array(3), ONE_AND_THREE, 20),
    )
]
OTHERS.append(
    Case("CumSum", "an axis of size 1", ("N", 1), "y = CumSum (x, axis)", {"axis": np.array(1)})
)

CASES = [*POOLING, *REDUCTIONS, *OTHERS]
