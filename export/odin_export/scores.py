"""Scores beside ODIN's that the same graph gives: higher means in-distribution for every one.

With logits f(x) of C classes, p = softmax(f(x)), label y = argmax f(x); where the network ends in a
linear layer f = W^T h + b, its features h; and where h is the average of a map A over its cells,
the class activation map of the label, CAM = sum_k W[k, y] A_k (Zhou et al., CVPR 2016, eq. 2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from odin_engines.errors import OdinError
from odin_export.emit import Emitter, constant_value, dims

GEN_GAMMA, GEN_CLASSES = 0.1, 100
_PASSING = frozenset({"Identity", "Flatten", "Reshape", "Squeeze", "Dropout", "Cast"})


@dataclass(frozen=True)
class Head:
    """The network's end: logits = features @ weight + bias.

    Attributes:
        features: (N, K).
        weight: (K, C).
        feature_map: the map that `features` are the average of, cut to the cells that count, as
            (N, cells, K); None if they are not an average.
    """

    features: ir.Value
    weight: np.ndarray
    feature_map: ir.Value | None


@dataclass(frozen=True)
class Inputs:
    """What scores are computed from.

    Attributes:
        logits: float32 (N, C).
        label: int64 (N,).
        classes: C.
        head: None if the network does not end in a linear layer.
    """

    logits: ir.Value
    label: ir.Value
    classes: int
    head: Head | None


def append_scores(e: Emitter, names: tuple[str, ...], inputs: Inputs) -> dict[str, ir.Value]:
    """Append the scores of these names, each float32 (N,).

    Raises:
        OdinError: a score needs an end that the network does not have.
    """
    return {name: _SCORES[name](e, inputs) for name in names}


def find_head(e: Emitter, logits: ir.Value) -> Head | None:
    """Find the linear layer that makes the logits, and the averaged map before it."""
    node = _before_passing(logits)
    if node is None:
        return None
    if node.op_type == "Add":  # a bias
        product = [value for value in node.inputs if constant_value(value) is None]
        if len(product) != 1 or product[0] is None:
            return None
        node = product[0].producer()
    if node is None or node.op_type not in ("Gemm", "MatMul"):
        return None
    features, weight = node.inputs[0], constant_value(node.inputs[1])
    if features is None or weight is None or weight.ndim != 2 or len(dims(features)) != 2:
        return None
    if node.attributes.get_int("transA", 0) or node.attributes.get_float("alpha", 1.0) != 1.0:
        return None
    if node.attributes.get_int("transB", 0):
        weight = weight.T
    return Head(_in_float32(e, features), weight.astype(np.float32), _averaged_map(e, features))


def _in_float32(e: Emitter, value: ir.Value) -> ir.Value:
    """What a network computes in half precision, in the type that scores are computed in."""
    if value.dtype not in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
        return value
    wide = e.op("Cast", value, to=int(ir.DataType.FLOAT))
    wide.shape, wide.type = value.shape, ir.TensorType(ir.DataType.FLOAT)
    return wide


def _before_passing(value: ir.Value) -> ir.Node | None:
    """The node that makes a value, beyond ops that leave its numbers as they are."""
    node = value.producer()
    while node is not None and node.op_type in _PASSING and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node


def _averaged_map(e: Emitter, features: ir.Value) -> ir.Value | None:
    """The map whose average over cells is `features`, as (N, cells, K)."""
    node = _before_passing(features)
    if node is None or node.inputs[0] is None or len(dims(node.inputs[0])) != 4:
        return None
    feature_map = _in_float32(e, node.inputs[0])
    if node.op_type == "GlobalAveragePool":
        spatial = [2, 3]
    elif node.op_type == "ReduceMean":
        spatial = _reduced_axes(node)
        if spatial not in ([2, 3], [1, 2]):
            return None
    elif _is_one_window(node) and dims(features)[1] == dims(feature_map)[1]:
        spatial = [2, 3]  # one window, as there are no more features than channels
        kernel = list(node.attributes.get_ints("kernel_shape"))
        bounds = ([0, 0], kernel, [2, 3])
        feature_map = e.op("Slice", feature_map, *(e.integers(each, "bounds") for each in bounds))
    else:
        return None
    assert node.inputs[0] is not None
    channels = dims(node.inputs[0])[({1, 2, 3} - set(spatial)).pop()]
    if not isinstance(channels, int):
        return None
    if spatial == [2, 3]:
        feature_map = e.op("Transpose", feature_map, perm=[0, 2, 3, 1])
    return e.op("Reshape", feature_map, e.integers([0, -1, channels], "shape"))


def _is_one_window(node: ir.Node) -> bool:
    """An AveragePool whose only window, if it has one, lies at the first cells."""
    return (
        node.op_type == "AveragePool"
        and not any(node.attributes.get_ints("pads", [0]))
        and set(node.attributes.get_ints("dilations", [1])) == {1}
        and node.attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    )


def _reduced_axes(node: ir.Node) -> list[int]:
    if len(node.inputs) > 1:
        values = constant_value(node.inputs[1])
        axes = [] if values is None else [int(axis) for axis in values]
    else:
        axes = list(node.attributes.get_ints("axes", []))
    return sorted(axis % 4 for axis in axes)


def _probabilities(e: Emitter, inputs: Inputs) -> ir.Value:
    return e.op("Softmax", inputs.logits, axis=1)


def _msp(e: Emitter, inputs: Inputs) -> ir.Value:
    """max_i p_i: maximum softmax probability, the baseline (Hendrycks, Gimpel, ICLR 2017)."""
    return e.reduced("ReduceMax", _probabilities(e, inputs), [1], keepdims=False)


def _max_logit(e: Emitter, inputs: Inputs) -> ir.Value:
    """max_i f_i (Hendrycks et al., "Scaling Out-of-Distribution Detection ...", ICML 2022)."""
    return e.reduced("ReduceMax", inputs.logits, [1], keepdims=False)


def _energy(e: Emitter, inputs: Inputs) -> ir.Value:
    """log sum_i exp f_i: the negative free energy at T = 1 (Liu et al., NeurIPS 2020, eq. 4)."""
    # Not ReduceLogSumExp, whose axes OpenVINO 2026.4 overlooks before opset 18.
    largest = e.reduced("ReduceMax", inputs.logits, [1])
    powers = e.op("Exp", e.op("Sub", inputs.logits, largest))
    sums = e.op("Log", e.reduced("ReduceSum", powers, [1]))
    return e.op("Squeeze", e.op("Add", largest, sums), e.integers([1], "axes"))


def _entropy(e: Emitter, inputs: Inputs) -> ir.Value:
    """sum_i p_i log p_i: the negative entropy of the softmax."""
    logs = e.op("LogSoftmax", inputs.logits, axis=1)
    product = e.op("Mul", _probabilities(e, inputs), logs)
    return e.reduced("ReduceSum", product, [1], keepdims=False)


def _gen(e: Emitter, inputs: Inputs) -> ir.Value:
    """-sum_i p_i^g (1 - p_i)^g over the 100 largest p_i, g = 0.1: generalised entropy
    (Liu, Lochman, Zach, "GEN", CVPR 2023, eq. 4)."""
    every = _probabilities(e, inputs)
    kept = min(GEN_CLASSES, inputs.classes)
    probabilities = e.first_of("TopK", 2, every, e.integers([kept], "classes"), axis=1)
    zero, one, gamma = (e.constant(np.float32(value)) for value in (0, 1, GEN_GAMMA))
    # 1 - p of the likeliest is what the others add up to: near 1 the difference has few digits.
    label = e.op("Unsqueeze", inputs.label, e.integers([1], "axes"))
    likeliest = e.op("Equal", label, e.constant(np.arange(inputs.classes)[None], "classes"))
    others = e.reduced("ReduceSum", e.op("Where", likeliest, zero, every), [1])
    second, end, axis = (e.integers([n], "bound") for n in (1, kept, 1))
    unlikely = e.op("Slice", probabilities, second, end, axis)
    rest = e.op("Concat", others, e.op("Sub", one, unlikely), axis=1)
    product = e.op("Pow", e.op("Mul", probabilities, rest), gamma)
    return e.op("Neg", e.reduced("ReduceSum", product, [1], keepdims=False))


def _gradnorm(e: Emitter, inputs: Inputs) -> ir.Value:
    """|h|_1 sum_i |1 - C p_i| / C: the L1 norm of the gradient of KL(uniform, p) with respect to
    the last layer's weight, in closed form (Huang, Geng, Li, NeurIPS 2021, T = 1)."""
    head = _head(inputs, "gradnorm")
    features = e.reduced("ReduceSum", e.op("Abs", head.features), [1], keepdims=False)
    uniform = e.constant(np.float32(1 / inputs.classes))
    away = e.op("Abs", e.op("Sub", _probabilities(e, inputs), uniform))
    return e.op("Mul", features, e.reduced("ReduceSum", away, [1], keepdims=False))


def _cam_max(e: Emitter, inputs: Inputs) -> ir.Value:
    """max over the cells of CAM."""
    return e.reduced("ReduceMax", _activation_map(e, inputs, "cam-max"), [1], keepdims=False)


def _cam_std(e: Emitter, inputs: Inputs) -> ir.Value:
    """The standard deviation over the cells of CAM (of the population: divided by their number)."""
    cells = _activation_map(e, inputs, "cam-std")
    deviation = e.op("Sub", cells, e.reduced("ReduceMean", cells, [1]))
    variance = e.reduced("ReduceMean", e.op("Mul", deviation, deviation), [1], keepdims=False)
    return e.op("Sqrt", variance)


def _activation_map(e: Emitter, inputs: Inputs, score: str) -> ir.Value:
    """CAM, (N, cells)."""
    head = _head(inputs, score)
    if head.feature_map is None:
        raise OdinError(
            f"--scores {score}: the network does not end in global average pooling and a linear "
            "layer, so it has no class activation map; leave this score out"
        )
    weights = e.op("Gather", e.constant(head.weight.T, "cam_weight"), inputs.label, axis=0)
    column = e.op("Unsqueeze", weights, e.integers([2], "axes"))
    cells = e.op("MatMul", head.feature_map, column)
    return e.op("Squeeze", cells, e.integers([2], "axes"))


def _head(inputs: Inputs, score: str) -> Head:
    if inputs.head is None:
        raise OdinError(
            f"--scores {score}: the network does not end in a linear layer with constant weights; "
            "leave this score out"
        )
    return inputs.head


_SCORES: dict[str, Callable[[Emitter, Inputs], ir.Value]] = {
    "msp": _msp,
    "max-logit": _max_logit,
    "energy": _energy,
    "entropy": _entropy,
    "gen": _gen,
    "gradnorm": _gradnorm,
    "cam-max": _cam_max,
    "cam-std": _cam_std,
}
