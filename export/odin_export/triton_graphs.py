"""The small graphs of a Triton ensemble: before ODIN's graph and after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from odin_engines.calibration import Calibration
from odin_engines.spec import Spec


def prepare_graph(spec: Spec) -> onnx.ModelProto:
    """images, uint8 (N, H, W, C) -> normalised, (pixel / 255 - mean) / std, float32 (N, C, H, W).

    In the order in which `Scorer` computes it: the pixels come out the same to the last bit.
    """
    column = (1, spec.channels, 1, 1)
    nodes = [
        helper.make_node("Transpose", ["images"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["planes"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["float", "most"], ["pixels"]),
        helper.make_node("Sub", ["pixels", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "std"], ["normalised"]),
    ]
    return _model(
        nodes,
        [_value("images", TensorProto.UINT8, ["N", "H", "W", spec.channels])],
        [_value("normalised", TensorProto.FLOAT, ["N", spec.channels, "H", "W"])],
        {
            "most": np.float32(255),
            "mean": np.asarray(spec.mean, np.float32).reshape(column),
            "std": np.asarray(spec.std, np.float32).reshape(column),
        },
    )


def decide_graph(calibration: Calibration) -> onnx.ModelProto:
    """score, float32 (N, 1) -> is_ood, bool, and percentile, float32, as `Calibration` has them.

    percentile = (1 + images * below) / (images + 1), where `below` is the sum over the intervals
    between two quantiles of step * clip((score - left) / width, 0, 1), and the first share.
    """
    values, shares = _steps_of(calibration)
    nodes = [
        helper.make_node("GreaterOrEqual", ["score", "threshold"], ["in"]),
        helper.make_node("Not", ["in"], ["is_ood"]),
        helper.make_node("Cast", ["score"], ["double"], to=TensorProto.DOUBLE),
        helper.make_node("Sub", ["double", "left"], ["beyond"]),
        helper.make_node("Div", ["beyond", "width"], ["part"]),
        helper.make_node("Clip", ["part", "zero", "one"], ["passed"]),
        helper.make_node("MatMul", ["passed", "step"], ["risen"]),
        helper.make_node("GreaterOrEqual", ["double", "least"], ["any"]),
        helper.make_node("Where", ["any", "first", "zero"], ["start"]),
        helper.make_node("Add", ["risen", "start"], ["below"]),
        helper.make_node("Mul", ["below", "images"], ["count"]),
        helper.make_node("Add", ["count", "one"], ["with_itself"]),
        helper.make_node("Div", ["with_itself", "of"], ["share"]),
        # What Clip makes of a score that is no number is up to the runtime.
        helper.make_node("IsNaN", ["double"], ["unknown"]),
        helper.make_node("Where", ["unknown", "nan", "share"], ["known"]),
        helper.make_node("Cast", ["known"], ["percentile"], to=TensorProto.FLOAT),
    ]
    return _model(
        nodes,
        [_value("score", TensorProto.FLOAT, ["N", 1])],
        [
            _value("is_ood", TensorProto.BOOL, ["N", 1]),
            _value("percentile", TensorProto.FLOAT, ["N", 1]),
        ],
        {
            "threshold": np.float32(calibration.threshold),
            "left": values[None, :-1],
            "width": np.diff(values)[None],
            "step": np.diff(shares)[:, None],
            "least": values[0],
            "first": shares[0],
            "images": np.float64(calibration.images),
            "of": np.float64(calibration.images + 1),
            "zero": np.float64(0),
            "one": np.float64(1),
            "nan": np.float64(np.nan),
        },
    )


def with_constants(graph: onnx.ModelProto, spec: Spec) -> onnx.ModelProto:
    """A tunable graph with the bundle's own settings; Triton would batch these inputs too."""
    for name in ("temperature", "magnitude"):
        found = next(value for value in graph.graph.input if value.name == name)
        graph.graph.input.remove(found)
        value = np.asarray(getattr(spec, name), np.float32)
        graph.graph.initializer.append(numpy_helper.from_array(value, name))
    return graph


def _steps_of(calibration: Calibration) -> tuple[np.ndarray, np.ndarray]:
    """The quantiles without equals, ascending, and the share of images at or below each.

    At least two, the last of them with all images: an interval that nothing is added in.
    """
    values = np.asarray(calibration.quantiles)
    last = np.append(values[1:] != values[:-1], True)
    values, shares = values[last], np.linspace(0.0, 1.0, len(values))[last]
    return np.append(values, values[-1] + 1), np.append(shares, 1.0)


def _model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    constants: Mapping[str, np.ndarray | np.generic],
) -> onnx.ModelProto:
    stored = [numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()]
    graph = helper.make_graph(nodes, "odin", inputs, outputs, stored)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(made, full_check=True)
    return made


def _value(name: str, kind: int, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)
