"""What a case is, and how it is run: small models from `x` to `y`, as data."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import numpy_helper, parser, shape_inference

from odin_export.evaluate import evaluator

Constant = tuple[int, ...] | list[int] | np.ndarray
Sizes = Mapping[str, int]

ONE_AND_THREE: tuple[Sizes, ...] = ({"N": 1}, {"N": 3})
FIXED: tuple[Sizes, ...] = ({},)
SMALL: tuple[Sizes, ...] = (
    {"N": 1, "H": 5, "W": 6},
    {"N": 3, "H": 4, "W": 3},
    {"N": 1, "H": 7, "W": 5},
)

IMAGE = ("N", 2, 5, 4)
ANY_IMAGE = ("N", 2, "H", "W")


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
        opset: of the model.
        between: the range of x; None takes numbers of either sign away from zero.
        empty: whether the op takes an empty batch, N = 0.
        rtx: why TensorRT refuses the op itself; "" if it takes it.
        y: the shape of y, where ONNX's shape inference does not find it.
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
    opset: int = 20
    between: tuple[float, float] | None = None
    empty: bool = True
    rtx: str = ""
    y: tuple[int | str, ...] = ()

    def __str__(self) -> str:
        return f"{self.op or 'graph'}: {self.what}"


def away_from_zero(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers of either sign between 0.5 and 1.5: far from the kink of Relu, safe to divide by."""
    return np.asarray(rng.uniform(0.5, 1.5, shape) * rng.choice([-1.0, 1.0], shape))


def random_for(label: str) -> np.random.Generator:
    """A generator that depends on nothing but the label."""
    return np.random.default_rng(zlib.crc32(label.encode()))


def build(case: Case, dtype: str = "double", opset: int | None = None) -> onnx.ModelProto:
    """Return the model of a case, with all shapes inferred."""
    sizes = f"[{', '.join(map(str, case.shape))}]" if case.shape else ""
    model = parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : {opset or case.opset}]>\n'
        f"network ({dtype}{sizes} x) => ({dtype}[{', '.join(map(str, case.y))}] y) "
        f"{{\n{case.text}\n}}"
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


# No input of a Relu is closer than this to its kink.
MARGIN = 0.05


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
    case: Case, model: onnx.ModelProto, rng: np.random.Generator, shape: tuple[int, ...]
) -> np.ndarray:
    """Return an x, in the case's range, at which no Relu of the model is near its kink."""
    names = [node.input[0] for node in model.graph.node if node.op_type == "Relu"]
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = evaluator(probe)
    for _ in range(1000):
        x = rng.uniform(*case.between, shape) if case.between else away_from_zero(rng, shape)
        x = np.asarray(x)
        if not names or min(np.abs(v).min() for v in session.run(names, {"x": x})) > MARGIN:
            return x
    raise AssertionError("no x keeps clear of the kinks; make the case smaller")
