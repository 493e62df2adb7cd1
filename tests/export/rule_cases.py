"""Cases for the gradient rules: small models of one op or a few, from `x` to `y`, as data.

A case is a model in ONNX's text form plus constants, and the sizes to run it at. Constants are
given by their shape (filled with random numbers away from zero), as lists (integers: axes, shapes)
or as arrays. `CASES` has several for each rule, `COMPOSITES` has graphs of several ops.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product

import numpy as np
import onnx
from onnx import numpy_helper, parser, shape_inference
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

Constant = tuple[int, ...] | list[int] | np.ndarray
Sizes = Mapping[str, int]

ONE_AND_THREE: tuple[Sizes, ...] = ({"N": 1}, {"N": 3})
FIXED: tuple[Sizes, ...] = ({},)


@dataclass(frozen=True)
class Case:
    """One model from x to y, and how to check its gradient.

    Attributes:
        op: the op whose rule is checked; "" for a graph of several.
        what: what is special about it.
        shape: of x; symbols are sizes that are dynamic.
        text: the nodes, in ONNX's text form.
        constants: name -> shape, integers or array.
        at: the sizes to run at, one mapping from symbol to size a run.
        constant_nodes: the constants are Constant nodes rather than initializers.
        step: of the central differences.
        tolerance: largest error, relative to the largest element of the gradient.
    """

    op: str
    what: str
    shape: tuple[int | str, ...]
    text: str
    constants: Mapping[str, Constant] = field(default_factory=dict)
    at: tuple[Sizes, ...] = ONE_AND_THREE
    constant_nodes: bool = False
    step: float = 1e-5
    tolerance: float = 1e-6

    def __str__(self) -> str:
        return f"{self.op or 'graph'}: {self.what}"


def away_from_zero(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers of either sign between 0.5 and 1.5: far from the kink of Relu, safe to divide by."""
    return np.asarray(rng.uniform(0.5, 1.5, shape) * rng.choice([-1.0, 1.0], shape))


def random_for(label: str) -> np.random.Generator:
    """A generator that depends on nothing but the label."""
    return np.random.default_rng(zlib.crc32(label.encode()))


def build(case: Case, dtype: str = "double", opset: int = 20) -> onnx.ModelProto:
    """Return the model of a case, with all shapes inferred."""
    sizes = f"[{', '.join(map(str, case.shape))}]" if case.shape else ""
    model = parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : {opset}]>\n'
        f"network ({dtype}{sizes} x) => ({dtype}[] y) {{\n{case.text}\n}}"
    )
    rng = random_for(str(case))
    floats = {"double": np.float64, "float": np.float32, "float16": np.float16}[dtype]
    tensors = [
        numpy_helper.from_array(_array(rng, constant, floats), name)
        for name, constant in case.constants.items()
    ]
    if case.constant_nodes:
        nodes = [onnx.helper.make_node("Constant", [], [t.name], value=t) for t in tensors]
        nodes.extend(model.graph.node)
        del model.graph.node[:]
        model.graph.node.extend(nodes)
    else:
        model.graph.initializer.extend(tensors)
    return shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)


def _array(rng: np.random.Generator, constant: Constant, floats: type[np.floating]) -> np.ndarray:
    if isinstance(constant, tuple):
        return away_from_zero(rng, constant).astype(floats)
    if isinstance(constant, list):
        return np.asarray(constant, np.int64)
    return constant.astype(floats) if constant.dtype == np.float64 else constant


# --- running a case -----------------------------------------------------------------------------

# No input of a Relu is closer than this to its kink.
MARGIN = 0.05


class ConvTranspose(OpRun):
    """Straight from the definition; onnx's own is wrong for several channels a group."""

    def _run(
        self, x, w, group=None, kernel_shape=None, strides=None, pads=None, output_padding=None, **_
    ):
        rank = len(strides)
        sizes = [
            s * (size - 1) + k + extra
            for s, size, k, extra in zip(
                strides, x.shape[2:], w.shape[2:], output_padding, strict=True
            )
        ]
        channels = group * w.shape[1]
        y = np.zeros((x.shape[0], channels, *sizes), x.dtype)
        xs, ws = (array.reshape(group, -1, *array.shape[1:]) for array in (np.swapaxes(x, 0, 1), w))
        for tap in np.ndindex(w.shape[2:]):
            spread = np.einsum("gin...,gio->ngo...", xs, ws[(..., *tap)])
            cells = [
                slice(t, t + s * size, s)
                for t, s, size in zip(tap, strides, x.shape[2:], strict=True)
            ]
            y[(..., *cells)] += spread.reshape(x.shape[0], channels, *x.shape[2:])
        ends = [size - after for size, after in zip(sizes, pads[rank:], strict=True)]
        cropped = [slice(before, end) for before, end in zip(pads[:rank], ends, strict=True)]
        return (y[(..., *cropped)],)


class Pad(OpRun):
    """With a constant; onnx's own has no negative pads."""

    def _run(self, x, pads, value, *_, **__):
        rank = x.ndim
        before, after = pads[:rank], pads[rank:]
        kept = tuple(
            slice(max(-b, 0), size + min(a, 0))
            for b, a, size in zip(before, after, x.shape, strict=True)
        )
        widths = [(max(b, 0), max(a, 0)) for b, a in zip(before, after, strict=True)]
        return (np.pad(x[kept], widths, constant_values=value.item()),)


ConvTranspose.op_domain = Pad.op_domain = ""


def evaluator(model: onnx.ModelProto) -> ReferenceEvaluator:
    """Return what runs the model, in its own precision, independent of any engine."""
    return ReferenceEvaluator(model, new_ops=[ConvTranspose, Pad])


def central_differences(
    model: onnx.ModelProto, x: np.ndarray, seed: np.ndarray, step: float = 1e-5
) -> np.ndarray:
    """Return d<seed, y>/dx, element by element."""
    forward = evaluator(model)

    def loss(index: tuple[int, ...], change: float) -> np.ndarray:
        moved = x.copy()
        moved[index] += change
        (y,) = forward.run(None, {model.graph.input[0].name: moved})
        return np.sum(seed * y)

    gradient = np.empty_like(x)
    for index in np.ndindex(x.shape):
        gradient[index] = (loss(index, step) - loss(index, -step)) / (2 * step)
    return gradient


def image_off_kinks(
    model: onnx.ModelProto, rng: np.random.Generator, shape: tuple[int, ...]
) -> np.ndarray:
    """Return an x at which no Relu of the model is near its kink."""
    names = [node.input[0] for node in model.graph.node if node.op_type == "Relu"]
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = evaluator(probe)
    for _ in range(1000):
        x = away_from_zero(rng, shape)
        if not names or min(np.abs(v).min() for v in session.run(names, {"x": x})) > MARGIN:
            return x
    raise AssertionError("no x keeps clear of the kinks; make the case smaller")


# --- element by element -----------------------------------------------------------------------

FALSE = np.array(False)
VARIANCE = np.array([0.5, 1.5, 2.0])

ELEMENTWISE = [
    Case("Identity", "alone", ("N", 3), "y = Identity (x)"),
    Case("Identity", "of a vector", ("N",), "y = Identity (x)"),
    Case("Dropout", "x alone", ("N", 3), "y = Dropout (x)"),
    Case("Dropout", "with a ratio", ("N", 3), "y = Dropout (x, r)", {"r": np.array(0.5)}),
    Case("Dropout", "with its mask", ("N", 3), "y, mask = Dropout (x)"),
    Case(
        "Dropout",
        "training mode is a constant false",
        ("N", 3),
        "y = Dropout (x, r, t)",
        {"r": np.array(0.5), "t": FALSE},
    ),
    Case(
        "Dropout",
        "training mode is a Constant node",
        ("N", 3),
        "y = Dropout (x, r, t)",
        {"r": np.array(0.5), "t": FALSE},
        constant_nodes=True,
    ),
    Case("Neg", "2-D", ("N", 3), "y = Neg (x)"),
    Case("Neg", "4-D, dynamic", ("N", 1, "H", 2), "y = Neg (x)", at=({"N": 2, "H": 3},)),
    Case("Relu", "2-D", ("N", 6), "y = Relu (x)"),
    Case("Relu", "4-D", ("N", 2, 2, 3), "y = Relu (x)"),
    Case(
        "Relu",
        "twice",
        ("N", 6),
        "a = Relu (x)\n b = Sub (a, c)\n y = Relu (b)",
        {"c": np.array(1.0)},
    ),
    Case(
        "Cast",
        "to float32 and back",
        ("N", 4),
        "a = Cast <to = 1> (x)\n y = Cast <to = 11> (a)",
        step=0.1,
        tolerance=1e-5,
    ),
    Case(
        "Cast",
        "a product in float32",
        ("N", 4),
        "a = Cast <to = 1> (x)\n b = Mul (a, c)\n y = Cast <to = 11> (b)",
        {"c": np.array([0.5, -2, 3, 1.25], np.float32)},
        step=0.1,
        tolerance=1e-5,
    ),
    Case(
        "Cast",
        "rules with constants in float32",
        ("N", 2, 4),
        "a = Cast <to = 1> (x)\n b = Relu (a)\n c = ReduceMean <keepdims = 0> (b, axes)\n"
        "y = Cast <to = 11> (c)",
        {"axes": [2]},
        step=0.1,
        tolerance=1e-5,
    ),
    Case("Cast", "to its own type", ("N", 4), "y = Cast <to = 11> (x)"),
    Case(
        "BatchNormalization",
        "2-D",
        ("N", 3),
        "y = BatchNormalization (x, s, b, m, v)",
        {"s": (3,), "b": (3,), "m": (3,), "v": VARIANCE},
    ),
    Case(
        "BatchNormalization",
        "3-D",
        ("N", 3, 2),
        "y = BatchNormalization (x, s, b, m, v)",
        {"s": (3,), "b": (3,), "m": (3,), "v": VARIANCE},
    ),
    Case(
        "BatchNormalization",
        "4-D, dynamic, epsilon",
        ("N", 3, "H", "W"),
        "y = BatchNormalization <epsilon = 0.1> (x, s, b, m, v)",
        {"s": (3,), "b": (3,), "m": (3,), "v": VARIANCE},
        at=({"N": 1, "H": 2, "W": 3}, {"N": 3, "H": 3, "W": 1}),
    ),
    Case(
        "BatchNormalization",
        "statistics as Constant nodes",
        ("N", 3, 2, 2),
        "y = BatchNormalization <momentum = 0.8> (x, s, b, m, v)",
        {"s": (3,), "b": (3,), "m": (3,), "v": VARIANCE},
        constant_nodes=True,
    ),
]


# Shape of x, shape of the constant. Together they broadcast in every way there is.
BROADCASTS: list[tuple[str, tuple[int | str, ...], tuple[int, ...], tuple[Sizes, ...]]] = [
    ("same shape", (2, 3), (2, 3), FIXED),
    ("scalar constant", ("N", 3), (), ONE_AND_THREE),
    ("constant lacks axes", ("N", 3, 2), (2,), ONE_AND_THREE),
    ("constant has axes of size one", ("N", 3, 2), (1, 3, 1), ONE_AND_THREE),
    ("x has an axis of size one", ("N", 1, 2), (1, 3, 2), ONE_AND_THREE),
    ("x has two axes of size one", (1, 3, 1), (2, 1, 2), FIXED),
    ("x lacks axes", ("N", 2), (4, 3, 1, 2), ONE_AND_THREE),
    ("x lacks axes and has one of size one", ("N", 1), (2, 1, 3), ONE_AND_THREE),
    ("both are repeated", ("N", 1, 2), (3, 1), ONE_AND_THREE),
    ("x is a scalar", (), (2, 3), FIXED),
    ("x has one element, more axes", (1, 1, 1), (2,), FIXED),
]

ARITHMETIC = [
    Case(op, f"{what}, {first} first", shape, f"y = {op} ({first}, {second})", {"c": other}, at)
    for op in ("Add", "Sub", "Mul", "Div")
    for what, shape, other, at in BROADCASTS
    for first, second in (("x", "c"), ("c", "x"))
]
ARITHMETIC += [
    Case(op, "x on both sides", ("N", 3), f"y = {op} (x, x)") for op in ("Add", "Sub", "Mul", "Div")
]
ARITHMETIC += [
    Case(
        op,
        f"x with its own mean, {sides}",
        ("N", 3, 2),
        f"m = ReduceMean (x, axes)\n d = Add (m, two)\n y = {op} {sides}",
        {"axes": [1], "two": np.array(4.0)},
    )
    for op, sides in product(("Add", "Sub", "Mul", "Div"), ("(x, d)", "(d, x)"))
]
ARITHMETIC += [
    Case("Mul", "cube", ("N", 3), "a = Mul (x, x)\n y = Mul (a, x)"),
    Case("Div", "x / x + x", ("N", 3), "a = Div (x, x)\n y = Add (a, x)"),
    Case(
        "Add",
        "two dynamic axes of the same names",
        ("N", 2, "H", "W"),
        "a = Relu (x)\n y = Add (a, x)",
        at=({"N": 1, "H": 2, "W": 1}, {"N": 3, "H": 1, "W": 3}),
    ),
]


# --- products ---------------------------------------------------------------------------------

GEMM_SHAPES = {0: ("N", 3), 1: (3, "N")}

PRODUCTS = [
    Case(
        "Gemm",
        f"x is A, transA={ta}, transB={tb}",
        GEMM_SHAPES[ta],
        f"y = Gemm <transA = {ta}, transB = {tb}, alpha = 0.5, beta = 2.0> (x, b, c)",
        {"b": (4, 3) if tb else (3, 4), "c": (4,)},
    )
    for ta, tb in product((0, 1), (0, 1))
]
PRODUCTS += [
    Case(
        "Gemm",
        f"x is B, transA={ta}, transB={tb}",
        GEMM_SHAPES[1 - tb],
        f"y = Gemm <transA = {ta}, transB = {tb}, alpha = -1.5> (a, x)",
        {"a": (3, 2) if ta else (2, 3)},
    )
    for ta, tb in product((0, 1), (0, 1))
]
PRODUCTS += [
    Case(
        "Gemm",
        f"x is A and B, transA={ta}, transB={1 - ta}",
        GEMM_SHAPES[ta],
        f"y = Gemm <transA = {ta}, transB = {1 - ta}, alpha = 0.5> (x, x)",
    )
    for ta in (0, 1)
]
PRODUCTS += [
    Case(
        "Gemm",
        f"x is C of shape {shape}, beta={beta}",
        shape,
        f"y = Gemm <beta = {beta}> (a, b, x)",
        {"a": (3, 2), "b": (2, 4)},
        at=FIXED,
    )
    for shape, beta in product([(3, 4), (1, 4), (3, 1), (4,), (1, 1), ()], ("1.0", "-0.5"))
]
PRODUCTS += [
    Case(
        "Gemm",
        "x is A and C",
        ("N", 3),
        "y = Gemm <alpha = 2.0, beta = 0.5> (x, b, x)",
        {"b": (3, 3)},
    ),
    Case("Gemm", "plain", ("N", 3), "y = Gemm (x, b)", {"b": (3, 2)}),
    Case(
        "Gemm",
        "B as a Constant node",
        ("N", 3),
        "y = Gemm <transB = 1> (x, b, c)",
        {"b": (2, 3), "c": (1, 2)},
        constant_nodes=True,
    ),
    Case("MatMul", "2-D, x left", ("N", 3), "y = MatMul (x, w)", {"w": (3, 4)}),
    Case("MatMul", "2-D, x right", (3, "N"), "y = MatMul (w, x)", {"w": (4, 3)}),
    Case("MatMul", "batch of x, x left", ("N", 2, 3), "y = MatMul (x, w)", {"w": (3, 4)}),
    Case("MatMul", "batch of x, x right", ("N", 3, 2), "y = MatMul (w, x)", {"w": (4, 3)}),
    Case("MatMul", "x lacks the batch, x left", ("N", 3), "y = MatMul (x, w)", {"w": (2, 3, 4)}),
    Case("MatMul", "x lacks the batch, x right", (3, "N"), "y = MatMul (w, x)", {"w": (2, 4, 3)}),
    Case("MatMul", "x lacks two axes", ("N", 3), "y = MatMul (x, w)", {"w": (2, 2, 3, 1)}),
    Case("MatMul", "batch of one, x left", (1, 2, 3), "y = MatMul (x, w)", {"w": (4, 3, 2)}, FIXED),
    Case(
        "MatMul", "batch of one, x right", (1, 3, 2), "y = MatMul (w, x)", {"w": (4, 2, 3)}, FIXED
    ),
    Case(
        "MatMul",
        "both are repeated, x left",
        ("N", 1, 2, 3),
        "y = MatMul (x, w)",
        {"w": (1, 4, 3, 2)},
    ),
    Case(
        "MatMul",
        "both are repeated, x right",
        ("N", 1, 3, 2),
        "y = MatMul (w, x)",
        {"w": (4, 2, 3)},
    ),
    Case(
        "MatMul",
        "x times its transpose",
        ("N", 2, 3),
        "t = Transpose <perm = [0, 2, 1]> (x)\n y = MatMul (x, t)",
    ),
    Case(
        "MatMul",
        "attention without softmax, dynamic length",
        ("N", "T", 2),
        "q = MatMul (x, w)\n t = Transpose <perm = [0, 2, 1]> (x)\n"
        "a = MatMul (q, t)\n y = MatMul (a, x)",
        {"w": (2, 2)},
        at=({"N": 1, "T": 3}, {"N": 2, "T": 1}),
    ),
]


# --- convolution ------------------------------------------------------------------------------

SMALL = ({"N": 1, "H": 5, "W": 6}, {"N": 3, "H": 4, "W": 3}, {"N": 1, "H": 7, "W": 5})


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


IMAGE = ("N", 2, 5, 4)
ANY_IMAGE = ("N", 2, "H", "W")

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


# --- pooling and reductions -------------------------------------------------------------------


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


# --- moving elements --------------------------------------------------------------------------


def moved(op: str, what: str, shape: tuple[int | str, ...], target: list[int], at=ONE_AND_THREE):
    """A case of one op with a constant second input: Reshape, Squeeze or Unsqueeze."""
    return Case(op, what, shape, f"y = {op} (x, t)", {"t": target}, at)


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

CASES = [*ELEMENTWISE, *ARITHMETIC, *PRODUCTS, *CONVOLUTIONS, *POOLING, *REDUCTIONS, *MOVES]


# --- graphs of several ops --------------------------------------------------------------------

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
            "v": VARIANCE[:2],
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
