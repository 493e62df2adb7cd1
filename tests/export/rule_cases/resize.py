"""Ops that change the resolution."""

from __future__ import annotations

import numpy as np

from export.rule_cases.case import ANY_IMAGE, ONE_AND_THREE, SMALL, Case, Constant, Sizes


def scales(*values: float) -> np.ndarray:
    return np.asarray(values, np.float32)


def resize(
    what: str,
    attributes: str,
    by: np.ndarray | list[int],
    shape: tuple[int | str, ...] = ("N", 2, 3, 4),
    at: tuple[Sizes, ...] = ONE_AND_THREE,
    opset: int = 20,
    rtx: str = "",
) -> Case:
    """A case of one Resize by scales (an array) or to sizes (a list)."""
    inputs = "x, , , by" if isinstance(by, list) else "x, , by"
    if isinstance(by, list):
        rtx = rtx or "it wants the sizes of all axes, or scales"
    constants: dict[str, Constant] = {"by": by}
    text = f"y = Resize <{attributes}> ({inputs})"
    return Case("Resize", what, shape, text, constants, at, opset=opset, rtx=rtx)


SPATIAL = "axes = [2, 3]"
MODES = ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric")
ROUNDINGS = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
NO_ANTIALIAS = "it has no antialias"
NO_SUCH_RESIZE = "it has no such Resize"

RESIZES = [
    *(
        resize(
            f"{mode}, {coordinates}, {what}",
            f'mode = "{mode}", coordinate_transformation_mode = "{coordinates}", {SPATIAL}',
            by,
            rtx=NO_SUCH_RESIZE if coordinates == "half_pixel_symmetric" else "",
        )
        for mode in ("nearest", "linear", "cubic")
        for coordinates in MODES
        for what, by in (
            ("up", scales(2, 2.5)),
            ("down", scales(2 / 3 if coordinates == "align_corners" else 0.7, 0.5)),
            ("to sizes", [5, 3]),
        )
    ),
    *(
        resize(
            f"nearest, {rounding}, {coordinates}",
            f'nearest_mode = "{rounding}", coordinate_transformation_mode = "{coordinates}", '
            f"{SPATIAL}",
            scales(1.5, 2),
        )
        for rounding in ROUNDINGS
        for coordinates in ("half_pixel", "asymmetric")
    ),
    resize("cubic, coefficient", f'mode = "cubic", cubic_coeff_a = -0.5, {SPATIAL}', [5, 7]),
    resize("cubic, exclude_outside", f'mode = "cubic", exclude_outside = 1, {SPATIAL}', [5, 7]),
    resize("all axes, scales", 'mode = "linear"', scales(1, 1, 2, 1)),
    resize("an axis by 1", f'mode = "linear", {SPATIAL}', scales(1, 3)),
    resize("negative axis", 'mode = "linear", axes = [-1]', [6]),
    resize("axes out of order", 'mode = "linear", axes = [3, 2]', scales(2, 3)),
    resize("nearest by 3 and 2", f'mode = "nearest", {SPATIAL}', scales(3, 2)),
    resize("nearest, sizes twice as large", f'mode = "nearest", {SPATIAL}', [6, 8]),
    resize("nearest by 2 and 1.5", f'mode = "nearest", {SPATIAL}', scales(2, 1.5)),
    resize("1-D, linear", 'mode = "linear", axes = [2]', scales(2), ("N", 2, 3)),
    resize("1-D, nearest", 'mode = "nearest", axes = [2]', scales(2), ("N", 2, 3)),
    resize("3-D, linear", 'mode = "linear", axes = [2, 3, 4]', [3, 4, 2], ("N", 1, 2, 3, 3)),
    resize(
        "3-D, nearest", 'mode = "nearest", axes = [2, 3, 4]', scales(2, 1, 3), ("N", 1, 2, 1, 2)
    ),
    resize("channels", 'mode = "linear", axes = [1]', [3], rtx=NO_SUCH_RESIZE),
    resize("channels, nearest", 'mode = "nearest", axes = [1]', scales(2), rtx=NO_SUCH_RESIZE),
    resize("rows of numbers", 'mode = "linear", axes = [1]', [7], ("N", 4), rtx=NO_SUCH_RESIZE),
    resize("one cell", f'mode = "linear", {SPATIAL}', [3, 2], ("N", 2, 1, 1)),
    resize("to one cell", f'mode = "linear", {SPATIAL}', [1, 1]),
    *(
        resize(
            f"{policy}, {mode}",
            f'mode = "{mode}", keep_aspect_ratio_policy = "{policy}", {SPATIAL}',
            [8, 8],
            ("N", 2, 5, 7),
            rtx=NO_SUCH_RESIZE,
        )
        for policy in ("not_larger", "not_smaller")
        for mode in ("linear", "nearest", "cubic")
    ),
    *(
        resize(
            f"antialias, {mode}",
            f'mode = "{mode}", antialias = 1, {SPATIAL}',
            scales(0.5, 0.6),
            ("N", 1, 6, 7),
            rtx=NO_ANTIALIAS,
        )
        for mode in ("linear", "cubic")
    ),
    resize("dynamic, nearest by 2", 'mode = "nearest"', scales(1, 1, 2, 2), ANY_IMAGE, SMALL),
    resize("dynamic, nearest by 3 and 1", 'mode = "nearest"', scales(1, 1, 3, 1), ANY_IMAGE, SMALL),
    resize(
        "dynamic, asymmetric and floor",
        'mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor"',
        scales(1, 1, 2, 3),
        ANY_IMAGE,
        SMALL,
    ),
    resize("dynamic, by 1", 'mode = "linear"', scales(1, 1, 1, 1), ANY_IMAGE, SMALL),
    resize(
        "dynamic width, linear height",
        'mode = "linear", axes = [2]',
        [5],
        ("N", 2, 3, "W"),
        ({"N": 1, "W": 4}, {"N": 3, "W": 5}),
    ),
    resize("opset 13", 'mode = "linear"', scales(1, 1, 2, 2), opset=13),
    resize("opset 18", 'mode = "cubic"', scales(1, 1, 2, 2), opset=18),
    Case(
        "Resize",
        "sizes with the batch of x",
        ("N", 2, 3, 4),
        "s = Shape <start = 0, end = 2> (x)\n sizes = Concat <axis = 0> (s, wanted)\n"
        'y = Resize <mode = "linear"> (x, , , sizes)',
        {"wanted": [6, 5]},
    ),
]

RESIZES += [
    resize(
        f"{mode}, {coordinates}, a scale that keeps the size",
        f'mode = "{mode}", coordinate_transformation_mode = "{coordinates}"',
        scales(1, 1, 1, 1.2),
        rtx=NO_SUCH_RESIZE,
    )
    for mode in ("nearest", "linear", "cubic")
    for coordinates in ("half_pixel", "asymmetric")
]
RESIZES += [
    resize(
        "linear, a policy that keeps one size",
        f'mode = "linear", keep_aspect_ratio_policy = "not_smaller", {SPATIAL}',
        [4, 11],
        ("N", 1, 4, 10),
    )
]

BLOCKS = [
    *(
        Case(
            "DepthToSpace",
            f"{mode} {size}{label}",
            shape,
            f'y = DepthToSpace <blocksize = {size}, mode = "{mode}"> (x)',
            at=at,
            opset=opset,
        )
        for mode in ("DCR", "CRD")
        for size, label, shape, at, opset in (
            (2, "", ("N", 8, 2, 3), ONE_AND_THREE, 20),
            (3, "", ("N", 9, 1, 2), ONE_AND_THREE, 13),
            (2, ", dynamic", ("N", 4, "H", "W"), SMALL, 20),
        )
    ),
    Case("DepthToSpace", "mode left out", ("N", 8, 2, 1), "y = DepthToSpace <blocksize = 2> (x)"),
    Case("SpaceToDepth", "2", ("N", 2, 4, 6), "y = SpaceToDepth <blocksize = 2> (x)"),
    Case("SpaceToDepth", "3", ("N", 1, 3, 6), "y = SpaceToDepth <blocksize = 3> (x)", opset=13),
    Case(
        "SpaceToDepth",
        "dynamic",
        ANY_IMAGE,
        "y = SpaceToDepth <blocksize = 2> (x)",
        at=({"N": 1, "H": 2, "W": 4}, {"N": 3, "H": 4, "W": 6}),
    ),
]

CASES = [*RESIZES, *BLOCKS]
