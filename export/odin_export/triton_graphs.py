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

    percentile = (1 + images * below) / (images + 1), where `below` is the sum of
    rise * clip((score - left) / width, 0, 1) over the intervals between two quantiles, and of
    jump * (score >= tie) over those that several share.
    """
    steps = _steps_of(calibration)
    nodes = [
        helper.make_node("GreaterOrEqual", ["score", "threshold"], ["in"]),
        helper.make_node("Not", ["in"], ["is_ood"]),
        helper.make_node("Cast", ["score"], ["double"], to=TensorProto.DOUBLE),
        helper.make_node("Sub", ["double", "left"], ["beyond"]),
        helper.make_node("Div", ["beyond", "width"], ["part"]),
        helper.make_node("Clip", ["part", "zero", "one"], ["passed"]),
        helper.make_node("MatMul", ["passed", "rise"], ["risen"]),
        helper.make_node("GreaterOrEqual", ["double", "tie"], ["reached"]),
        helper.make_node("Cast", ["reached"], ["ties"], to=TensorProto.DOUBLE),
        helper.make_node("MatMul", ["ties", "jump"], ["jumped"]),
        helper.make_node("Add", ["risen", "jumped"], ["below"]),
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
            **steps,
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


def _steps_of(calibration: Calibration) -> dict[str, np.ndarray]:
    """left, width (1, intervals), rise (intervals, 1); tie (1, ties), jump (ties, 1): float64.

    One of each at least: with a rise and a jump of 0 where there is none.
    """
    values = np.asarray(calibration.quantiles)
    step = 1 / (len(values) - 1)
    width = np.diff(values)
    wide = np.append(np.flatnonzero(width), len(values) - 1)
    ties, counts = np.unique(values, return_counts=True)
    return {
        "left": values[None, wide],
        "width": np.append(width, 1.0)[None, wide],
        "rise": np.append(np.full(len(wide) - 1, step), 0.0)[:, None],
        "tie": ties[None],
        "jump": (counts - 1)[:, None] * step,
    }


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
